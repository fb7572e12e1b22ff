package pvesim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ring is what corosync is about: who reaches whom, and which nodes are
// together. Packets are lost at once; what the nodes make of it, and say in
// .members, comes after Config.CorosyncDelay.
//
// A node that lost its part of the quorate cluster cannot write and sees
// /etc/pve as it was from the moment of the cut on, also while .members does
// not say so yet: on a real node such writes hang until it does, and fail then.
type ring struct {
	mu       sync.Mutex // guards all below, and orders what is made of it
	names    []string
	off      map[string]bool    // without power
	cut      map[[2]string]bool // from, to: nothing arrives
	agents   map[[2]string]bool // nothing that agents send arrives
	apart    map[[2]string]bool // pairs that corosync knows not to be connected
	noQuorum map[string]bool
	readOnly map[string]bool
	changes  int
	onCut    []func(from, to string, cut bool)
	onPower  []func(node string, on bool)

	fencing map[string]int // offline nodes that wait to be fenced: which time this is
	fences  int
}

func newRing() *ring {
	return &ring{
		off: map[string]bool{}, cut: map[[2]string]bool{}, agents: map[[2]string]bool{}, apart: map[[2]string]bool{},
		noQuorum: map[string]bool{}, readOnly: map[string]bool{}, fencing: map[string]int{},
	}
}

// lockedLinked says whether two nodes reach each other, both ways: totem takes
// no less.
func (r *ring) lockedLinked(a, b string) bool {
	return a == b && !r.off[a] ||
		!r.off[a] && !r.off[b] && !r.cut[[2]string{a, b}] && !r.cut[[2]string{b, a}]
}

// linked is lockedLinked for others.
func (r *ring) linked(a, b string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lockedLinked(a, b)
}

// components sorts the nodes into groups in which all are together: the first
// node takes everyone it can, then the next one that is left, and so on.
func components(names []string, together func(a, b string) bool) map[string][]string {
	out := map[string][]string{}
	for i, first := range names {
		if out[first] != nil {
			continue
		}
		group := []string{first}
		for _, other := range names[i+1:] {
			if out[other] == nil && !slices.ContainsFunc(group, func(in string) bool { return !together(in, other) }) {
				group = append(group, other)
			}
		}
		for _, name := range group {
			out[name] = group
		}
	}
	return out
}

// standing is a node's place in the cluster.
type standing struct {
	members  []string // online in its .members
	quorate  bool     // in its .members
	live     bool     // it sees and is part of the current tree
	writable bool
}

func (r *ring) lockedStandings() map[string]standing {
	known := func(a, b string) bool { return !r.apart[[2]string{a, b}] && !r.apart[[2]string{b, a}] }
	said := components(r.names, known)
	now := components(r.names, func(a, b string) bool { return known(a, b) && r.lockedLinked(a, b) })
	out := map[string]standing{}
	for _, name := range r.names {
		most := func(group []string) bool { return 2*len(group) > len(r.names) && !r.noQuorum[name] }
		s := standing{members: said[name], quorate: most(said[name]), live: most(now[name]) && !r.off[name]}
		s.writable = s.live && !r.readOnly[name]
		out[name] = s
	}
	return out
}

// change changes the ring and lets the nodes notice. at is what becomes known
// without delay, nil for nothing.
func (c *Cluster) change(edit func(*ring)) error {
	r := c.ring
	r.mu.Lock()
	before := r.lockedLosses()
	edit(r)
	r.changes++
	change := r.changes
	if c.cfg.CorosyncDelay <= 0 {
		r.lockedNotice()
	}
	err := c.lockedSettle()
	calls := r.lockedCalls(before)
	r.mu.Unlock()
	for _, call := range calls {
		call()
	}
	if c.cfg.CorosyncDelay > 0 && c.ctx != nil {
		c.wg.Go(func() {
			c.pause(c.ctx, c.cfg.CorosyncDelay)
			c.notice(change)
		})
	}
	return err
}

// notice is corosync's token timeout: what lasts until then counts.
func (c *Cluster) notice(change int) {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	if c.ctx.Err() != nil || c.ring.changes != change {
		return
	}
	c.ring.lockedNotice()
	if err := c.lockedSettle(); err != nil {
		c.log.Error("membership", "err", err)
	}
}

func (r *ring) lockedNotice() {
	clear(r.apart)
	for i, a := range r.names {
		for _, b := range r.names[i+1:] {
			if !r.lockedLinked(a, b) {
				r.apart[[2]string{a, b}] = true
			}
		}
	}
}

// lockedSettle brings every node's view and mount up to its standing: writes
// end before anything else changes, and come back last.
func (c *Cluster) lockedSettle() error {
	now := c.ring.lockedStandings()
	var errs []error
	for _, n := range c.nodes {
		if !now[n.Name].writable {
			n.setWritable(false)
		}
	}
	errs = append(errs, c.tree.settle(now))
	for _, n := range c.nodes {
		errs = append(errs, n.setSource(c.tree.source(n.Name)), c.tree.show(n.Name))
		n.setWritable(now[n.Name].writable)
	}
	c.lockedFence(now)
	return errors.Join(errs...)
}

