package guest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
)

// engine runs an engine of operations on a journal until stop is called.
func engine(t *testing.T, path string, handlers map[ops.Kind]ops.Handler, hook func(ops.Moment, ops.Event)) (e *ops.Engine, stop func()) {
	t.Helper()
	j, err := ops.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	e = ops.New(ops.Config{Journal: j, Log: slog.New(slog.DiscardHandler), Hook: hook})
	for k, h := range handlers {
		e.Handle(k, h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.Ready()
	return e, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
}

// failing starts one operation of each kind, all of which fail, and returns their references.
func failing(t *testing.T, g *Guests, e *ops.Engine, kinds ...ops.Kind) map[ops.Kind]string {
	t.Helper()
	refs := map[ops.Kind]string{}
	for _, k := range kinds {
		h, _, err := e.Start(t.Context(), ops.Ask{Kind: k, Key: string(k), Subject: ops.Subject{ID: "10000-0123abcd"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Wait(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		refs[k] = g.Task(h.Op())
	}
	return refs
}

var everyKind = []ops.Kind{
	ops.Create, ops.Delete, ops.Power, ops.Reconfigure, ops.Clone, ops.SnapshotCreate, ops.SnapshotDelete, ops.SnapshotRevert,
	ops.ImagePrepare, ops.ExportDisk, ops.ImportDisk,
}

// TestAFailureIsToldAsLongAsTheManagerNeedsIt: its VM controller polls a failed task for ever until it hears done
// without an error; its other controllers take the first answer for the last, and done without an error for success.
func TestAFailureIsToldAsLongAsTheManagerNeedsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handlers := map[ops.Kind]ops.Handler{}
		for _, k := range everyKind {
			handlers[k] = func(context.Context, *ops.Run) error { return fault.New(fault.Precondition, "something odd") }
		}
		path := filepath.Join(t.TempDir(), "journal.db")
		e, stop := engine(t, path, handlers, nil)
		g := &Guests{cfg: Config{Node: "pve1", Ops: e}}
		refs := failing(t, g, e, everyKind...)
		const told, over, hidden = "done, something odd", "done, ", "not done, "
		expect := func(when string, vm string) {
			t.Helper()
			for k, ref := range refs {
				done, failure, err := g.TaskStatus(t.Context(), ref)
				got := map[bool]string{true: "done, ", false: "not done, "}[done] + failure
				want := told
				switch k {
				case ops.Create, ops.Delete, ops.Power, ops.Reconfigure:
					want = vm
				case ops.ImagePrepare:
					want = hidden
				}
				if err != nil || got != want {
					t.Errorf("%s: %s: %q, err %v, want %q", when, k, got, err, want)
				}
			}
		}
		time.Sleep(time.Hour) // nobody has asked yet
		expect("at the first poll", told)
		time.Sleep(29 * time.Second)
		expect("29 s after it", told)
		stop()
		e, stop = engine(t, path, handlers, nil)
		defer stop()
		g.cfg.Ops = e
		expect("after a restart", told)
		time.Sleep(time.Second)
		expect("30 s after it", over)
		time.Sleep(24 * time.Hour)
		expect("a day after it", over)
	})
}

func TestTaskStatusOfWhatGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		e, stop := engine(t, filepath.Join(t.TempDir(), "journal.db"), map[ops.Kind]ops.Handler{
			ops.Create: func(context.Context, *ops.Run) error { <-release; return nil },
		}, nil)
		defer stop()
		g := &Guests{cfg: Config{Node: "pve1", Ops: e}}
		h, _, err := e.Start(t.Context(), ops.Ask{Kind: ops.Create, Key: "x", Subject: ops.Subject{Name: "web-01"}})
		if err != nil {
			t.Fatal(err)
		}
		ref := g.Task(h.Op())
		expect := func(want bool) {
			t.Helper()
			if done, failure, err := g.TaskStatus(t.Context(), ref); done != want || failure != "" || err != nil {
				t.Errorf("%s: done %v, failure %q, err %v, want done %v", ref, done, failure, err, want)
			}
		}
		expect(false)
		close(release)
		synctest.Wait()
		expect(true)
	})
}

func TestTaskStatusOfAMalformedReference(t *testing.T) {
	g := &Guests{}
	for _, ref := range []string{"", "create", "create/pve1/10000", "a/b/c/d/e", "create/pve1//x", "create/pve1/%/x"} {
		if _, _, err := g.TaskStatus(t.Context(), ref); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
