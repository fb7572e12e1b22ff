package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// refusalCounts is how long what a node refused is held against it.
	refusalCounts = 10 * time.Second
	// bookedFor is how long a reservation counts at most: what takes longer has failed, or its end was not told.
	bookedFor = 2 * time.Minute
	// takenWithin is when a node has taken a VM at the latest, if it takes it: who asked may hear of it much later, when
	// the VM is made.
	takenWithin = 5 * time.Second
	// burstLasts is how long others are taken to do as this agent does: as old as what is known of the nodes may be.
	burstLasts = 5 * time.Second
	// storagesLag is how old a node's figures about its storages may be in its Facts: it asks PVE once a minute.
	storagesLag = time.Minute
	// vmsLag is how long it may take until a VM that a node has taken is among Cluster.VMs.
	vmsLag = 10 * time.Second
)

// Book keeps what was placed on nodes until their own numbers show it. Its zero
// value is empty. It is not safe for concurrent use.
type Book struct {
	entries  map[string]*entry  // by key
	refusals map[string]refusal // by node
}

// entry is one reservation. Its parts are forgotten one by one: memory and CPUs
// when a digest shows them, the VM when it is in the list, storage when PVE has
// told the node of it.
type entry struct {
	node    string
	amount  Amount
	vm      *VM // nil: not told
	at      time.Time
	settled time.Time // zero: the node has not taken it yet
}

type refusal struct {
	reason string
	at     time.Time
}

// Reserve counts an amount on a node. The key is the placement's own; what was
// reserved under it before is forgotten. Who places the same VM again cancels
// first, or it stands in its own way.
func (b *Book) Reserve(key, node string, a Amount, now time.Time) {
	if b.entries == nil {
		b.entries = map[string]*entry{}
	}
	a.Storage = maps.Clone(a.Storage)
	b.entries[key] = &entry{node: node, amount: a, at: now}
}

// Identify tells which VM was reserved for under a key, so that policies count
// it before it is in Cluster.VMs; see Join.
func (b *Book) Identify(key string, w Want) {
	if e := b.entries[key]; e != nil {
		e.vm = &VM{Name: w.Name, Pool: w.Pool, Tags: slices.Clone(w.Tags), Running: true}
	}
}

// Settle says that the node has taken it: a digest of it younger than now
// counts it. Without a word it is taken to have done so after 5 s. The first
// word counts.
func (b *Book) Settle(key string, now time.Time) {
	if e := b.entries[key]; e != nil && e.settled.IsZero() {
		e.settled = now
	}
}

// Cancel gives back what was reserved.
func (b *Book) Cancel(key string) { delete(b.entries, key) }

// Refuse remembers for 10 s that a node would not have a VM.
func (b *Book) Refuse(node, reason string, now time.Time) {
	if b.refusals == nil {
		b.refusals = map[string]refusal{}
	}
	b.refusals[node] = refusal{reason: reason, at: now}
}

// Apply sets Reserved, Recent and Refused of all nodes, and forgets what a newer
// State shows and what is older than 2 min.
func (b *Book) Apply(nodes []Node, now time.Time) { b.apply(nodes, now) }

// apply is Apply. It returns the indices of the nodes by name.
func (b *Book) apply(nodes []Node, now time.Time) map[string]int {
	maps.DeleteFunc(b.entries, func(_ string, e *entry) bool { return now.Sub(e.at) >= bookedFor })
	maps.DeleteFunc(b.refusals, func(_ string, r refusal) bool { return now.Sub(r.at) >= refusalCounts })
	at := make(map[string]int, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		n.Reserved, n.Recent, n.Refused, n.Full = Amount{}, Amount{}, b.refusals[n.Name].reason, false
		at[n.Name] = i
	}
	maps.DeleteFunc(b.entries, func(_ string, e *entry) bool {
		i, known := at[e.node]
		if !known {
			return false
		}
		e.addTo(&nodes[i], now)
		return e.over(&nodes[i], now)
	})
	return at
}

// Join is Apply, and adds the VMs that were identified to c.VMs where they are
// not in it yet; Reserved.VMs counts the others only.
func (b *Book) Join(c *Cluster, now time.Time) {
	at := b.apply(c.Nodes, now)
	type place struct {
		node int
		name string
	}
	missing := map[place]*VM{}
	for _, e := range b.entries {
		i, known := at[e.node]
		if !known || e.vm == nil {
			continue
		}
		missing[place{i, e.vm.Name}] = e.vm
		if n := &c.Nodes[i]; !e.counted(n) {
			n.Reserved.VMs -= e.amount.VMs
		}
	}
	if len(missing) == 0 {
		return
	}
	for i := range c.VMs {
		delete(missing, place{c.VMs[i].Node, c.VMs[i].Name})
	}
	there := len(c.VMs)
	c.VMs = slices.Clip(c.VMs) // somebody else may have the same VMs
	for p, vm := range missing {
		made := *vm
		made.Node = p.node
		c.VMs = append(c.VMs, made)
	}
	slices.SortFunc(c.VMs[there:], func(a, b VM) int { return cmp.Or(a.Node-b.Node, strings.Compare(a.Name, b.Name)) })
}

// taken is when the node has counted the VM.
func (e *entry) taken() time.Time {
	latest := e.at.Add(takenWithin)
	if e.settled.IsZero() || e.settled.After(latest) {
		return latest
	}
	return e.settled
}

// counted says whether the node's digest has the VM in it.
func (e *entry) counted(n *Node) bool { return n.State.DigestAt.After(e.taken()) }

// stored says whether the node's storages show its disks.
func (e *entry) stored(n *Node) bool {
	return len(e.amount.Storage) == 0 || !e.settled.IsZero() && n.State.FactsAt.After(e.settled.Add(storagesLag))
}

// over says whether everything of it is to be seen elsewhere.
func (e *entry) over(n *Node, now time.Time) bool {
	return now.Sub(e.at) >= burstLasts && e.counted(n) && e.stored(n) && (e.vm == nil || now.Sub(e.taken()) >= vmsLag)
}

func (e *entry) addTo(n *Node, now time.Time) {
	if now.Sub(e.at) < burstLasts {
		n.Recent.addGuest(&e.amount)
	}
	if !e.counted(n) {
		n.Reserved.addGuest(&e.amount)
	}
	if e.stored(n) {
		return
	}
	for name, bytes := range e.amount.Storage {
		if n.Reserved.Storage == nil {
			n.Reserved.Storage = map[string]uint64{}
		}
		n.Reserved.Storage[name] += bytes
	}
}

// addGuest counts what a VM needs beside its disks.
func (a *Amount) addGuest(more *Amount) {
	a.Memory += more.Memory
	a.CPUs += more.CPUs
	a.VMs += more.VMs
}

// Amount is what the VM needs of a node, with what its source needs there.
func (w *Want) Amount(node string) Amount {
	a := Amount{Memory: w.Memory, CPUs: w.CPUs, VMs: 1, Storage: map[string]uint64{}}
	disks := [][]Disk{w.Disks, nil}
	if w.Source != nil {
		disks[1] = w.Source.Nodes[node].Disks
	}
	for _, list := range disks {
		for _, d := range list {
			if d.Storage != "" && d.Bytes > 0 {
				a.Storage[d.Storage] += d.Bytes
			}
		}
	}
	return a
}
