package cordon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	// interval is how often Run reads, and how old an answer may be at most when it does not run.
	interval = time.Second
	// patience is how long a caller waits for a reading when the one there is has become too old.
	patience = 300 * time.Millisecond
	// maxAge is how old a reading may be to be answered from all the same, while no other comes back.
	maxAge = 30 * time.Second
	// endTime is how long Run waits at its end for a reading that may hang.
	endTime = time.Second
)

// errSlow is why there is no answer while the first reading hangs.
var errSlow = errors.New("no answer from pmxcfs")

// Config says where the files are.
type Config struct {
	// Dir is <pmxcfs>/priv/pve-rigaud. It is created when first needed; the directory above it must exist.
	Dir string
	// Interval is how often Run reads; default 1 s.
	Interval time.Duration
	Now      func() time.Time // whose times are written; default time.Now
	Log      *slog.Logger     // default: discard
}

// Store is the cordons of the cluster, as this node sees them. It is safe for concurrent use, in several processes and
// on several nodes. Its Run keeps what is known young; the rest works without it.
type Store struct {
	dir      folder
	interval time.Duration
	now      func() time.Time
	log      *slog.Logger
	ready    chan struct{}

	writing sync.Mutex // held while a cordon is read and written anew

	mu      sync.Mutex    // guards what follows
	known   *reading      // the last that succeeded; nil before
	under   *reading      // the one under way, or nil
	failed  bool          // the last one did, and it was said
	changed chan struct{} // closed and replaced when the cordons differ from before
}

// reading is one look at all the files.
type reading struct {
	done    chan struct{} // closed when the rest is set
	begun   time.Time
	cordons map[string]Cordon
	err     error
}

// New makes a Store. Nothing is read or created.
func New(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{
		dir: folder{root: cfg.Dir}, interval: cmp.Or(cfg.Interval, interval), now: cfg.Now, log: cfg.Log,
		ready: make(chan struct{}), changed: make(chan struct{}),
	}
}

func (s *Store) String() string { return "cordons" }

// Ready is closed after the first reading, whatever became of it.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Run reads the files every second until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		r, _ := s.read()
		select {
		case <-r.done:
		case <-time.After(endTime):
		case <-ctx.Done():
		}
		if first {
			close(s.ready)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.drain()
			return nil
		}
	}
}

// drain waits for the reading under way, but not for one that hangs: nobody can end that.
func (s *Store) drain() {
	s.mu.Lock()
	r := s.under
	s.mu.Unlock()
	if r == nil {
		return
	}
	select {
	case <-r.done:
	case <-time.After(endTime):
	}
}

// Cordons returns the cordons there are, by node. What it answers is at most about a second old while /etc/pve can be
// read, and it waits no longer than a fraction of a second when it cannot. The map is shared: do not change it.
func (s *Store) Cordons(ctx context.Context) (map[string]Cordon, error) {
	if known := s.recent(2 * s.interval); known != nil {
		return known.cordons, nil
	}
	r, _ := s.read()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	if known := s.recent(maxAge); known != nil {
		return known.cordons, nil
	}
	select {
	case <-r.done:
		if r.err == nil {
			return r.cordons, nil
		}
		return nil, fmt.Errorf("read which nodes are cordoned: %w", r.err)
	default:
		return nil, fmt.Errorf("read which nodes are cordoned: %w", cmp.Or(ctx.Err(), errSlow))
	}
}

// Of returns the cordon of a node as it is known, without reading. False if there is none, or nothing is known.
func (s *Store) Of(node string) (Cordon, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		return Cordon{}, false
	}
	c, ok := s.known.cordons[node]
	return c, ok
}

// Changed returns a channel that is closed when the cordons have changed. To wait for something, call it before looking.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// recent returns the last reading unless it is older than limit.
func (s *Store) recent(limit time.Duration) *reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || time.Since(s.known.begun) > limit {
		return nil
	}
	return s.known
}

// read begins a reading, or joins the one under way. A goroutine of its own reads, because nothing ends a read of a
// pmxcfs that hangs; there is at most one.
func (s *Store) read() (r *reading, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under != nil {
		return s.under, true
	}
	r = &reading{done: make(chan struct{}), begun: time.Now()}
	s.under = r
	go func() {
		r.cordons, r.err = s.load()
		s.finish(r)
	}()
	return r, false
}

