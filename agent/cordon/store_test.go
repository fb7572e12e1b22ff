package cordon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// shared is the directory of a cluster's files, and a store on it.
func shared(t *testing.T) (dir string, s *Store) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "pve-rigaud")
	return dir, another(dir)
}

// another is the store of another node.
func another(dir string) *Store {
	return New(Config{Dir: dir, Interval: time.Millisecond, Now: func() time.Time { return noon }})
}

func cordons(t *testing.T, s *Store) map[string]Cordon {
	t.Helper()
	c, err := s.Cordons(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestACordonIsSeenByAll(t *testing.T) {
	dir, s := shared(t)
	if c := cordons(t, s); len(c) != 0 {
		t.Errorf("at first: %v", c)
	}
	for _, step := range []struct {
		what    string
		do      func() (bool, error)
		changed bool
		want    map[string]Cordon
	}{
		{"uncordon what is not", func() (bool, error) { return s.Uncordon(t.Context(), "pve2") }, false, map[string]Cordon{}},
		{"cordon", func() (bool, error) { return s.Cordon(t.Context(), "pve2", "pve1", "new disks") }, true, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "new disks"},
		}},
		{"again", func() (bool, error) { return s.Cordon(t.Context(), "pve2", "pve3", "") }, false, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "new disks"},
		}},
		{"another reason", func() (bool, error) { return s.Cordon(t.Context(), "pve2", "pve3", "memory") }, true, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "memory"},
		}},
		{"drain", func() (bool, error) { return s.Drain(t.Context(), "pve2", "pve2", "") }, true, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "memory", Draining: true},
		}},
		{"cordon what is drained", func() (bool, error) { return s.Cordon(t.Context(), "pve2", "pve1", "") }, false, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "memory", Draining: true},
		}},
		{"another node", func() (bool, error) { return s.Cordon(t.Context(), "pve3", "pve1", "") }, true, map[string]Cordon{
			"pve2": {Node: "pve2", Since: noon, By: "pve1", Reason: "memory", Draining: true},
			"pve3": {Node: "pve3", Since: noon, By: "pve1"},
		}},
		{"uncordon", func() (bool, error) { return s.Uncordon(t.Context(), "pve2") }, true, map[string]Cordon{
			"pve3": {Node: "pve3", Since: noon, By: "pve1"},
		}},
	} {
		changed, err := step.do()
		if err != nil || changed != step.changed {
			t.Errorf("%s: changed %v, %v", step.what, changed, err)
		}
		for who, store := range map[string]*Store{"here": s, "there": another(dir)} {
			if diff := cmp.Diff(step.want, cordons(t, store)); diff != "" {
				t.Errorf("%s, as seen %s (-want +got):\n%s", step.what, who, diff)
			}
		}
	}
	if _, ok := s.Of("pve2"); ok {
		t.Error("the cordon that was lifted is still known")
	}
	if c, ok := s.Of("pve3"); !ok || c.Why() != "cordoned" {
		t.Errorf("pve3: %v, %q", ok, c.Why())
	}
}

