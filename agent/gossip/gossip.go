// Package gossip is this node's part in the gossip of package cluster: where it listens, whom it joins and which keys
// it uses, all of which /etc/pve tells unless the configuration says otherwise.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// Config configures a Gossip. Addresses are those of the agent's configuration.
type Config struct {
	Node     string
	Version  string // of pve-rigaud
	Protocol cluster.Protocols
	Watcher  *pmxcfs.Watcher

	Bind      string   // host:port; an empty host means this node's address in .members
	Advertise string   // ip:port; "": as Bind
	Join      []string // ip:port; none: the online nodes of .members, with the port of Bind
	KeyFile   string

	Service          string // host:port on which the provider service listens
	ServiceAdvertise string // ip:port for other agents; "": Service, with this node's address in .members if it has no host

	Digest func() view.Digest
	Facts  func() view.Facts
	// Transport makes what gossip is sent over; nil: UDP and TCP.
	Transport func(ctx context.Context, bind netip.AddrPort) (cluster.Transport, error)
	Now       func() time.Time // dates the key file; default time.Now
	Log       *slog.Logger
}

// retryAfter is the pause before gossip is tried again that could not begin.
const retryAfter = 5 * time.Second

// Gossip is a task of the agent. What it knows is a hint: an agent without it works, and knows less of the others.
type Gossip struct {
	cfg     Config
	keys    keyFile
	ready   chan struct{}
	current atomic.Pointer[cluster.Cluster]
}

// New returns the gossip of a node; nothing is opened before Run.
func New(cfg Config) *Gossip {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	g := &Gossip{cfg: cfg, keys: keyFile{path: cfg.KeyFile, now: cfg.Now}, ready: make(chan struct{})}
	close(g.ready)
	return g
}

func (g *Gossip) String() string { return "gossip" }

// Ready is closed from the beginning: nothing waits for gossip.
func (g *Gossip) Ready() <-chan struct{} { return g.ready }

