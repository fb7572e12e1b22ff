package qmp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Priority says who waits for a session.
type Priority int

const (
	// Background is for reads that nobody waits for: they give way to
	// everybody, and give up when a VM's monitor is in use.
	Background Priority = iota
	// User is for a user's request: it waits for its turn.
	User
)

// GateConfig bounds the sessions of one process. Zero fields take the value
// named at them.
type GateConfig struct {
	Node       int           // sessions at once, 8; a quarter of them is kept for users
	Interval   time.Duration // between the end of a session and the next background one of the same VM, 10 s
	Background Options       // BackgroundOptions()
	User       Options       // UserOptions()
}

func (c GateConfig) withDefaults() GateConfig {
	if c.Node <= 0 {
		c.Node = 8
	}
	if c.Interval <= 0 {
		c.Interval = 10 * time.Second
	}
	if c.Background == (Options{}) {
		c.Background = BackgroundOptions()
	}
	if c.User == (Options{}) {
		c.User = UserOptions()
	}
	return c
}

// Gate keeps the sessions of one process from being in the way of each other
// and of Proxmox VE: one per VM at a time, a bounded number per node, users
// before background, background reads of one VM far apart. VMs are told apart
// by the paths of their sockets.
type Gate struct {
	cfg GateConfig

	mu         sync.Mutex // guards all below
	targets    map[string]*target
	inUse      int
	background int // of inUse
	users      []*waiter
	others     []*waiter // background
	swept      time.Time // when targets was last rid of old entries
	stats      GateStats
}

// target is what the gate knows of one VM.
type target struct {
	busy    bool
	pending int       // waiters
	last    time.Time // end of the last session
}

// waiter is one call of Enter.
type waiter struct {
	path    string
	prio    Priority
	target  *target
	verdict chan error // capacity 1: nil lets it in
}

// GateStats counts since the start of the process.
type GateStats struct {
	Sessions    uint64        // opened, greeted
	Busy        uint64        // refused because the monitor was in use, here or elsewhere
	Gone        uint64        // nobody behind the socket
	TooSoon     uint64        // background reads refused by GateConfig.Interval
	TimedOut    uint64        // sessions that ended in a timeout
	Held        time.Duration // all sessions together, greeting to close
	LongestHold time.Duration // greeting to close
	InUse       int           // now
	Waiting     int           // now
}

// NewGate makes a gate.
func NewGate(cfg GateConfig) *Gate {
	return &Gate{cfg: cfg.withDefaults(), targets: map[string]*target{}}
}

// Do opens a session with the QMP socket at path as soon as it may, runs talk,
// and closes the session. A background call fails with ErrBusy when the VM is
// in use by this process, and with ErrTooSoon; a user's call waits until ctx
// ends. The session ends with ctx, and after Options.Hold of its priority.
func (g *Gate) Do(ctx context.Context, path string, prio Priority, talk func(*Session) error) error {
	leave, err := g.Enter(ctx, path, prio)
	if err != nil {
		return err
	}
	defer leave()
	held, err := g.session(ctx, path, prio, talk)
	g.count(held, err)
	return err
}

func (g *Gate) session(ctx context.Context, path string, prio Priority, talk func(*Session) error) (held time.Duration, err error) {
	opts := g.cfg.Background
	if prio == User {
		opts = g.cfg.User
	}
	s, err := Open(ctx, path, opts)
	if err != nil {
		return 0, err
	}
	defer func() {
		s.Close()
		held = max(s.Held(), 1)
	}()
	return 0, talk(s)
}

// count takes one session into the statistics; held is 0 when there was none.
func (g *Gate) count(held time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := &g.stats
	if held > 0 {
		st.Sessions++
		st.Held += held
		st.LongestHold = max(st.LongestHold, held)
	}
	switch {
	case errors.Is(err, ErrBusy):
		st.Busy++
	case errors.Is(err, ErrGone):
		st.Gone++
	case errors.Is(err, ErrTimeout):
		st.TimedOut++
	}
}

