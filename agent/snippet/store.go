package snippet

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

const (
	// startTime is how long a node that starts tries to get what it lacks before it is ready without.
	startTime = 10 * time.Second
	// startPause is the time between two such attempts.
	startPause = 500 * time.Millisecond
	// syncEvery and cleanEvery are how often a node looks for what it lacks, and for what nobody needs any more.
	syncEvery  = 10 * time.Minute
	cleanEvery = time.Hour
	// firstRetry is the pause before a gap is tried again; it doubles up to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Config configures a Store. All rooms are given; nothing is started.
type Config struct {
	Node    string
	Watcher *pmxcfs.Watcher
	Records *record.Store
	Storage string // where snippets go; "": the first storage that can hold them
	// Call makes a call of the agent of another node, as forward.Forwarder.Call does and with its errors.
	Call func(ctx context.Context, node, method string, req, resp proto.Message) error
	// Heard returns a channel that is closed at the next news of who is there; nil, or a nil channel: nobody tells.
	Heard     func() <-chan struct{}
	MountInfo string           // default /proc/self/mountinfo
	Now       func() time.Time // dates files; default time.Now
	Log       *slog.Logger     // default: discard
}

// Store is the snippets of this node. Its methods may be called before and while Run runs.
type Store struct {
	cfg    Config
	ready  chan struct{}
	opened chan struct{} // has something in it when a gap was opened that Run does not know

	mu    sync.Mutex // guards what follows
	turns map[string]chan struct{}
	gaps  map[gapKey]Gap
	mute  map[string]bool // nodes whose agents did not answer when they were last asked
}

// New makes a Store; nothing is read or written.
func New(cfg Config) *Store {
	if cfg.Heard == nil {
		cfg.Heard = func() <-chan struct{} { return nil }
	}
	if cfg.MountInfo == "" {
		cfg.MountInfo = "/proc/self/mountinfo"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{
		cfg: cfg, ready: make(chan struct{}), opened: make(chan struct{}, 1),
		turns: map[string]chan struct{}{}, gaps: map[gapKey]Gap{}, mute: map[string]bool{},
	}
}

// Write puts snippets on a storage of this node and, unless that is shared, on every other node that is online: after
// it a config may refer to their Volumes. The caller's record has to name them already, so that a node which cannot be
// asked now, or comes back this moment, fetches them itself; it is a gap until then (see Gaps). The error is a
// *fault.Error, Precondition, that names the node.
func (s *Store) Write(ctx context.Context, storage string, contents ...[]byte) error {
	// Who is online now, not a second ago: a node that has come back since then has looked for what it lacks already.
	err := s.cfg.Watcher.Refresh(ctx)
	world, werr := s.cfg.Watcher.World()
	if werr != nil {
		return fault.New(fault.Precondition, "write cloud-init snippets: %w", werr)
	}
	if err != nil {
		return fault.New(fault.Precondition, "write cloud-init snippets: %w", err)
	}
	st, ok := world.Storages.Get(storage)
	if !ok {
		return fault.New(fault.Precondition, "write cloud-init snippets: storage %q does not exist", storage)
	}
	for _, data := range contents {
		if err := s.keep(ctx, st, data); err != nil {
			return fault.New(fault.Precondition, "write cloud-init snippets on node %s: %w", s.cfg.Node, err)
		}
	}
	if st.Shared {
		return nil
	}
	var nodes errgroup.Group // each of them is tried, whatever the others say
	for _, node := range s.others(world, st) {
		nodes.Go(func() error {
			for _, data := range contents {
				if err := s.send(ctx, node, Volume(storage, data), data); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return nodes.Wait()
}

// others are the other nodes that are online and have a storage, in the order of their names.
func (s *Store) others(world *pmxcfs.World, st pmxcfs.Storage) []string {
	var nodes []string
	for name, n := range world.Members.Nodes {
		if name != s.cfg.Node && n.Online && st.OnNode(name) {
			nodes = append(nodes, name)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// keep puts a snippet on a storage of this node, which may have missed it.
func (s *Store) keep(ctx context.Context, st pmxcfs.Storage, data []byte) error {
	_, err := in(ctx, s, st, func(dir *os.Root) (none struct{}, err error) {
		return none, keep(dir, s.draft(fileOf(data)), data, s.cfg.Now())
	})
	if err == nil {
		s.close(ctx, s.cfg.Node, Volume(st.ID, data))
	}
	return err
}

// draft is where this node writes a snippet before it has its name: several nodes may write one on a shared storage.
// What a crash leaves there is removed at the next start.
func (s *Store) draft(file string) string { return "." + file + "." + s.cfg.Node }

// Drop says that a VM does not need these volumes any more: it is gone, or never was. Others may, and it may come back
// from a backup, so that they only begin to grow old; the next clean-ups see to the rest. Troubles are only logged.
func (s *Store) Drop(ctx context.Context, volumes []string) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return // their age counts from the last clean-up then, which is an hour less
	}
	for _, volume := range volumes {
		if err := s.touch(ctx, world, volume); err != nil {
			s.cfg.Log.WarnContext(ctx, "cloud-init snippet cannot be marked", "volume", volume, "err", err)
		}
	}
}

func (s *Store) touch(ctx context.Context, world *pmxcfs.World, volume string) error {
	storage, file, err := split(volume)
	st, ok := world.Storages.Get(storage)
	if err != nil || !ok || !s.holds(st) {
		return err
	}
	_, err = in(ctx, s, st, func(dir *os.Root) (none struct{}, err error) {
		return none, gone(dir.Chtimes(file, s.cfg.Now(), s.cfg.Now()))
	})
	return err
}

// String names the task.
func (s *Store) String() string { return "cloud-init snippets" }

// Ready is closed when this node has what its VMs may need, or cannot get it now.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Run fetches what this node lacks, then keeps it so and removes what is old, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	defer s.drain()
	select {
	case <-s.cfg.Watcher.Ready():
	case <-ctx.Done():
		return nil
	}
	seen := s.membership()
	s.catchUp(ctx)
	if ctx.Err() == nil {
		close(s.ready)
		s.sweep(ctx)
		s.tend(ctx, seen)
	}
	return nil
}

// catchUp fetches what this node lacks. It waits for quorum: /etc/pve of a node that has just come back shows what was.
func (s *Store) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		// Before, and read anew: what comes to light meanwhile was not looked through, and the reading that first tells of
		// quorum may have been begun without it.
		whole := s.quorate() && s.cfg.Watcher.Refresh(ctx) == nil
		if again := s.sync(ctx); !again && whole {
			return
		}
		select {
		case <-time.After(startPause):
		case <-ctx.Done():
			s.cfg.Log.WarnContext(ctx, "this node starts without having all cloud-init snippets that VMs refer to, and goes on to look for them",
				"missing", len(s.Gaps()), "quorate", s.quorate())
			return
		}
	}
}

func (s *Store) quorate() bool {
	world, err := s.cfg.Watcher.World()
	return err == nil && world.Quorate
}

// tend syncs again when the cluster has changed, now and then, and soon where something is left to try: also after a start
// and after each change, because a node that has quorum again may get what the others have written a moment later.
func (s *Store) tend(ctx context.Context, seen string) {
	due, clean := time.NewTicker(syncEvery), time.NewTicker(cleanEvery)
	defer due.Stop()
	defer clean.Stop()
	pause := firstRetry
	retry := time.NewTimer(pause)
	defer retry.Stop()
	armed := true
	for {
		moved := false
		changed, heard := s.cfg.Watcher.Changed(), s.cfg.Heard()
		if now := s.membership(); now != seen {
			seen, pause, moved = now, firstRetry, true
		} else {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				continue
			case <-s.opened:
				if !armed {
					pause, armed = firstRetry, true
					retry.Reset(pause)
				}
				continue
			case <-clean.C:
				s.clean(ctx)
				continue
			case <-heard:
				if len(s.Gaps()) == 0 {
					continue
				}
				pause = firstRetry
			case <-retry.C:
				pause, armed = min(2*pause, lastRetry), false
			case <-due.C:
			}
		}
		lacks, owes := s.sync(ctx), s.offer(ctx)
		if lacks || owes || moved {
			armed = true
			retry.Reset(pause)
		}
	}
}

// membership tells one state of the cluster's nodes from another.
func (s *Store) membership() string {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return "unknown"
	}
	var online []string
	for name, n := range world.Members.Nodes {
		if n.Online {
			online = append(online, name)
		}
	}
	slices.Sort(online)
	return fmt.Sprint(world.Quorate, online)
}