// Run gossips until ctx ends. What keeps it from that (no key yet and no quorum to make one, a port that is taken) is
// logged, and tried again.
func (g *Gossip) Run(ctx context.Context) error {
	said := ""
	for {
		err := g.gossip(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if text := err.Error(); text != said {
			said = text
			g.cfg.Log.WarnContext(ctx, "no gossip with other agents: requests are forwarded by what /etc/pve tells", "err", err)
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return nil
		}
	}
}

// gossip runs the cluster until ctx or gossip itself ends.
func (g *Gossip) gossip(ctx context.Context) error {
	select {
	case <-g.cfg.Watcher.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	cfg, err := g.clusterConfig(ctx)
	if err != nil {
		return err
	}
	c, err := cluster.New(cfg)
	if err != nil {
		return err
	}
	g.current.Store(c)
	defer g.current.Store(nil)
	return c.Run(ctx)
}

func (g *Gossip) clusterConfig(ctx context.Context) (cluster.Config, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return cluster.Config{}, err
	}
	if _, err := g.keys.read(); err != nil {
		return cluster.Config{}, err
	}
	bind, err := resolve("gossip.bind", g.cfg.Bind, world)
	if err != nil {
		return cluster.Config{}, err
	}
	var advertise netip.AddrPort
	if g.cfg.Advertise != "" {
		if advertise, err = netip.ParseAddrPort(g.cfg.Advertise); err != nil {
			return cluster.Config{}, fmt.Errorf("gossip.advertise: %w", err)
		}
	}
	service, err := g.service(world)
	if err != nil {
		return cluster.Config{}, err
	}
	cfg := cluster.Config{
		Self: cluster.Member{Name: g.cfg.Node, Address: service, Version: g.cfg.Version, Protocol: g.cfg.Protocol},
		Bind: bind, Advertise: advertise, Keys: g.keys.read, Seeds: func() []cluster.Seed { return g.seeds(bind.Port()) },
		Digest: g.cfg.Digest, Facts: g.cfg.Facts, Log: g.cfg.Log,
	}
	if g.cfg.Transport != nil {
		cfg.Transport, err = g.cfg.Transport(ctx, bind)
	}
	return cfg, err
}

// service is where other agents reach the provider service.
func (g *Gossip) service(world *pmxcfs.World) (netip.AddrPort, error) {
	if g.cfg.ServiceAdvertise != "" {
		return netip.ParseAddrPort(g.cfg.ServiceAdvertise)
	}
	return resolve("listen.grpc", g.cfg.Service, world)
}

// resolve makes an address of a host:port. Without a host, or with one that means all addresses, it is this node's in
// the cluster: others must be able to connect to it.
func resolve(name, hostPort string, world *pmxcfs.World) (netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(hostPort)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", name, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: port: %w", name, err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.IsUnspecified() {
		ip := world.Members.Nodes[world.Node].IP
		if addr, err = netip.ParseAddr(ip); err != nil {
			return netip.AddrPort{}, fmt.Errorf("%s: %q names no address, and .members has none for node %s (%q)", name, hostPort, world.Node, ip)
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// seeds are the nodes that should gossip.
func (g *Gossip) seeds(port uint16) []cluster.Seed {
	if len(g.cfg.Join) > 0 {
		return joined(g.cfg.Join)
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return nil
	}
	var seeds []cluster.Seed
	for name, n := range world.Members.Nodes {
		if addr, err := netip.ParseAddr(n.IP); err == nil && n.Online && name != g.cfg.Node {
			seeds = append(seeds, cluster.Seed{Name: name, AddrPort: netip.AddrPortFrom(addr.Unmap(), port)})
		}
	}
	slices.SortFunc(seeds, func(a, b cluster.Seed) int { return strings.Compare(a.Name, b.Name) })
	return seeds
}

// joined are the seeds of the configuration, which has checked them.
func joined(addrs []string) []cluster.Seed {
	var seeds []cluster.Seed
	for _, text := range addrs {
		if addr, err := netip.ParseAddrPort(text); err == nil {
			seeds = append(seeds, cluster.Seed{AddrPort: addr})
		}
	}
	return seeds
}

// Peers returns all agents that were ever heard of, ourselves too; none while there is no gossip.
func (g *Gossip) Peers() []cluster.Peer {
	if c := g.current.Load(); c != nil {
		return c.Peers()
	}
	return nil
}

// Changed is closed at the next change of who is alive; nil while there is no gossip.
func (g *Gossip) Changed() <-chan struct{} {
	if c := g.current.Load(); c != nil {
		return c.Changed()
	}
	return nil
}

// agent returns how a node's agent presents itself.
func (g *Gossip) agent(node string) (cluster.Peer, bool) {
	if c := g.current.Load(); c != nil {
		return c.Agent(node)
	}
	return cluster.Peer{}, false
}

// Quorate returns the nodes whose agents say that they have quorum, the one that said so last in front.
func (g *Gossip) Quorate() []string {
	var able []cluster.Peer
	for _, p := range g.Peers() {
		if p.Alive && p.Compatible && !p.Self && p.State.Digest.Quorate {
			able = append(able, p)
		}
	}
	slices.SortStableFunc(able, func(a, b cluster.Peer) int { return b.State.DigestAt.Compare(a.State.DigestAt) })
	names := make([]string, 0, len(able))
	for _, p := range able {
		names = append(names, p.Name)
	}
	return names
}

// Stranger says in words why the agent of a node is not to be asked although it may live, "" if it is: the two have no
// version of the protocol between agents in common.
func (g *Gossip) Stranger(node string) string {
	p, ok := g.agent(node)
	if !ok || p.Compatible {
		return ""
	}
	if p.Version == "" {
		return "what its agent says of itself cannot be read here: upgrade the older one of the two"
	}
	return fmt.Sprintf("its agent is pve-rigaud %s, which speaks the protocol versions %d to %d, and this one %d to %d: upgrade the older one",
		p.Version, p.Protocol.Min, p.Protocol.Max, g.cfg.Protocol.Min, g.cfg.Protocol.Max)
}

// Address returns where the agent of a node answers: as it says itself, else at its address in .members, with our own
// port. A node that is offline as seen with quorum is not to be asked: what it knows may be out of date.
func (g *Gossip) Address(node string) (string, bool) {
	world, err := g.cfg.Watcher.World()
	if err == nil && world.Quorate && !world.Online(node) {
		return "", false
	}
	if p, ok := g.agent(node); ok && (p.Address.IsValid() || !p.Compatible) {
		return p.Address.String(), p.Compatible
	}
	if err != nil {
		return "", false
	}
	ip, perr := netip.ParseAddr(world.Members.Nodes[node].IP)
	own, serr := g.service(world)
	if perr != nil || serr != nil {
		return "", false
	}
	return netip.AddrPortFrom(ip.Unmap(), own.Port()).String(), true
}