// lockedLosses is what agents cannot send now.
func (r *ring) lockedLosses() map[[2]string]bool {
	out := map[[2]string]bool{}
	for _, a := range r.names {
		for _, b := range r.names {
			if p := [2]string{a, b}; a != b && (r.cut[p] || r.agents[p]) {
				out[p] = true
			}
		}
	}
	return out
}

// lockedCalls are the calls of the hooks for what changed since then.
func (r *ring) lockedCalls(before map[[2]string]bool) []func() {
	now := r.lockedLosses()
	var out []func()
	for _, a := range r.names {
		for _, b := range r.names {
			if p := [2]string{a, b}; now[p] != before[p] {
				for _, hook := range r.onCut {
					out = append(out, func() { hook(a, b, now[p]) })
				}
			}
		}
	}
	return out
}

func (c *Cluster) known(names ...string) error {
	for _, name := range names {
		if c.byName[name] == nil {
			return fmt.Errorf("pvesim: no node %q", name)
		}
	}
	return nil
}

// Partition splits the cluster: only nodes of one group reach each other. A
// node that is in no group is alone. What was cut before is forgotten.
func (c *Cluster) Partition(groups [][]string) error {
	group := map[string]int{}
	for i, names := range groups {
		if err := c.known(names...); err != nil {
			return err
		}
		for _, name := range names {
			if group[name] != 0 {
				return fmt.Errorf("pvesim: partition: node %q is in two groups", name)
			}
			group[name] = i + 1
		}
	}
	return c.change(func(r *ring) {
		clear(r.cut)
		for _, a := range r.names {
			for _, b := range r.names {
				if a != b && (group[a] != group[b] || group[a] == 0) {
					r.cut[[2]string{a, b}] = true
				}
			}
		}
	})
}

// Cut loses all packets between two nodes, both ways.
func (c *Cluster) Cut(a, b string) error {
	if err := c.known(a, b); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.cut[[2]string{a, b}], r.cut[[2]string{b, a}] = true, true })
}

// CutOneWay loses the packets of one node to another. For corosync the two
// are not connected then: a ring needs both directions.
func (c *Cluster) CutOneWay(from, to string) error {
	if err := c.known(from, to); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.cut[[2]string{from, to}] = true })
}

// CutAgents loses what the agents of two nodes send each other, both ways,
// and nothing else: corosync and the API do not notice.
func (c *Cluster) CutAgents(a, b string) error {
	if err := c.known(a, b); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.agents[[2]string{a, b}], r.agents[[2]string{b, a}] = true, true })
}

// CutAgentsOneWay is CutAgents for one direction.
func (c *Cluster) CutAgentsOneWay(from, to string) error {
	if err := c.known(from, to); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.agents[[2]string{from, to}] = true })
}

// Heal brings every packet through again.
func (c *Cluster) Heal() error {
	return c.change(func(r *ring) {
		clear(r.cut)
		clear(r.agents)
	})
}

// OnCut adds a hook that is told when agents' packets from a node to another
// are lost, or are not any more, by any kind of cut: for who carries those
// packets. It is called for each direction, and for one node after the other.
func (c *Cluster) OnCut(hook func(from, to string, cut bool)) {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	c.ring.onCut = append(c.ring.onCut, hook)
}

// OnPower adds a hook that is told when a node loses its power or gets it
// back: for who runs the agents. It is called before the node is gone, and
// after it is there again.
func (c *Cluster) OnPower(hook func(node string, on bool)) {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	c.ring.onPower = append(c.ring.onPower, hook)
}

// Reaches says whether packets of an agent of one node arrive at another node.
func (c *Cluster) Reaches(from, to string) bool {
	r, p := c.ring, [2]string{from, to}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.off[from] && !r.off[to] && !r.cut[p] && !r.agents[p]
}

// SetQuorate gives all nodes quorum or takes it.
func (c *Cluster) SetQuorate(on bool) error {
	return c.change(func(r *ring) {
		for _, name := range r.names {
			r.noQuorum[name] = !on
		}
	})
}

// SetNodeQuorate takes quorum from one node, or gives it back if it is in the
// right company; its .members shows the others online all the same.
func (c *Cluster) SetNodeQuorate(node string, on bool) error {
	if err := c.known(node); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.noQuorum[node] = !on })
}

// SetReadOnly lets every write of one node to /etc/pve fail, while .members
// says that all is well and what is read is current.
func (c *Cluster) SetReadOnly(node string, on bool) error {
	if err := c.known(node); err != nil {
		return err
	}
	return c.change(func(r *ring) { r.readOnly[node] = on })
}

// Quorate returns the nodes that are part of the quorate cluster, in order;
// none if there is no such.
func (c *Cluster) Quorate() []string {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	var out []string
	now := c.ring.lockedStandings()
	for _, name := range c.ring.names {
		if now[name].live {
			out = append(out, name)
		}
	}
	return out
}

// reach is a connection from one node's API to another's.
func (c *Cluster) reach(ctx context.Context, from, to string) error {
	if c.ring.linked(from, to) {
		return nil
	}
	c.pause(ctx, c.offlineDelay())
	return &apiError{status: 595, message: "No route to host", noBody: true}
}