// TestHalfAFile: a file that is not whole is never taken for what it might say, and keeps VMs away.
func TestHalfAFile(t *testing.T) {
	dir, s := shared(t)
	if _, err := s.Cordon(t.Context(), "pve2", "pve1", ""); err != nil {
		t.Fatal(err)
	}
	nodes := filepath.Join(dir, "nodes")
	write(t, filepath.Join(nodes, "pve3.json.tmp-0123"), `{"v":1,"node":"pve3"}`)
	write(t, filepath.Join(nodes, "pve4.json"), `{"v":1,"node":"pve4","drai`)
	write(t, filepath.Join(nodes, "pve5.json"), `{"v":1,"node":"pve2","since":"2026-03-01T12:00:00Z"}`)
	write(t, filepath.Join(nodes, "README"), "")
	const torn = "the file of its cordon cannot be read, cordon or uncordon it anew"
	want := map[string]Cordon{
		"pve2": {Node: "pve2", Since: noon, By: "pve1"},
		"pve4": {Node: "pve4", Reason: torn},
		"pve5": {Node: "pve5", Reason: torn},
	}
	s = another(dir)
	if diff := cmp.Diff(want, cordons(t, s)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if changed, err := s.Cordon(t.Context(), "pve4", "pve1", "anew"); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if c, _ := s.Of("pve4"); c != (Cordon{Node: "pve4", Since: noon, By: "pve1", Reason: "anew"}) {
		t.Errorf("anew: %+v", c)
	}
	if changed, err := s.Uncordon(t.Context(), "pve5"); err != nil || !changed {
		t.Errorf("uncordon: %v, %v", changed, err)
	}
}

// TestLeftovers: what a crash left of an attempt goes with the next one, but not what another agent is writing.
func TestLeftovers(t *testing.T) {
	dir, s := shared(t)
	if _, err := s.Cordon(t.Context(), "pve2", "pve1", ""); err != nil {
		t.Fatal(err)
	}
	dead, alive := filepath.Join(dir, "nodes", "pve2.json.tmp-dead"), filepath.Join(dir, "nodes", "pve2.json.tmp-alive")
	write(t, dead, "")
	write(t, alive, "")
	if err := errors.Join(os.Chtimes(dead, noon, noon.Add(-2*time.Minute)), os.Chtimes(alive, noon, noon.Add(-time.Second))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Cordon(t.Context(), "pve2", "pve1", "more"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "nodes", "*.tmp-*"))
	if err != nil || len(left) != 1 || left[0] != alive {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWhatWasMoved(t *testing.T) {
	dir, s := shared(t)
	moved := []Moved{
		{VMID: 101, ID: "101-aaaaaaaa", Name: "web", From: "pve2", To: "pve1", Running: true, At: noon},
		{VMID: 100, ID: "100-bbbbbbbb", Name: "db", From: "pve2", To: "pve3", At: noon},
	}
	for _, want := range [][]Moved{nil, moved, moved[1:], nil} {
		if want != nil {
			if err := s.SetMoved("pve2", want); err != nil {
				t.Fatal(err)
			}
		}
		got, err := another(dir).Moved("pve2")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v, -want +got:\n%s", err, diff)
		}
		if c := cordons(t, another(dir)); len(c) != 0 {
			t.Errorf("taken for a cordon: %v", c)
		}
		if len(want) == 1 {
			if err := s.SetMoved("pve2", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, filepath.Join(dir, "nodes", "pve2.moved.json"), `{"v":1,"mov`)
	if _, err := s.Moved("pve2"); err == nil || !strings.Contains(err.Error(), "moved away from node pve2") {
		t.Errorf("half a file: %v", err)
	}
}

func TestNotMounted(t *testing.T) {
	s := New(Config{Dir: filepath.Join(t.TempDir(), "priv", "pve-rigaud")})
	_, err := s.Cordons(t.Context())
	_, cerr := s.Cordon(t.Context(), "pve2", "pve1", "")
	_, uerr := s.Uncordon(t.Context(), "pve2")
	_, merr := s.Moved("pve2")
	for what, err := range map[string]error{"read": err, "cordon": cerr, "uncordon": uerr, "moved": merr, "set moved": s.SetMoved("pve2", nil)} {
		if !errors.Is(err, ErrNotMounted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{"", "a/b", "pve2.moved", ".."} {
		if _, err := s.Cordon(t.Context(), name, "pve1", ""); err == nil {
			t.Errorf("node %q was taken", name)
		}
	}
}

// TestHangs reads a pmxcfs that does not answer: a file that is a pipe to which nobody writes.
func TestHangs(t *testing.T) {
	dir, s := shared(t)
	if _, err := s.Cordon(t.Context(), "pve2", "pve1", ""); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "nodes", "pve3.json")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := another(dir)
	if _, err := fresh.Cordons(t.Context()); !errors.Is(err, errSlow) {
		t.Errorf("nothing known: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fresh.Cordons(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller has gone: %v", err)
	}
	if c := cordons(t, s); len(c) != 1 || c["pve2"].By != "pve1" {
		t.Errorf("what was known: %v", c)
	}
	w, err := os.OpenFile(pipe, os.O_RDWR, 0) // which lets both readers go on
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	fresh.drain()
	s.drain()
}

func TestRunTellsOfChanges(t *testing.T) {
	dir, s := shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	changed := s.Changed()
	if _, err := another(dir).Drain(t.Context(), "pve1", "pve2", ""); err != nil {
		t.Fatal(err)
	}
	<-changed
	if c, ok := s.Of("pve1"); !ok || !c.Draining || c.Why() != "being drained" {
		t.Errorf("%v %+v", ok, c)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
