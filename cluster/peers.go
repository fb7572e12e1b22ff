package cluster

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// Peer is a node that gossips, or did: the last that was heard of it.
type Peer struct {
	Member                    // only Name is certain if not Compatible
	Gossip     netip.AddrPort // where it gossips
	Alive      bool           // by gossip; a node that is only suspected still is
	Since      time.Time      // of the last change of Alive
	Compatible bool           // its metadata can be read, and there is a protocol that we both speak
	Self       bool           // this node
	State      view.Node      // what it said of itself, and when
}

// Peers are all nodes ever seen, this one too, in the order of their names.
func (c *Cluster) Peers() []Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Peer, 0, len(c.peers))
	for _, p := range c.peers {
		out = append(out, c.lockedState(p))
	}
	slices.SortFunc(out, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Peer is the node of that name, if it was ever seen.
func (c *Cluster) Peer(name string) (Peer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, known := c.peers[name]
	return c.lockedState(p), known
}

// Agent is Peer without State, which takes more time to put together than a
// request to the node does.
func (c *Cluster) Agent(name string) (Peer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, known := c.peers[name]
	return p, known
}

// Changed is closed at the next change of who is alive, or of how a node
// presents itself.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *Cluster) lockedState(p Peer) Peer {
	p.State, _ = c.view.Node(view.Origin{Name: p.Name, Address: p.Gossip})
	return p
}

// delegate is what memberlist calls. It may hold its own locks then.
type delegate struct{ c *Cluster }

// NotifyJoin is called when a node becomes alive, this one too.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.c.seen(n, true) }

// NotifyLeave is called when a node has left or is believed dead.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.c.seen(n, false) }

// NotifyUpdate is called when the metadata of a node changes.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.c.seen(n, true) }

// NotifyConflict is called when a second agent claims the name of a node that
// is alive. The first one goes on to be believed.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	claimed := addrPort(other.Addr, int(other.Port))
	if d.c.warned.allows("conflict " + other.Name + claimed.String()) {
		d.c.cfg.Log.Warn("another agent claims the name of a node, and is ignored", "node", other.Name,
			"believed", addrPort(existing.Addr, int(existing.Port)), "claimed", claimed)
	}
}

// NodeMeta is how this node presents itself.
func (d delegate) NodeMeta(int) []byte { return d.c.meta }

func (c *Cluster) seen(n *memberlist.Node, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	old, known := c.peers[n.Name]
	p, err := c.present(old, n)
	switch {
	case alive && !old.Alive:
		c.alive.Add(1)
	case !alive && old.Alive:
		c.alive.Add(-1)
	}
	if p.Alive = alive; !known || old.Alive != alive {
		p.Since = time.Now()
	}
	c.peers[n.Name] = p
	close(c.changed)
	c.changed = make(chan struct{})
	c.logSeen(p, err)
}

// present is old as it presents itself now. What cannot be read of it is left as
// it was.
func (c *Cluster) present(old Peer, n *memberlist.Node) (Peer, error) {
	p := old
	p.Gossip = addrPort(n.Addr, int(n.Port))
	if p.Self {
		return p, nil
	}
	err := p.UnmarshalBinary(n.Meta)
	_, common := c.cfg.Self.Protocol.Common(p.Protocol)
	p.Compatible = err == nil && common && p.Name == n.Name
	p.Name = n.Name
	return p, err
}

func (c *Cluster) logSeen(p Peer, err error) {
	switch {
	case p.Self:
	case p.Alive && !p.Compatible:
		c.cfg.Log.Warn("a node gossips that cannot be understood", "node", p.Name, "gossip", p.Gossip,
			"version", p.Version, "protocol", p.Protocol, "error", err)
	case p.Alive:
		c.cfg.Log.Info("node is in gossip", "node", p.Name, "gossip", p.Gossip, "version", p.Version)
	default:
		c.cfg.Log.Info("node is gone from gossip", "node", p.Name, "gossip", p.Gossip)
	}
}

// addrPort is the zero AddrPort if ip is no address.
func addrPort(ip net.IP, port int) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}
