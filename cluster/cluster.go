package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

const (
	pushPullInterval = 10 * time.Second // between complete exchanges; memberlist makes it longer beyond 32 nodes
	reclaimTime      = 5 * time.Second  // dead for so long, a node may come back with another address
	leaveTimeout     = time.Second      // to tell the others that we leave
	digestInterval   = time.Second      // between looks at our own digest, and at least between broadcasts
	heartbeat        = 15 * time.Second // between broadcasts of a digest that does not change
	factsInterval    = time.Second      // at least between looks at our own facts
	keysInterval     = 3 * time.Second  // between looks at the keys
	seedsInterval    = 5 * time.Second  // between looks for nodes that gossip does not see
	relayLimit       = 10 * time.Minute // of age: what is older is not passed on
)

// Seed is a node that should gossip.
type Seed struct {
	Name     string // in PVE; "" if only the address is known
	AddrPort netip.AddrPort
}

// Config is what New makes a Cluster of. Everything but Advertise and Transport
// is needed. The functions are called from several goroutines and have to return
// soon.
type Config struct {
	Self      Member
	Bind      netip.AddrPort           // gossip address, TCP and UDP; not needed with Transport
	Advertise netip.AddrPort           // where the others reach it; zero: Bind, or a private address of this host if that is 0.0.0.0
	Keys      func() ([][]byte, error) // of 32 bytes, the one to encrypt with first; asked every few seconds
	Seeds     func() []Seed            // the nodes that should gossip, with or without this one; asked every few seconds
	Digest    func() view.Digest       // our own, without stamp; asked once a second
	Facts     func() view.Facts        // our own, without stamp; asked when two agents compare what they know
	Transport memberlist.Transport     // nil: UDP and TCP on Bind
	Log       *slog.Logger
}

// Cluster is what this node knows of the others by gossip: a hint, and never the
// truth about who owns a VM or whether there is quorum.
type Cluster struct {
	cfg    Config
	meta   []byte // of Config.Self
	ring   *memberlist.Keyring
	queue  *memberlist.TransmitLimitedQueue
	warned *limiter
	ready  chan struct{}
	asking sync.Mutex   // one call of Config.Facts at a time
	alive  atomic.Int64 // nodes that are, this one too; the queue asks while mu may be held

	mu      sync.Mutex // guards all below
	origin  view.Origin
	peers   map[string]Peer
	view    view.View
	own     announcement
	changed chan struct{} // closed and replaced at a change
	stopped bool          // timers of memberlist may still call
}

// New checks cfg and reads the keys. There is no gossip without.
func New(cfg Config) (*Cluster, error) {
	meta, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	keys, err := readKeys(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: make keyring: %w", err)
	}
	c := &Cluster{
		cfg:     cfg,
		meta:    meta,
		ring:    ring,
		warned:  newLimiter(time.Minute),
		ready:   make(chan struct{}),
		peers:   map[string]Peer{cfg.Self.Name: {Member: cfg.Self, Self: true, Compatible: true, Since: time.Now()}},
		own:     newAnnouncement(time.Now()),
		changed: make(chan struct{}),
	}
	c.queue = &memberlist.TransmitLimitedQueue{NumNodes: func() int { return int(c.alive.Load()) }, RetransmitMult: 4}
	return c, nil
}

func (cfg Config) check() (meta []byte, err error) {
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"keys", cfg.Keys == nil},
		{"seeds", cfg.Seeds == nil},
		{"digest", cfg.Digest == nil},
		{"facts", cfg.Facts == nil},
		{"log", cfg.Log == nil},
	} {
		if f.missing {
			return nil, fmt.Errorf("no %s given", f.name)
		}
	}
	bind := cfg.Bind.Addr()
	switch {
	case cfg.Transport == nil && !cfg.Bind.IsValid():
		return nil, errors.New("no address to bind to")
	case bind.Zone() != "" || cfg.Advertise.Addr().Zone() != "":
		return nil, fmt.Errorf("bind %s, advertise %s: addresses with a zone cannot be gossiped", cfg.Bind, cfg.Advertise)
	case cfg.Transport == nil && bind == netip.IPv6Unspecified() && !cfg.Advertise.IsValid():
		return nil, fmt.Errorf("bind %s: which address to advertise must be said", cfg.Bind)
	case cfg.Advertise.Addr().IsUnspecified():
		return nil, fmt.Errorf("advertise %s: nobody can connect to that", cfg.Advertise)
	}
	return cfg.Self.MarshalBinary()
}

// String names the task.
func (c *Cluster) String() string { return "gossip" }

// Ready is closed as soon as others can join: one node alone is fine.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Run gossips until ctx is done, then tells the others that this node leaves.
// It fails only if it cannot listen. It must be called once.
func (c *Cluster) Run(ctx context.Context) error {
	transport, err := c.listen(ctx)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	list, err := c.create(transport)
	if err != nil {
		return errors.Join(fmt.Errorf("gossip: %w", err), transport.Shutdown())
	}
	close(c.ready)
	var loops sync.WaitGroup
	loops.Go(func() { every(ctx, digestInterval, c.announce) })
	loops.Go(func() { every(ctx, keysInterval, c.readKeys) })
	loops.Go(func() { every(ctx, seedsInterval, func() { c.join(ctx, list) }) })
	<-ctx.Done()
	c.leave(list)
	loops.Wait()
	return nil
}

func every(ctx context.Context, interval time.Duration, f func()) {
	for tick := time.NewTicker(interval); ; {
		f()
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

func (c *Cluster) create(transport *transport) (*memberlist.Memberlist, error) {
	cfg := memberlist.DefaultLANConfig()
	cfg.Name = c.cfg.Self.Name
	cfg.Transport = transport
	cfg.BindPort = int(c.cfg.Bind.Port())
	cfg.AdvertiseAddr, cfg.AdvertisePort = c.advertise()
	cfg.Keyring = c.ring
	cfg.PushPullInterval = pushPullInterval
	cfg.DeadNodeReclaimTime = reclaimTime
	cfg.Delegate = delegate{c}
	cfg.Events = delegate{c}
	cfg.Conflict = delegate{c}
	cfg.Logger = c.lines()
	ip, port, err := transport.FinalAdvertiseAddr(cfg.AdvertiseAddr, cfg.AdvertisePort)
	if err != nil {
		return nil, fmt.Errorf("find address to advertise: %w", err)
	}
	c.mu.Lock()
	c.origin = view.Origin{Name: cfg.Name, Address: addrPort(ip, port)}
	c.mu.Unlock()
	return memberlist.Create(cfg)
}

// leave stops list. The others hear of it at once, if that is possible. It
// returns when memberlist's goroutines have ended: nothing says when, but none
// lives longer than a probe, and a probe takes longer the more have failed.
func (c *Cluster) leave(list *memberlist.Memberlist) {
	if err := list.Leave(leaveTimeout); err != nil {
		c.cfg.Log.Debug("nobody was told that this node leaves gossip", "error", err)
	}
	if err := list.Shutdown(); err != nil {
		c.cfg.Log.Debug("gossip did not shut down cleanly", "error", err)
	}
	c.mu.Lock()
	c.stopped = true
	alone := len(c.peers) == 1
	c.mu.Unlock()
	if alone {
		return
	}
	// The score falls at the end of a probe only, and rises when one fails: then another one may have slipped in.
	for score, last := -1, list.GetHealthScore(); last > score; last = list.GetHealthScore() {
		score = last
		<-time.After(time.Duration(score+1)*time.Second + probeSlack)
	}
}

// probeSlack is more than a probe takes beyond its time to give up.
const probeSlack = 10 * time.Millisecond
