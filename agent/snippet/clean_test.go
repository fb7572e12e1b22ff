package snippet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

const day = 24 * time.Hour

// TestClean: one pass, over files of different ages.
func TestClean(t *testing.T) {
	for name, tc := range map[string]struct {
		conf  string // of a VM
		needs string // a record of a VM that is being made names it
		state record.State
		world func(w *world)
		age   time.Duration
		stays bool
	}{
		"old":                       {age: keepTime + time.Minute},
		"not old":                   {age: keepTime - time.Minute, stays: true},
		"named":                     {age: 30 * day, conf: uses("a"), stays: true},
		"named by a snapshot":       {age: 30 * day, conf: "name: x\n[before]\n" + uses("a"), stays: true},
		"named by what is pending":  {age: 30 * day, conf: "name: x\n[PENDING]\n" + uses("a"), stays: true},
		"named on another storage":  {age: 30 * day, conf: strings.ReplaceAll(uses("a"), "local:", "other:"), stays: true},
		"another is named":          {age: 30 * day, conf: uses("b")},
		"of a VM that is made":      {age: 30 * day, needs: "a", state: record.Creating, stays: true},
		"of a VM that was made":     {age: 30 * day, needs: "a", state: record.Ready},
		"from the future":           {age: -day, stays: true},
		"without quorum":            {age: 30 * day, world: func(w *world) { w.quorate = false }, stays: true},
		"a config cannot be read":   {age: 30 * day, world: func(w *world) { w.vms[200] = "pve3" }, stays: true},
		"no storage.cfg":            {age: 30 * day, world: func(w *world) { w.cfg = "\x00" }, stays: true},
		"the storage holds no more": {age: 30 * day, world: func(w *world) { w.cfg = strings.ReplaceAll(plainCfg, ",snippets", "") }, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n := w.nodes["pve1"]
			path := w.put("pve1", "a", tc.age)
			other := w.put("pve2", "a", 30*day)
			foreign := filepath.Join(filepath.Dir(path), "pve-rigaud-mine.yaml")
			w.must(os.WriteFile(foreign, nil, 0o600))
			w.age(foreign, 30*day)
			if tc.conf != "" {
				w.vm(100, "pve2", tc.conf)
			}
			if tc.needs != "" {
				_, err := w.records.Take(record.Record{Owner: "o", Name: "a", VMID: 101, Node: "pve3", State: tc.state, Snippets: []string{Volume("local", []byte(tc.needs))}})
				w.must(err)
			}
			if tc.world != nil {
				w.change(func() { tc.world(w) })
			}
			n.clean(t.Context())
			info, err := os.Stat(path)
			if (err == nil) != tc.stays {
				t.Errorf("it is there: %v, want %v", err, tc.stays)
			}
			if needed := tc.conf != "" && tc.stays || tc.needs != ""; err == nil && needed && time.Since(info.ModTime()) > time.Minute {
				t.Errorf("it was not made young: %s", info.ModTime())
			}
			for _, path := range []string{foreign, other} {
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestSevenDays passes a VM's life and a week: its file goes a week after the last thing that needs it.
func TestSevenDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.watch = 20 * time.Minute
		n := w.boot("pve1")
		w.run(n)
		w.must(n.Write(t.Context(), "local", []byte("a")))
		w.must(n.Write(t.Context(), "shared", []byte("a")))
		w.vm(100, "pve1", uses("a"))
		wait(8 * day)
		w.vm(100, "pve1", "name: x\n[before]\n"+uses("a"))
		wait(8 * day)
		w.removeVM(100)
		n.Drop(t.Context(), []string{Volume("local", []byte("a"))})
		wait(keepTime - time.Hour)
		if got := w.everywhere("a"); got != "pve1 pve2 pve3" {
			t.Errorf("after six days on %s", got)
		}
		wait(3 * time.Hour)
		if got := w.everywhere("a"); got != "pve2 pve3" || len(w.have("shared")) != 0 { // whose agents clean up themselves
			t.Errorf("after seven on %s, on shared %q", got, w.have("shared"))
		}
	})
}

// TestWriteKeepsWhatIsOld: a file that a clean-up was about to remove is safe from the moment it is written again.
func TestWriteKeepsWhatIsOld(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	w.put("pve1", "a", 30*day)
	w.must(n.Write(t.Context(), "local", []byte("a")))
	n.clean(t.Context())
	if got := w.everywhere("a"); got != "pve1 pve2 pve3" {
		t.Errorf("on %s", got)
	}
}

// TestDrafts of this node go when its agent starts.
func TestDrafts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.nodes["pve1"]
		w.put("pve1", "a", 0)
		dir := filepath.Dir(w.path("pve1", "a"))
		for _, name := range []string{n.draft(fileOf([]byte("a"))), w.nodes["pve2"].draft(fileOf([]byte("a"))), ".other.pve1"} {
			w.must(os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		}
		w.run(n)
		<-n.Ready()
		synctest.Wait()
		if got, want := w.have("pve1/vz"), []string{".other.pve1", w.nodes["pve2"].draft(fileOf([]byte("a"))), fileOf([]byte("a"))}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
