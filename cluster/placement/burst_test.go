package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// burst simulates many VMs that are made at once through several agents. What a
// node has is known to an agent after 1 to 2 s; what an agent has decided is
// with the node after 20 ms and answered after another 20 ms.
type burst struct {
	t       *testing.T
	random  *rand.Rand
	now     time.Time
	truth   []Node // what the nodes have
	agents  []*agent
	pending []event
	ahead   uint64
	making  time.Duration
	made    int
	retries int
}

// agent decides by what it has heard and what it has done.
type agent struct {
	heard []Node
	book  Book
}

type event struct {
	at time.Time
	do func()
}

func (b *burst) after(d time.Duration, do func()) {
	b.pending = append(b.pending, event{b.now.Add(d), do})
}

// run plays for some time, in steps of 10 ms.
func (b *burst) run(length time.Duration) {
	for end := b.now.Add(length); b.now.Before(end); b.now = b.now.Add(10 * time.Millisecond) {
		due := b.pending
		b.pending = nil
		for _, e := range due {
			if e.at.After(b.now) {
				b.pending = append(b.pending, e)
				continue
			}
			e.do()
		}
		if b.now.UnixMilli()%500 == 0 {
			b.gossip()
		}
	}
}

// gossip sends what all nodes have to all agents, each on its own way.
func (b *burst) gossip() {
	for i := range b.truth {
		digest, at := b.truth[i].State.Digest, b.now
		for _, a := range b.agents {
			b.after(time.Second+time.Duration(b.random.IntN(1000))*time.Millisecond, func() {
				if at.After(a.heard[i].State.DigestAt) {
					a.heard[i].State.Digest, a.heard[i].State.DigestAt = digest, at
				}
			})
		}
	}
}

// place lets an agent make a VM, and again until there is room.
func (b *burst) place(a *agent, w Want) {
	a.book.Apply(a.heard, b.now)
	d := Place(Cluster{Nodes: a.heard}, w, Settings{}, b.now)
	if d.Node == "" {
		b.retries++
		b.after(time.Second, func() { b.place(a, w) })
		return
	}
	a.book.Reserve(w.Name, d.Node, w.Amount(d.Node), b.now)
	at := slices.IndexFunc(b.truth, func(n Node) bool { return n.Name == d.Node })
	b.after(20*time.Millisecond, func() { b.admit(a, w, &b.truth[at]) })
}

// admit is the node's own look.
func (b *burst) admit(a *agent, w Want, n *Node) {
	n.State.DigestAt = b.now
	reasons := Fits(*n, w, Settings{}, b.now)
	if len(reasons) == 0 {
		n.State.Digest.MemoryPromised += w.Memory
		n.State.Digest.VCPUsPromised += uint32(w.CPUs)
		b.made++
	}
	answer := 20 * time.Millisecond
	if len(reasons) == 0 {
		answer += b.making
	}
	b.after(answer, func() {
		if len(reasons) == 0 {
			a.book.Settle(w.Name, b.now)
			return
		}
		b.retries++
		a.book.Cancel(w.Name)
		a.book.Refuse(n.Name, reasons[0].Text, b.now)
		b.place(a, w)
	})
}

func TestBurst(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes   int
		memory  uint64 // of each node, in VMs
		between time.Duration
		ahead   uint64        // VMs that the first node has before
		making  time.Duration // until a VM that is taken is answered for
		retries int           // at most
	}{
		"three nodes, all at once":                 {3, 1000, 0, 0, 0, 0},
		"three nodes, in 4 s":                      {3, 1000, 20 * time.Millisecond, 0, 0, 0},
		"three nodes, in 20 s":                     {3, 1000, 100 * time.Millisecond, 0, 0, 0},
		"three nodes, one of them ahead":           {3, 1000, 0, 20, 0, 0},
		"three nodes, one of them ahead, in 20 s":  {3, 1000, 100 * time.Millisecond, 20, 0, 0},
		"three nodes, in 4 s, each made in 3 s":    {3, 1000, 20 * time.Millisecond, 0, 3 * time.Second, 0},
		"three nodes, in 20 s, each made in 30 s":  {3, 1000, 100 * time.Millisecond, 0, 30 * time.Second, 0},
		"three nodes, full then, each made in 3 s": {3, 67, 20 * time.Millisecond, 0, 3 * time.Second, 1000},
		"five nodes, all at once":                  {5, 1000, 0, 0, 0, 0},
		"five nodes, in 4 s":                       {5, 1000, 20 * time.Millisecond, 0, 0, 0},
		"three nodes that are full then, at once":  {3, 67, 0, 0, 0, 1000},
		"three nodes that are full then, in 4 s":   {3, 67, 20 * time.Millisecond, 0, 0, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3) {
				b := newBurst(t, seed, tc.nodes, tc.memory, tc.ahead)
				b.making = tc.making
				b.start(tc.between)
				b.run(time.Minute)
				b.check(tc.retries)
			}
		})
	}
}

const burstVMs, burstMemory, deciders = 200, 4 * gibi, 3

func newBurst(t *testing.T, seed uint64, n int, memory, ahead uint64) *burst {
	b := &burst{t: t, random: rand.New(rand.NewPCG(seed, 1)), now: now, truth: nodes(n), ahead: ahead}
	for i := range b.truth {
		s := &b.truth[i].State
		s.DigestAt, s.Digest.MemoryTotal, s.Digest.VCPUs = now, memory*burstMemory, 128
	}
	b.truth[0].State.Digest.MemoryPromised, b.truth[0].State.Digest.VCPUsPromised = ahead*burstMemory, uint32(2*ahead)
	for range deciders {
		b.agents = append(b.agents, &agent{heard: slices.Clone(b.truth)})
	}
	return b
}

// start wants the VMs, one after the other, each of another agent.
func (b *burst) start(between time.Duration) {
	for i := range burstVMs {
		w := Want{Name: fmt.Sprintf("web-%d", i), Memory: burstMemory, CPUs: 2, Disks: []Disk{{"local-lvm", "images", gibi}}}
		b.after(time.Duration(i)*between, func() { b.place(b.agents[i%deciders], w) })
	}
}

func (b *burst) check(retries int) {
	b.t.Helper()
	least, most := uint64(1<<62), uint64(0)
	for _, n := range b.truth {
		d := n.State.Digest
		least, most = min(least, d.MemoryPromised/burstMemory), max(most, d.MemoryPromised/burstMemory)
		if d.MemoryPromised > d.MemoryTotal {
			b.t.Errorf("%s has %d GiB promised of %d", n.Name, d.MemoryPromised/gibi, d.MemoryTotal/gibi)
		}
	}
	b.t.Logf("%d made, %d to %d on a node, %d retries", b.made, least, most, b.retries)
	if b.made != burstVMs {
		b.t.Errorf("%d of %d VMs are made", b.made, burstVMs)
	}
	if float64(most) > 1.15*float64(least) {
		b.t.Errorf("%d VMs on one node, %d on another", most, least)
	}
	if b.retries > retries {
		b.t.Errorf("%d were refused or found no node, want at most %d", b.retries, retries)
	}
}
