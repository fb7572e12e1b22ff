package config

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// A setting is what one source says about one key, still as text. Lists are
// the only values with more than one text.
type setting struct {
	key    *key
	texts  []string
	source string
	env    bool
}

// Error says what is wrong with one setting. Load joins all it finds.
type Error struct {
	// Source is where the setting stands: "file:line", "--flag", "env NAME";
	// empty if it is missing everywhere.
	Source string
	// Key is the setting, "listen.grpc"; empty if the whole source is at fault.
	Key string
	// Err says what was expected. It never holds a secret.
	Err error
}

// Error gives "source: key: reason". A flag's name says the key already.
func (e *Error) Error() string {
	var parts []string
	if e.Source != "" {
		parts = append(parts, e.Source)
	}
	if e.Key != "" && !strings.HasPrefix(e.Source, "--") {
		parts = append(parts, e.Key)
	}
	return strings.Join(append(parts, e.Err.Error()), ": ")
}

// Unwrap gives the reason.
func (e *Error) Unwrap() error { return e.Err }

// apply converts the text into the field of c and checks it.
func (s setting) apply(c *Config) error {
	field := s.key.field(c)
	err := assign(field, s.texts)
	if err == nil && s.key.check != nil {
		err = s.key.check(field)
	}
	if err != nil {
		return &Error{Source: s.source, Key: s.key.name, Err: err}
	}
	return nil
}

// assign converts texts into what field points to.
func assign(field any, texts []string) error {
	if list, ok := field.(*[]string); ok {
		*list = texts
		return nil
	}
	if t, ok := field.(table); ok {
		return t.parse(texts)
	}
	if n, ok := field.(notation); ok {
		return n.parse(texts[0])
	}
	text := texts[0]
	var err error
	switch f := field.(type) {
	case *string:
		*f = text
	case *bool:
		*f, err = parseBool(text)
	case *int:
		*f, err = strconv.Atoi(text)
	case *time.Duration:
		*f, err = time.ParseDuration(text)
	case *slog.Level:
		*f, err = parseLevel(text)
	case *VMIDRange:
		return f.parse(text)
	default:
		panic(fmt.Sprintf("config: no conversion for %T", field))
	}
	if err != nil {
		return fmt.Errorf("expected %s, got %q", expected(field), text)
	}
	return nil
}

// expected names the type of a field in error messages.
func expected(field any) string {
	switch f := field.(type) {
	case notation:
		return f.expected()
	case *bool:
		return "true or false"
	case *int:
		return "a number"
	case *time.Duration:
		return "a duration such as 2s or 500ms"
	case *slog.Level:
		return alternatives(levels[:])
	case *VMIDRange:
		return "a range such as 10000-999999"
	case *[]string:
		return "a list of strings"
	case *Names:
		return "name=value"
	case *Classes:
		return "name:storage=<storage>,option=value"
	case *Lists:
		return "name=node,node"
	case *Policies:
		return "YAML such as name: {spread: node}"
	}
	return "a string"
}

var errWord = errors.New("not one of the words")

// parseBool takes the two words of YAML 1.2 and nothing else.
func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errWord
}

var levels = [...]string{"debug", "info", "warn", "error"}

// parseLevel takes the words the manager writes into LOG_LEVEL, in any case.
func parseLevel(text string) (slog.Level, error) {
	for i, word := range levels {
		if strings.EqualFold(text, word) {
			return slog.LevelDebug + slog.Level(4*i), nil
		}
	}
	return 0, errWord
}

func (r *VMIDRange) parse(text string) error {
	lo, hi, ok := strings.Cut(text, "-")
	first, errLo := strconv.Atoi(lo)
	last, errHi := strconv.Atoi(hi)
	if !ok || errLo != nil || errHi != nil {
		return fmt.Errorf("expected %s, got %q", expected(r), text)
	}
	if first < minVMID || last > maxVMID || first > last {
		return fmt.Errorf("expected a range within %d-%d, low end first, got %q", minVMID, maxVMID, text)
	}
	*r = VMIDRange{Min: first, Max: last}
	return nil
}

// texts is the inverse of assign, in the form of the file.
func texts(field any) []string {
	switch f := field.(type) {
	case *string:
		return []string{*f}
	case *bool:
		return []string{strconv.FormatBool(*f)}
	case *int:
		return []string{strconv.Itoa(*f)}
	case *time.Duration:
		return []string{duration(*f)}
	case *slog.Level:
		return []string{strings.ToLower(f.String())}
	case *VMIDRange:
		return []string{f.String()}
	case *[]string:
		return *f
	case table:
		return f.texts()
	case notation:
		return []string{f.text()}
	}
	panic(fmt.Sprintf("config: no text for %T", field))
}

// duration drops the zero units that time.Duration prints: 6h, not 6h0m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
