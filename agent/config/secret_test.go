package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// No way of printing shows a secret, neither alone nor inside a Config.
func TestSecretIsNeverPrinted(t *testing.T) {
	const value = "hunter2"
	s := NewSecret(value)
	c := Config{PVE: PVE{TokenSecret: s, Password: s}}
	printed := map[string]string{}
	type holder struct{ hidden Secret }
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s"} {
		printed["alone "+verb] = fmt.Sprintf(verb, s)
		printed["in a Config "+verb] = fmt.Sprintf(verb, c)
		printed["by pointer "+verb] = fmt.Sprintf(verb, &c.PVE)
		printed["in an unexported field "+verb] = redacted + fmt.Sprintf(verb, holder{s})
	}
	for name, marshal := range map[string]func(any) ([]byte, error){"json": json.Marshal, "yaml": yaml.Marshal} {
		for _, v := range []any{s, &s, c, map[string]Secret{"a": s}} {
			b, err := marshal(v)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			printed[fmt.Sprintf("%s of %T", name, v)] = string(b)
		}
	}
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("x", "secret", s, "config", c)
	slog.New(slog.NewJSONHandler(&js, nil)).Info("x", "secret", s, "config", c)
	printed["slog text"], printed["slog json"] = text.String(), js.String()
	printed["error"] = fmt.Errorf("log in with %v: %w", s, errWord).Error()

	hex := fmt.Sprintf("%x", value)
	for how, got := range printed {
		if strings.Contains(got, value) || strings.Contains(strings.ToLower(got), hex) || strings.Contains(got, "104 117") {
			t.Errorf("%s prints the secret: %s", how, got)
		}
		if !strings.Contains(got, redacted) {
			t.Errorf("%s does not say that there is a secret: %s", how, got)
		}
	}
	if s.Reveal() != value || s.IsZero() || !(Secret{}).IsZero() {
		t.Error("Reveal or IsZero is wrong")
	}
}
