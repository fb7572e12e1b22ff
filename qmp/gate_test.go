package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// enter waits for a turn that must come.
func enter(t *testing.T, g *qmp.Gate, path string, prio qmp.Priority) (leave func()) {
	t.Helper()
	leave, err := g.Enter(t.Context(), path, prio)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

// queueUp asks for a turn in a goroutine, which notes its name when the turn
// comes and leaves at once. It returns when the goroutine waits, or is through.
func queueUp(t *testing.T, g *qmp.Gate, path string, prio qmp.Priority, name string, order *notes) {
	t.Helper()
	go func() {
		leave, err := g.Enter(t.Context(), path, prio)
		if err != nil {
			order.add(name + ": " + errors.Unwrap(err).Error())
			return
		}
		order.add(name)
		leave()
	}()
	synctest.Wait()
}

type notes struct {
	mu   sync.Mutex // guards list
	list []string
}

func (n *notes) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, s)
}

func TestGateServesOnePerVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{})
		leave := enter(t, g, "a", qmp.User)
		var order notes
		queueUp(t, g, "a", qmp.User, "first", &order)
		queueUp(t, g, "a", qmp.User, "second", &order)
		queueUp(t, g, "a", qmp.Background, "background", &order)
		queueUp(t, g, "b", qmp.User, "other VM", &order)
		leave()
		leave() // harmless
		synctest.Wait()
		want := []string{"background: monitor is in use by another client: by this process", "other VM", "first", "second"}
		if !slices.Equal(order.list, want) {
			t.Errorf("got %q, want %q", order.list, want)
		}
		if st := g.Stats(); st.InUse != 0 || st.Waiting != 0 || st.Busy != 1 {
			t.Errorf("at the end %+v", st)
		}
	})
}

func TestGateServesUsersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Node: 1})
		leave := enter(t, g, "a", qmp.User)
		var order notes
		queueUp(t, g, "b", qmp.Background, "background", &order)
		queueUp(t, g, "c", qmp.User, "user", &order)
		leave()
		synctest.Wait()
		if want := []string{"user", "background"}; !slices.Equal(order.list, want) {
			t.Errorf("got %q, want %q", order.list, want)
		}
	})
}

// TestGateBackgroundGivesWay: a user waits for a place on the node, and a
// background read of the same VM does not queue behind.
func TestGateBackgroundGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Node: 1})
		leave := enter(t, g, "a", qmp.User)
		var order notes
		queueUp(t, g, "b", qmp.User, "user", &order)
		if _, err := g.Enter(t.Context(), "b", qmp.Background); !errors.Is(err, qmp.ErrBusy) {
			t.Errorf("%v, want busy", err)
		}
		leave()
		synctest.Wait()
	})
}

func TestGateKeepsRoomForUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Node: 8})
		var leave []func()
		for i := range 6 {
			leave = append(leave, enter(t, g, fmt.Sprint("background", i), qmp.Background))
		}
		var order notes
		queueUp(t, g, "x", qmp.Background, "seventh background", &order)
		if len(order.list) > 0 {
			t.Errorf("all places but one are taken by background sessions")
		}
		for i := range 2 {
			leave = append(leave, enter(t, g, fmt.Sprint("user", i), qmp.User))
		}
		queueUp(t, g, "y", qmp.User, "ninth", &order)
		if st := g.Stats(); st.InUse != 8 || st.Waiting != 2 || len(order.list) > 0 {
			t.Errorf("%+v, served %q; want 8 in use and 2 waiting", st, order.list)
		}
		for _, f := range leave {
			f()
		}
		synctest.Wait()
		if len(order.list) != 2 {
			t.Errorf("served at the end: %q", order.list)
		}
	})
}

func TestGateSpacesBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Interval: 10 * time.Second})
		enter(t, g, "a", qmp.User)() // a user's session counts, too
		time.Sleep(9 * time.Second)
		if _, err := g.Enter(t.Context(), "a", qmp.Background); !errors.Is(err, qmp.ErrTooSoon) {
			t.Errorf("9 s after a session: %v, want too soon", err)
		}
		enter(t, g, "b", qmp.Background)()
		time.Sleep(time.Second)
		enter(t, g, "a", qmp.Background)()
		enter(t, g, "a", qmp.User)()
		if st := g.Stats(); st.TooSoon != 1 {
			t.Errorf("%+v, want 1 too soon", st)
		}
	})
}

func TestGateWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Node: 1})
		leave := enter(t, g, "a", qmp.User)
		for _, prio := range []qmp.Priority{qmp.User, qmp.Background} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := g.Enter(ctx, "b", prio); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("priority %d: %v, want the context's end", prio, err)
			}
			if _, err := g.Enter(ctx, "b", prio); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("priority %d: %v, want nothing to begin in an ended context", prio, err)
			}
			cancel()
		}
		leave()
		enter(t, g, "b", qmp.Background)()
		if st := g.Stats(); st.InUse != 0 || st.Waiting != 0 {
			t.Errorf("at the end %+v", st)
		}
	})
}

func TestGateTurnComesTooLate(t *testing.T) {
	g := qmp.NewGate(qmp.GateConfig{})
	if err := g.LetInAndWithdraw("a", context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	if st := g.Stats(); st.InUse != 0 || st.Waiting != 0 {
		t.Errorf("the turn was not given back: %+v", st)
	}
	enter(t, g, "a", qmp.User)()
}

// TestGateStorm has turns come and contexts end at the same moments.
func TestGateStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Node: 3, Interval: time.Millisecond})
		var mu sync.Mutex
		using := map[string]int{}
		var work sync.WaitGroup
		for i := range 400 {
			work.Go(func() {
				path, prio := fmt.Sprint(i%5), qmp.Priority(i%2)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%17)*time.Millisecond)
				defer cancel()
				leave, err := g.Enter(ctx, path, prio)
				if err != nil {
					return
				}
				mu.Lock()
				using[path]++
				if using[path] > 1 || len(using) > 3 {
					t.Errorf("in use: %v", using)
				}
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				delete(using, path)
				mu.Unlock()
				leave()
			})
		}
		work.Wait()
		if st := g.Stats(); st.InUse != 0 || st.Waiting != 0 {
			t.Errorf("at the end %+v", st)
		}
		for i := range 5 {
			enter(t, g, fmt.Sprint(i), qmp.User)()
		}
	})
}

func TestGateCounts(t *testing.T) {
	dir := shortDir(t)
	q := newQEMU(t, qmptest.Config{Dir: dir, VMID: 100})
	g := qmp.NewGate(qmp.GateConfig{User: qmp.Options{Greeting: time.Second, Command: time.Second, Hold: time.Minute}})
	ask := func(s *qmp.Session) error { return s.Execute(t.Context(), "query-status", nil, nil) }

	if err := g.Do(t.Context(), q.QMPPath(), qmp.User, ask); err != nil {
		t.Error(err)
	}
	mine := errors.New("my own")
	if err := g.Do(t.Context(), q.QMPPath(), qmp.User, func(*qmp.Session) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("%v, want the function's error", err)
	}
	err := g.Do(t.Context(), q.QMPPath(), qmp.User, func(s *qmp.Session) error { q.SetHung(true); return ask(s) })
	if !errors.Is(err, qmp.ErrTimeout) {
		t.Errorf("hung: %v", err)
	}
	if err := g.Do(t.Context(), q.QMPPath(), qmp.User, ask); !errors.Is(err, qmp.ErrBusy) {
		t.Errorf("still hung: %v", err)
	}
	q.Kill()
	if err := g.Do(t.Context(), q.QMPPath(), qmp.User, ask); !errors.Is(err, qmp.ErrGone) {
		t.Errorf("killed: %v", err)
	}
	st := g.Stats()
	if st.Sessions != 3 || st.Busy != 1 || st.Gone != 1 || st.TimedOut != 1 || st.LongestHold <= 0 || st.Held < st.LongestHold {
		t.Errorf("%+v, want 3 sessions, 1 busy, 1 gone, 1 timed out", st)
	}
}

// TestGateLeavesNoTrail has many VMs come and go.
func TestGateLeavesNoTrail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := qmp.NewGate(qmp.GateConfig{Interval: time.Second})
		for i := range 10000 {
			enter(t, g, fmt.Sprint(i), qmp.User)()
			time.Sleep(time.Millisecond)
		}
		if n := g.Targets(); n > 2100 {
			t.Errorf("%d VMs are remembered", n)
		}
	})
}
