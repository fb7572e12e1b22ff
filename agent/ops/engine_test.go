package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is an engine with its journal, running.
type node struct {
	*Engine
	journal *Journal
	stop    func()
}

func start(t *testing.T, path string, handlers map[Kind]Handler, hook func(Moment, Event)) *node {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	e := New(Config{Journal: j, Log: slog.New(slog.DiscardHandler), Hook: hook})
	for k, h := range handlers {
		e.Handle(k, h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	n := &node{Engine: e, journal: j}
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("engine: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(n.stop)
	select {
	case <-e.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("engine ended before it was ready: %v", err)
	}
	return n
}

func ask(key string) Ask {
	return Ask{Kind: Create, Key: key, Subject: Subject{Name: key}, Params: map[string]int{"n": 1}}
}

// effects is the world that handlers change; it outlives engines.
type effects struct {
	mu   sync.Mutex
	done []string
}

func (w *effects) add(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, s)
}

// threeSteps does its work as a careful handler does: a step begun in an earlier life is looked up before a repeat.
func (w *effects) threeSteps(ctx context.Context, r *Run) error {
	for _, name := range []string{"one", "two", "three"} {
		err := r.Step(ctx, name, func(_ context.Context, s *StepRun) error {
			w.mu.Lock()
			there := slices.Contains(w.done, name)
			w.mu.Unlock()
			if there && !s.Again {
				return fmt.Errorf("step %s is done but was not marked as begun", name)
			}
			if !there {
				w.add(name)
			}
			return s.Task("UPID:" + name)
		})
		if err != nil {
			return err
		}
	}
	return r.Note(map[string]bool{"all": true}, Subject{Name: "web", ID: "100-deadbeef"})
}

func TestOperationRunsItsStepsAndIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib", "journal.db")
	w := &effects{}
	n := start(t, path, map[Kind]Handler{Create: w.threeSteps}, nil)
	h, joined, err := n.Start(t.Context(), ask("web"))
	if err != nil || joined {
		t.Fatalf("start: joined %v, err %v", joined, err)
	}
	op, err := h.Wait(t.Context(), nil)
	if err != nil || op.State != Done || op.Err() != nil {
		t.Fatalf("got %+v, err %v", op, err)
	}
	n.stop()

	n = start(t, path, nil, nil)
	op, ok, err := n.Op(op.ID)
	if err != nil || !ok || op.State != Done || op.Subject.ID != "100-deadbeef" || len(op.Steps) != 3 || op.Steps[1].UPID != "UPID:two" {
		t.Fatalf("after a restart: %+v, ok %v, err %v", op, ok, err)
	}
	var whats []string
	if err := n.journal.Events(0, func(ev Event) bool { whats = append(whats, string(ev.What)+ev.Step); return true }); err != nil {
		t.Fatal(err)
	}
	want := "asked beginone taskone endone begintwo tasktwo endtwo beginthree taskthree endthree note succeeded"
	if got := strings.Join(whats, " "); got != want {
		t.Errorf("events\n got %s\nwant %s", got, want)
	}
	if _, ok, err := n.Op("nobody"); ok || err != nil {
		t.Errorf("an unknown operation: ok %v, err %v", ok, err)
	}
}

// TestCrashAtEveryWrite keeps the file as it is on the disk right before and right after each write of the journal
// and resumes from each of these: every step's effect must be there exactly once.
func TestCrashAtEveryWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.db")
	type crash struct {
		file string
		at   string
		done []string
	}
	var crashes []crash
	w := &effects{}
	hook := func(m Moment, ev Event) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			return
		}
		c := crash{file: filepath.Join(dir, fmt.Sprintf("crash-%d.db", len(crashes))), at: fmt.Sprintf("%s %s %s", m, ev.What, ev.Step)}
		w.mu.Lock()
		c.done = slices.Clone(w.done)
		w.mu.Unlock()
		if err := os.WriteFile(c.file, b, 0o600); err != nil {
			t.Error(err)
		}
		crashes = append(crashes, c)
	}
	n := start(t, path, map[Kind]Handler{Create: w.threeSteps}, hook)
	h, _, err := n.Start(t.Context(), ask("web"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if len(crashes) != 24 {
		t.Fatalf("%d moments, want 24: two for each of 12 writes", len(crashes))
	}
	for _, c := range crashes[1:] { // before the first write nobody was promised anything
		t.Run(c.at, func(t *testing.T) {
			w := &effects{done: c.done}
			n := start(t, c.file, map[Kind]Handler{Create: w.threeSteps}, nil)
			if h := n.Find("web"); h != nil {
				if op, err := h.Wait(t.Context(), nil); err != nil || op.State != Done {
					t.Fatalf("resumed operation: %+v, err %v", op, err)
				}
			}
			if got := strings.Join(w.done, " "); got != "one two three" {
				t.Errorf("effects %q, want each step once", got)
			}
			if a := n.Active(); len(a) != 0 {
				t.Errorf("still active: %+v", a)
			}
		})
	}
}

func TestSameKeyJoins(t *testing.T) {
	release := make(chan struct{})
	n := start(t, filepath.Join(t.TempDir(), "j.db"), map[Kind]Handler{
		Create: func(ctx context.Context, _ *Run) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}, nil)
	first, _, err := n.Start(t.Context(), ask("web"))
	if err != nil {
		t.Fatal(err)
	}
	second, joined, err := n.Start(t.Context(), ask("web"))
	if err != nil || !joined || second.Op().ID != first.Op().ID {
		t.Errorf("joined %v, err %v, ids %s and %s", joined, err, second.Op().ID, first.Op().ID)
	}
	other, joined, err := n.Start(t.Context(), ask("db"))
	if err != nil || joined || other.Op().ID == first.Op().ID {
		t.Errorf("another key joined: %v, err %v", joined, err)
	}
	close(release)
	if op, err := second.Wait(t.Context(), nil); err != nil || op.State != Done {
		t.Errorf("joined operation: %+v, err %v", op, err)
	}
}

func TestFailureKeepsItsReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	n := start(t, path, map[Kind]Handler{
		Create: func(context.Context, *Run) error { return fault.New(fault.Exhausted, "storage %q is full", "local") },
		Power:  func(context.Context, *Run) error { panic("boom") },
	}, nil)
	h, _, err := n.Start(t.Context(), ask("web"))
	if err != nil {
		t.Fatal(err)
	}
	op, err := h.Wait(t.Context(), nil)
	if err != nil || op.State != Failed || !fault.Is(op.Err(), fault.Exhausted) || op.Err().Error() != `storage "local" is full` {
		t.Errorf("got %+v, err %v", op.Err(), err)
	}
	first, err := n.Report(op.ID)
	if err != nil || first.IsZero() {
		t.Fatalf("report: %v, err %v", first, err)
	}
	if again, err := n.Report(op.ID); err != nil || !again.Equal(first) {
		t.Errorf("the second report moved the first: %v, err %v", again, err)
	}
	h, _, err = n.Start(t.Context(), Ask{Kind: Power, Key: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if op, err = h.Wait(t.Context(), nil); err != nil || !fault.Is(op.Err(), fault.Internal) || !strings.Contains(op.Err().Error(), "boom") {
		t.Errorf("a panic became %v, err %v", op.Err(), err)
	}
	h, _, err = n.Start(t.Context(), Ask{Kind: "unheard-of", Key: "u"})
	if err != nil {
		t.Fatal(err)
	}
	if op, err = h.Wait(t.Context(), nil); err != nil || op.State != Failed {
		t.Errorf("an unknown kind ended as %+v, err %v", op, err)
	}
}

func TestStoppingLeavesTheOperationForTheNextStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	began := make(chan struct{}, 2)
	n := start(t, path, map[Kind]Handler{Create: func(ctx context.Context, r *Run) error {
		return r.Step(ctx, "wait", func(ctx context.Context, _ *StepRun) error {
			began <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
	}}, nil)
	h, _, err := n.Start(t.Context(), ask("web"))
	if err != nil {
		t.Fatal(err)
	}
	<-began
	n.stop()
	if _, err := h.Wait(t.Context(), nil); !errors.Is(err, ErrStopping) {
		t.Errorf("waiting across the stop: %v, want ErrStopping", err)
	}
	if _, _, err := n.Start(t.Context(), ask("db")); !errors.Is(err, ErrStopping) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("asking after the stop: %v", err)
	}
	n = start(t, path, map[Kind]Handler{Create: func(ctx context.Context, r *Run) error {
		return r.Step(ctx, "wait", func(_ context.Context, s *StepRun) error {
			if !s.Again {
				return errors.New("not marked as begun")
			}
			began <- struct{}{}
			return nil
		})
	}}, nil)
	<-began
	if h := n.Find("web"); h != nil {
		if op, err := h.Wait(t.Context(), nil); err != nil || op.State != Done {
			t.Errorf("resumed: %+v, err %v", op, err)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	start(t, path, nil, nil)
	if _, err := OpenJournal(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestPruneForgetsOnlyWhatIsOverAndOld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	w := &effects{}
	block := make(chan struct{})
	n := start(t, path, map[Kind]Handler{Create: w.threeSteps, Power: func(ctx context.Context, _ *Run) error {
		select {
		case <-block:
		case <-ctx.Done():
		}
		return ctx.Err()
	}}, nil)
	h, _, err := n.Start(t.Context(), ask("web"))
	if err != nil {
		t.Fatal(err)
	}
	op, err := h.Wait(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	running, _, err := n.Start(t.Context(), Ask{Kind: Power, Key: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := n.journal.Prune(t.Context(), time.Now().Add(-time.Hour)); err != nil || removed != 0 {
		t.Errorf("pruned %d young operations, err %v", removed, err)
	}
	if removed, err := n.journal.Prune(t.Context(), time.Now().Add(time.Hour)); err != nil || removed != 1 {
		t.Errorf("pruned %d, err %v, want the one that ended", removed, err)
	}
	if _, ok, err := n.journal.Op(op.ID); ok || err != nil {
		t.Errorf("the old operation is still there: %v, err %v", ok, err)
	}
	if _, ok, err := n.Op(running.Op().ID); !ok || err != nil {
		t.Errorf("the running operation is gone: err %v", err)
	}
	close(block)
}

func TestRetry(t *testing.T) {
	busy := errors.New("busy")
	worth := func(err error) bool { return errors.Is(err, busy) }
	synctest.Test(t, func(t *testing.T) {
		calls, begin := 0, time.Now()
		err := Retry(t.Context(), worth, func(context.Context) error {
			if calls++; calls < 4 {
				return busy
			}
			return nil
		})
		if err != nil || calls != 4 || time.Since(begin) != 700*time.Millisecond {
			t.Errorf("calls %d, err %v, after %v; want 4 within 100+200+400 ms", calls, err, time.Since(begin))
		}
		fatal := errors.New("fatal")
		if err := Retry(t.Context(), worth, func(context.Context) error { return fatal }); !errors.Is(err, fatal) {
			t.Errorf("got %v, want the error that is not worth a repeat", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = Retry(ctx, worth, func(context.Context) error { return busy })
		if !errors.Is(err, busy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the last error and why it ended", err)
		}
	})
}

func TestRefRoundTrip(t *testing.T) {
	for _, r := range []Ref{
		{Kind: Create, Node: "pve1", Subject: "10000-1a2b3c4d", Op: "0199"},
		{Kind: ImagePrepare, Node: "pve/1", Subject: "ubuntu 22%/x", Op: "o"},
	} {
		got, err := ParseRef(r.String())
		if err != nil || got != r {
			t.Errorf("%q came back as %+v, err %v", r, got, err)
		}
	}
	for _, s := range []string{"", "abc", "a/b/c", "a/b/c/d/e", "a//c/d", "%zz/b/c/d", "UPID:pve1:0:0:0:qmstart:100:x:"} {
		if _, err := ParseRef(s); !errors.Is(err, ErrMalformedRef) {
			t.Errorf("%q: got %v, want ErrMalformedRef", s, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("create/pve1/10000-1a2b3c4d/0199")
	f.Add("%/a/b/%2F")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if again, err := ParseRef(r.String()); err != nil || again != r {
			t.Errorf("%q -> %+v -> %q -> %+v, err %v", s, r, r, again, err)
		}
	})
}