// Enter waits for the turn of one conversation at path, which may be another
// socket than QMP (the guest agent's), and returns what ends it. It follows
// the rules of Do.
func (g *Gate) Enter(ctx context.Context, path string, prio Priority) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, &OpError{Op: "wait", Path: path, Err: err}
	}
	w, err := g.queue(path, prio)
	if err != nil {
		return nil, &OpError{Op: "wait", Path: path, Err: err}
	}
	select {
	case err = <-w.verdict:
	case <-ctx.Done():
		err = g.withdraw(w, ctx.Err())
	}
	if err != nil {
		return nil, &OpError{Op: "wait", Path: path, Err: err}
	}
	return sync.OnceFunc(func() { g.leave(w) }), nil
}

// Stats tells what the gate has seen.
func (g *Gate) Stats() GateStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := g.stats
	st.InUse, st.Waiting = g.inUse, len(g.users)+len(g.others)
	return st
}

func (g *Gate) queue(path string, prio Priority) (*waiter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lockedSweep()
	t := g.targets[path]
	if t == nil {
		t = &target{}
		g.targets[path] = t
	}
	if prio != User {
		if err := g.lockedBackgroundMay(t, t.pending); err != nil {
			return nil, err
		}
	}
	w := &waiter{path: path, prio: prio, target: t, verdict: make(chan error, 1)}
	t.pending++
	if prio == User {
		g.users = append(g.users, w)
	} else {
		g.others = append(g.others, w)
	}
	g.lockedAdmit()
	return w, nil
}

// lockedBackgroundMay refuses a background session while others want the VM.
func (g *Gate) lockedBackgroundMay(t *target, others int) error {
	if t.busy || others > 0 {
		g.stats.Busy++
		return fmt.Errorf("%w: by this process", ErrBusy)
	}
	if !t.last.IsZero() && time.Since(t.last) < g.cfg.Interval {
		g.stats.TooSoon++
		return ErrTooSoon
	}
	return nil
}

// lockedAdmit lets in whoever may: users in order of arrival unless their VM
// is in use, then background.
func (g *Gate) lockedAdmit() {
	g.users = slices.DeleteFunc(g.users, func(w *waiter) bool {
		if g.inUse >= g.cfg.Node || w.target.busy {
			return false
		}
		g.lockedLetIn(w)
		return true
	})
	g.others = slices.DeleteFunc(g.others, func(w *waiter) bool {
		if g.inUse >= g.cfg.Node || g.background >= g.cfg.Node-g.cfg.Node/4 {
			return false
		}
		if err := g.lockedBackgroundMay(w.target, w.target.pending-1); err != nil {
			w.target.pending--
			w.verdict <- err
			return true
		}
		g.lockedLetIn(w)
		return true
	})
}

func (g *Gate) lockedLetIn(w *waiter) {
	w.target.pending--
	w.target.busy = true
	g.inUse++
	if w.prio != User {
		g.background++
	}
	w.verdict <- nil
}

// withdraw ends the wait of w, or gives back the turn that it got meanwhile.
func (g *Gate) withdraw(w *waiter, cause error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case err := <-w.verdict:
		if err == nil {
			g.lockedLeave(w)
		}
		return cause
	default:
	}
	w.target.pending--
	same := func(other *waiter) bool { return other == w }
	g.users = slices.DeleteFunc(g.users, same)
	g.others = slices.DeleteFunc(g.others, same)
	g.lockedAdmit() // a background read may have stood behind us
	return cause
}

func (g *Gate) leave(w *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.target.last = time.Now()
	g.lockedLeave(w)
}

func (g *Gate) lockedLeave(w *waiter) {
	w.target.busy = false
	g.inUse--
	if w.prio != User {
		g.background--
	}
	g.lockedAdmit()
}

// lockedSweep forgets VMs whose interval is over, once per interval.
func (g *Gate) lockedSweep() {
	now := time.Now()
	if now.Sub(g.swept) < g.cfg.Interval {
		return
	}
	g.swept = now
	for path, t := range g.targets {
		if !t.busy && t.pending == 0 && now.Sub(t.last) >= g.cfg.Interval {
			delete(g.targets, path)
		}
	}
}
