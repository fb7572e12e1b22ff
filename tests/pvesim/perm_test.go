package pvesim

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

// TestRoutesFitTheSchema: every call that is simulated is one of PVE's, and
// wants the privilege that PVE's schema names.
func TestRoutesFitTheSchema(t *testing.T) {
	env := os.Getenv("PVE_API_SCHEMA")
	if env == "" {
		t.Skip("skipped: needs PVE's call schema; enable with: export PVE_API_SCHEMA=<directory>/9.1.json")
	}
	for _, version := range []string{"7.4", "8.4", "9.1"} {
		s, err := schema.Load(filepath.Join(filepath.Dir(env), version+".json"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(Config{Dir: t.TempDir(), Version: version, SchemaFile: "none"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.routes {
			if !s.Has(r.method, r.tmpl) {
				t.Errorf("%s has no %s %s", version, r.method, r.tmpl)
				continue
			}
			if r.perm == nil {
				continue
			}
			var p struct{ Check []any }
			if err := json.Unmarshal(s.Permissions(r.method, r.tmpl), &p); err != nil {
				t.Fatal(err)
			}
			if got, want := refusal(c, r), schemaRefusal(p.Check); want != "" && got != want {
				t.Errorf("%s %s %s: refuses with %q, want %q", version, r.method, r.tmpl, got, want)
			}
		}
	}
}

// refusal is what a call says to somebody without any privilege.
func refusal(c *Cluster, r *route) string {
	rq := &request{c: c, via: c.nodes[0], node: c.nodes[0], who: principal{user: "x@pve", token: "t"}, vars: map[string]string{}, params: url.Values{}}
	for _, part := range r.parts {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			name = strings.TrimSuffix(name, "}")
			rq.vars[name] = "{" + name + "}"
		}
	}
	if strings.HasPrefix(r.tmpl, "/pools") {
		rq.params.Set("poolid", "{poolid}") // in the path of some calls only
	}
	if err := r.perm(rq); err != nil {
		return err.Error()
	}
	return ""
}

// schemaRefusal is what PVE says, from the schema's check; "" for composed ones.
func schemaRefusal(check []any) string {
	if len(check) < 3 || check[0] != "perm" {
		return ""
	}
	var privs []string
	list, _ := check[2].([]any)
	for _, p := range list {
		privs = append(privs, fmt.Sprint(p))
	}
	if len(privs) == 0 {
		return ""
	}
	if slices.Contains(check, any("any")) {
		return fmt.Sprintf("Permission check failed (%s, %s)", check[1], strings.Join(privs, "|"))
	}
	return fmt.Sprintf("Permission check failed (%s, %s)", check[1], privs[0])
}
