// Package fabric is a network in memory: hosts with addresses, and links between them that can be cut, one way or both,
// for everything or for some ports only, that lose packets and take their time. Hosts can lose their power, and single
// processes on them can die.
//
// A cut behaves as a network that drops: bytes on their way wait, connecting takes until somebody loses patience. A
// closed port on a host that is up refuses at once. Everything waits on channels and timers, so that it works in
// virtual time (testing/synctest); nothing runs in the background.
package fabric

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Limits of a host, as Linux has them.
const (
	streamBuffer   = 256 << 10         // bytes that are written and not read
	packetBuffer   = 1024              // packets that are not read
	connectTimeout = 127 * time.Second // six repeats of the first packet
	noNeighbour    = 3 * time.Second   // until a host that is off is "no route to host"
	firstEphemeral = 40000
)

// Config describes a Network.
type Config struct {
	Delay  time.Duration     // one way, between two hosts; a host reaches itself without
	Planes map[uint16]string // port of the server's side: plane, for cuts that concern some ports only
	Seed   uint64            // of the loss of packets
}

// Link is one direction between two hosts. The zero Link is a good one.
type Link struct {
	Cut   bool
	Loss  float64       // of packets, 0 to 1; streams repeat what was lost
	Delay time.Duration // added to that of the network
}

// Network is hosts and what is between them.
type Network struct {
	cfg Config

	mu      sync.Mutex // guards everything below, and everything of hosts and sockets
	hosts   map[string]*Host
	byAddr  map[netip.Addr]*Host
	links   map[direction]Link
	dice    *rand.Rand
	changed gate // opened when a link, a host or a listener changes
	streams map[*half]struct{}
}

// direction is one way between two hosts on a plane, "" for all planes.
type direction struct{ from, to, plane string }

// New makes a Network without hosts.
func New(cfg Config) *Network {
	return &Network{
		cfg: cfg, hosts: map[string]*Host{}, byAddr: map[netip.Addr]*Host{}, links: map[direction]Link{},
		dice: rand.New(rand.NewPCG(cfg.Seed, 0)), streams: map[*half]struct{}{}, //nolint:gosec // a network that can be repeated
	}
}

// AddHost adds a host that is up.
func (n *Network) AddHost(name string, addr netip.Addr) *Host {
	h := &Host{
		net: n, name: name, addr: addr, up: true,
		listeners: map[uint16]*Listener{}, packets: map[uint16]*PacketConn{}, ends: map[*Conn]struct{}{}, port: firstEphemeral,
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name], n.byAddr[addr] = h, h
	return h
}

// Host returns a host by its name, nil if there is none.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[name]
}

// Listen opens a port on the host that has the address, for what is on all hosts at once, as a simulated cluster is.
func (n *Network) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	n.mu.Lock()
	h := n.byAddr[at.Addr()]
	n.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("listen %s: no host has that address", address)
	}
	return h.Process("").Listen(ctx, network, address)
}

// Set changes the link from one host to another, on one plane or, with "", on all. A plane is cut if it or all are; the
// larger loss and both delays count.
func (n *Network) Set(from, to, plane string, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := (direction{from, to, plane}); l == (Link{}) {
		delete(n.links, d)
	} else {
		n.links[d] = l
	}
	n.lockedChanged()
}

// Cut cuts or restores both directions between two hosts on a plane, "" for all.
func (n *Network) Cut(a, b, plane string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range []direction{{a, b, plane}, {b, a, plane}} {
		l := n.links[d]
		l.Cut = cut
		n.links[d] = l
	}
	n.lockedChanged()
}

// Heal makes all links good again.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = map[direction]Link{}
	n.lockedChanged()
}

// Faults describes the links that are not good, sorted.
func (n *Network) Faults() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for d, l := range n.links {
		if l != (Link{}) {
			out = append(out, fmt.Sprintf("%s>%s %s %+v", d.from, d.to, d.plane, l))
		}
	}
	slices.Sort(out)
	return out
}

// lockedChanged lets held bytes go where they can go now; n.mu is held.
func (n *Network) lockedChanged() {
	n.changed.lockedOpen()
	for h := range maps.Keys(n.streams) {
		h.lockedRelease()
	}
}

// lockedLink is what a byte from one host to another meets; n.mu is held.
func (n *Network) lockedLink(from, to *Host, port uint16) Link {
	if from == to {
		return Link{}
	}
	l := n.links[direction{from.name, to.name, ""}]
	l.Delay += n.cfg.Delay
	if plane := n.cfg.Planes[port]; plane != "" {
		p := n.links[direction{from.name, to.name, plane}]
		l.Cut, l.Loss, l.Delay = l.Cut || p.Cut, max(l.Loss, p.Loss), l.Delay+p.Delay
	}
	return l
}

// gate lets those through who wait for the next change of something. The network's mutex guards it.
type gate struct{ ch chan struct{} }

func (g *gate) lockedOpen() {
	if g.ch != nil {
		close(g.ch)
		g.ch = nil
	}
}

func (g *gate) lockedNext() <-chan struct{} {
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	return g.ch
}

// lockedWait gives the mutex up until g opens, a time comes (zero: never) or stop is closed (nil: never).
func (n *Network) lockedWait(g *gate, until time.Time, stop <-chan struct{}) {
	opened := g.lockedNext()
	n.mu.Unlock()
	defer n.mu.Lock()
	var expired <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-opened:
	case <-expired:
	case <-stop:
	}
}

// past reports whether a deadline has come; the zero time is none.
func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// earlier is the earlier of two deadlines.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
