package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md and golden files")

const docsFile = "../../docs/configuration.md"

// The table in the documentation is made from the keys.
func TestDocs(t *testing.T) {
	const begin, end = "<!-- keys -->\n", "<!-- /keys -->\n"
	page := string(mustRead(t, docsFile))
	before, rest, ok1 := strings.Cut(page, begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s: no place for the table", docsFile)
	}
	want := keyTable()
	if *update {
		if err := os.WriteFile(docsFile, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, table); diff != "" {
		t.Errorf("%s is out of date (go test ./agent/config -run TestDocs -update):\n%s", docsFile, diff)
	}
}

func keyTable() string {
	var b bytes.Buffer
	b.WriteString("| Key | Default | Environment | Flag | All nodes | Meaning |\n|---|---|---|---|---|---|\n")
	for _, k := range keys {
		standard := "-"
		if k.def != "" {
			standard = "`" + k.def + "`"
		} else if k.unset != "" {
			standard = k.unset
		}
		env, cluster := "-", "-"
		if k.env != "" {
			env = "`" + k.env + "`"
		}
		if k.cluster {
			cluster = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | `--%s` | %s | %s |\n", k.name, standard, env, k.flagName(), cluster, k.doc)
	}
	return b.String()
}

// Names must be unique in each of their three worlds.
func TestKeyNames(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range keys {
		for _, name := range []string{"key " + k.name, "flag " + k.flagName(), "env " + k.env} {
			if seen[name] && name != "env " {
				t.Errorf("%s twice", name)
			}
			seen[name] = true
		}
		if k.doc == "" || strings.ToLower(k.name) != k.name || strings.Contains(k.name, "_") {
			t.Errorf("%s: no meaning, or not kebab-case", k.name)
		}
	}
}