// finish takes in a reading that has ended.
func (s *Store) finish(r *reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under = nil
	if r.err == nil {
		if s.known == nil || !maps.Equal(s.known.cordons, r.cordons) {
			close(s.changed)
			s.changed = make(chan struct{})
		}
		s.known = r
	}
	if failed := r.err != nil; failed != s.failed {
		s.failed = failed
		if failed {
			s.log.Warn("which nodes are cordoned cannot be read", "err", r.err)
		} else {
			s.log.Info("which nodes are cordoned can be read again")
		}
	}
	close(r.done)
}

// load reads all cordons.
func (s *Store) load() (map[string]Cordon, error) {
	nodes, err := s.dir.nodes()
	if err != nil {
		return nil, err
	}
	all := make(map[string]Cordon, len(nodes))
	for _, node := range nodes {
		c, ok, err := s.loadOne(node)
		if err != nil {
			return nil, err
		}
		if ok {
			all[node] = c
		}
	}
	return all, nil
}

// loadOne reads the cordon of a node. False if there is none.
func (s *Store) loadOne(node string) (Cordon, bool, error) {
	raw, err := s.dir.read(node + cordonSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return Cordon{}, false, s.dir.mounted()
	}
	if err != nil {
		return Cordon{}, false, err
	}
	c, err := decode(node, raw)
	if err != nil {
		s.log.Warn("the file of a cordon is none", "node", node, "err", err)
	}
	return c, true, nil
}

// Cordon keeps new VMs away from a node. by is the node whose agent was asked. One that is cordoned stays so, with the
// new reason if there is one; false if that changes nothing. It blocks for as long as the file system does.
func (s *Store) Cordon(ctx context.Context, node, by, reason string) (changed bool, err error) {
	return s.change(ctx, node, func(c *Cordon) {
		c.By, c.Reason = cmp.Or(c.By, by), cmp.Or(reason, c.Reason)
	})
}

// Drain is Cordon for a node that is being emptied.
func (s *Store) Drain(ctx context.Context, node, by, reason string) (changed bool, err error) {
	return s.change(ctx, node, func(c *Cordon) {
		c.By, c.Reason, c.Draining = cmp.Or(c.By, by), cmp.Or(reason, c.Reason), true
	})
}

// change changes the cordon of a node, or makes it.
func (s *Store) change(ctx context.Context, node string, f func(*Cordon)) (changed bool, err error) {
	if err := checkName(node); err != nil {
		return false, err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	old, there, err := s.loadOne(node)
	if err == nil {
		next := old
		if !there || old.Since.IsZero() { // or what is there is no cordon
			next = Cordon{Node: node, Since: s.now()}
		}
		if f(&next); there && next == old {
			return false, nil
		}
		var raw []byte
		if raw, err = encode(next); err == nil {
			err = s.dir.replace(node+cordonSuffix, raw, s.now())
		}
	}
	if err != nil {
		return false, fmt.Errorf("cordon node %s: %w", node, err)
	}
	s.refresh(ctx)
	return true, nil
}

// Uncordon lets new VMs come to a node again; false if nothing kept them away. What drains have moved away from it stays
// written down. It blocks for as long as the file system does.
func (s *Store) Uncordon(ctx context.Context, node string) (changed bool, err error) {
	if err := checkName(node); err != nil {
		return false, err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	_, there, err := s.loadOne(node)
	if err == nil && there {
		err = s.dir.drop(node + cordonSuffix)
	}
	if err != nil {
		return false, fmt.Errorf("uncordon node %s: %w", node, err)
	}
	s.refresh(ctx)
	return there, nil
}

// refresh makes what this node just wrote known here.
func (s *Store) refresh(ctx context.Context) {
	for joined := true; joined; { // the one under way may have begun too early
		var r *reading
		r, joined = s.read()
		select {
		case <-r.done:
		case <-time.After(patience):
			return
		case <-ctx.Done():
			return
		}
	}
}
