package plan

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// story is one case of a golden file:
//
//	== title
//	a VM config
//	-- running, ours, 2 vCPUs, 512 MiB, tags a b
//	desired_json without what no case needs: "Class": {...}, ...
//	->
//	the plan
type story struct {
	title, config, state, wish, plan string
}

// TestReconfigureStories are to be read: a config, how the VM is, what is wished, and the steps.
func TestReconfigureStories(t *testing.T) {
	const file = "testdata/reconfigure.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	preface, stories := tales(t, string(raw))
	var out strings.Builder
	out.WriteString(preface)
	for _, s := range stories {
		got := s.told(t)
		if !*update && got != s.plan {
			t.Errorf("%s (-want +got):\n%s", s.title, cmp.Diff(s.plan, got))
		}
		fmt.Fprintf(&out, "== %s\n%s-- %s\n%s->\n%s\n", s.title, s.config, s.state, s.wish, got)
	}
	if !*update {
		return
	}
	if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tales takes a golden file apart.
func tales(t *testing.T, text string) (preface string, all []story) {
	t.Helper()
	parts := strings.Split(text, "\n== ")
	for _, part := range parts[1:] {
		var s story
		var ok bool
		if s.title, part, ok = strings.Cut(part, "\n"); !ok {
			t.Fatalf("story %q ends early", s.title)
		}
		s.config, part, _ = strings.Cut(part, "-- ")
		s.state, part, _ = strings.Cut(part, "\n")
		s.wish, s.plan, _ = strings.Cut(part, "->\n")
		s.plan = strings.TrimRight(s.plan, "\n") + "\n"
		all = append(all, s)
	}
	return parts[0] + "\n", all
}

func (s story) told(t *testing.T) string {
	t.Helper()
	wish, err := spec.DecodeReconfigure("{" + s.wish + "}")
	if err != nil {
		t.Fatalf("%s: %v", s.title, err)
	}
	conf, err := pmxcfs.ParseConf("100.conf", []byte(s.config))
	if err != nil {
		t.Fatal(err)
	}
	now := Now{Conf: conf}
	for word := range strings.SplitSeq(s.state, ", ") {
		switch {
		case word == "running":
			now.Running = true
		case word == "ours":
			now.Ours = true
		case strings.HasPrefix(word, "tags "):
			now.Tags = strings.Fields(word)[1:]
		case word != "stopped":
			n, unit := 0, ""
			if _, err := fmt.Sscan(word, &n, &unit); err != nil {
				t.Fatalf("%s: %q: %v", s.title, word, err)
			}
			*map[string]*int{"vCPUs": &now.CPUs, "MiB": &now.MemoryMiB}[unit] = n
		}
	}
	changes, err := Reconfigure(wish, now, storySite(t))
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return changes.text()
}

// storySite is a node of 16 CPUs with two storages.
func storySite(t *testing.T) Site {
	t.Helper()
	storages, err := pmxcfs.ParseStorages("storage.cfg", []byte("dir: local\n\tpath /var/lib/vz\n\tcontent images\n\nlvmthin: fast\n\tcontent images\n"))
	if err != nil {
		t.Fatal(err)
	}
	return Site{
		Node: "pve1", World: &pmxcfs.World{Storages: storages}, CPUs: 16, MHz: 2000, Major: 9, Dialect: spec.DesiredDialect,
		Policy: Policy{StorageClasses: map[string]StorageClass{"nvme": {Storage: "fast", Options: Values{"discard": "on"}}}},
	}
}

// text is a plan as its readers like it.
func (c Changes) text() string {
	var b strings.Builder
	for _, s := range c.Steps {
		when := "now "
		if s.Waits {
			when = "next start "
		}
		fmt.Fprintf(&b, "%s%s by %s: %s (%s)\n", when, s.Part, s.Way, s.What(), s.Why)
	}
	for _, err := range c.Refused {
		fmt.Fprintf(&b, "refused: %v\n", err)
	}
	if len(c.Ignored) > 0 {
		fmt.Fprintf(&b, "ignored: %s\n", strings.Join(c.Ignored, ", "))
	}
	if b.Len() == 0 {
		return "nothing to do\n"
	}
	return b.String()
}

func TestGuestMemory(t *testing.T) {
	for config, want := range map[string]int64{
		"memory: 2048\n":                                     2048,
		"memory: 2048\nballoon: 1024\n":                      2048, // PVE moves it
		"memory: 2048\nballoon: 1024\nshares: 500\n":         2048,
		"memory: 2048\nballoon: 1024\nshares: 0\n":           1024,
		"memory: 2048\nballoon: 4096\nshares: 0\n":           2048,
		"memory: 2048\nballoon: 0\nshares: 0\n":              2048,
		"shares: 0\n":                                        512, // PVE's default
		"memory: 2048\n\n[PENDING]\nballoon: 1\nshares: 0\n": 2048,
	} {
		conf, err := pmxcfs.ParseConf("100.conf", []byte(config))
		if err != nil {
			t.Fatal(err)
		}
		if got := GuestMemoryMiB(conf); got != want {
			t.Errorf("%q: %d MiB, want %d", config, got, want)
		}
	}
}
