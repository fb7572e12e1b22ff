package pmxcfs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultInterval    = time.Second
	defaultMaxAge      = 5 * time.Second
	defaultReadTimeout = 2 * time.Second
	// drainTime is how long Run waits at its end for reads that may hang.
	drainTime = time.Second
	// parallel is how many configs are read at once.
	parallel = 8
)

// errUnread is why there is no World before the first reading.
var errUnread = errors.New("not read yet")

// WatchConfig says what a Watcher watches.
type WatchConfig struct {
	Tree        *Tree
	Node        string        // the node we are on
	Interval    time.Duration // between two looks at .version; default 1 s
	MaxAge      time.Duration // World is an error when the last good reading is older; default 5 s
	ReadTimeout time.Duration // a single read that takes longer is given up; default 2 s
	Log         *slog.Logger  // default: discard
}

// Watcher keeps a World: it looks at .version and .members every Interval and re-reads what changed. Its methods may be
// called before and while Run runs, from many goroutines; even if the tree hangs, none blocks longer than its context
// allows, and a single look at the tree at most twice ReadTimeout.
type Watcher struct {
	cfg   WatchConfig
	base  time.Time // of VM.provenAt
	reads reads
	ready chan struct{}

	world   atomic.Pointer[World]
	failure atomic.Pointer[error] // of the latest reading; nil if it was good
	started atomic.Uint64         // readings begun

	turn   chan struct{} // a mutex one can wait for with a context: lock, unlock; guards what follows
	last   Version       // as of the latest good reading
	gaps   absence
	result error // of the latest reading
	gaveUp bool  // the latest reading ended because its caller's context did

	subs subscribers
}

// NewWatcher makes a Watcher. Nothing is read before Run, Refresh or Locate.
func NewWatcher(cfg WatchConfig) *Watcher {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = defaultMaxAge
	}
	if cfg.ReadTimeout <= 0 {
		cfg.ReadTimeout = defaultReadTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		cfg:   cfg,
		base:  time.Now().Add(-time.Hour), // so that no time on this clock is 0
		reads: reads{limit: cfg.ReadTimeout},
		ready: make(chan struct{}),
		turn:  make(chan struct{}, 1),
	}
}

// String names the task.
func (w *Watcher) String() string { return "pmxcfs watcher" }

// Ready is closed after the first good reading.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Run polls until ctx is done and returns nil. An unreadable tree is no reason to end: World says so meanwhile, and a
// tree that is mounted (again) is picked up. At the end Run waits for reads under way, but at most 1 s: a read of a hung
// FUSE mount cannot be ended by anyone but its server.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.reads.drain(drainTime)
	tick := time.NewTicker(w.cfg.Interval)
	defer tick.Stop()
	for {
		if err := w.Refresh(ctx); err != nil && ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// World is the latest picture of the cluster; a *StaleError if the last good reading is older than MaxAge.
func (w *Watcher) World() (*World, error) {
	world := w.world.Load()
	if world != nil && time.Since(world.ReadAt) <= w.cfg.MaxAge {
		return world, nil
	}
	return nil, w.stale(world)
}

// Latest is the latest picture of the cluster, however old, with the error that World gives. It is nil before the first
// good reading. It is for showing, with its age, and not for deciding.
func (w *Watcher) Latest() (*World, error) {
	world, err := w.World()
	if err != nil {
		world = w.world.Load()
	}
	return world, err
}

func (w *Watcher) stale(world *World) error {
	e := &StaleError{Root: w.cfg.Tree.Root(), Age: "never", Err: errUnread}
	if world != nil {
		e.Age = time.Since(world.ReadAt).Round(time.Millisecond).String() + " ago"
	}
	if p := w.failure.Load(); p != nil {
		e.Err = *p
	}
	return e
}

// Refresh reads now and returns when a reading that began after the call is done, as after a change of our own.
func (w *Watcher) Refresh(ctx context.Context) error {
	arrived := w.started.Load()
	if err := w.lock(ctx); err != nil {
		return err
	}
	defer w.unlock()
	if w.started.Load() > arrived && !w.gaveUp {
		return w.result // of someone else's reading that began after our call
	}
	w.started.Add(1)
	w.result = w.lockedRead(ctx)
	w.gaveUp = ctx.Err() != nil
	w.lockedReport(ctx)
	return w.result
}

// lockedReport records how a reading ended. One that its caller gave up says nothing about the tree.
func (w *Watcher) lockedReport(ctx context.Context) {
	was, err := w.failure.Load(), w.result
	switch {
	case err == nil:
		w.failure.Store(nil)
		if was != nil {
			w.cfg.Log.InfoContext(ctx, "pmxcfs is readable again", "root", w.cfg.Tree.Root())
		}
	case w.gaveUp:
	default:
		w.failure.Store(&err)
		if was == nil {
			w.cfg.Log.WarnContext(ctx, "pmxcfs is not readable", "error", err)
		}
	}
}

func (w *Watcher) lock(ctx context.Context) error {
	select {
	case w.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &HangError{Path: w.cfg.Tree.Root(), Err: context.Cause(ctx)}
	}
}

func (w *Watcher) unlock() { <-w.turn }

// now is the time on the clock of VM.provenAt.
func (w *Watcher) now() int64 { return int64(time.Since(w.base)) }

// subscribers are told what changed.
type subscribers struct {
	mu      sync.Mutex // guards what follows
	all     map[*Subscription]struct{}
	changed chan struct{} // closed and replaced on every change; nil if nobody waits
}

// Subscription collects the VMIDs of guests that changed: new, removed, moved, or with another config.
type Subscription struct {
	w   *Watcher
	c   chan struct{}
	mu  sync.Mutex // guards ids
	ids map[int]struct{}
}

// Subscribe starts to collect changes. To miss nothing, subscribe first and call World then.
func (w *Watcher) Subscribe() *Subscription {
	s := &Subscription{w: w, c: make(chan struct{}, 1), ids: make(map[int]struct{})}
	w.subs.mu.Lock()
	defer w.subs.mu.Unlock()
	if w.subs.all == nil {
		w.subs.all = make(map[*Subscription]struct{})
	}
	w.subs.all[s] = struct{}{}
	return s
}

// C receives when there is something to Take.
func (s *Subscription) C() <-chan struct{} { return s.c }

// Take returns the VMIDs that changed since the last Take, in no order.
func (s *Subscription) Take() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]int, 0, len(s.ids))
	for id := range s.ids {
		ids = append(ids, id)
	}
	clear(s.ids)
	return ids
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.w.subs.mu.Lock()
	defer s.w.subs.mu.Unlock()
	delete(s.w.subs.all, s)
}

func (s *Subscription) add(ids []int) {
	s.mu.Lock()
	for _, id := range ids {
		s.ids[id] = struct{}{}
	}
	s.mu.Unlock()
	select {
	case s.c <- struct{}{}:
	default: // told already
	}
}

// Changed returns a channel that is closed at the next change of the World: guests, nodes, quorum, storages, HA or pools. To wait
// for something, call it before looking at World.
func (w *Watcher) Changed() <-chan struct{} {
	w.subs.mu.Lock()
	defer w.subs.mu.Unlock()
	if w.subs.changed == nil {
		w.subs.changed = make(chan struct{})
	}
	return w.subs.changed
}

// tell passes a change on; ids are the guests that changed.
func (s *subscribers) tell(ids []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	if len(ids) == 0 {
		return
	}
	for sub := range s.all {
		sub.add(ids)
	}
}
