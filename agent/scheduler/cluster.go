package scheduler

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// builder makes what placement knows of VMs, once for each World: that changes rarely, and VMs may be many.
type builder struct {
	world *pmxcfs.World
	names []string // of the nodes, sorted
	vms   []placement.VM
}

func (b *builder) build(world *pmxcfs.World) {
	if b.world == world {
		return
	}
	b.world, b.names = world, slices.Sorted(maps.Keys(world.Members.Nodes))
	if !slices.Contains(b.names, world.Node) { // a node without a cluster
		b.names = append(b.names, world.Node)
		slices.Sort(b.names)
	}
	index := make(map[string]int, len(b.names))
	for i, name := range b.names {
		index[name] = i
	}
	b.vms = make([]placement.VM, 0, len(world.VMs))
	for _, id := range slices.Sorted(maps.Keys(world.VMs)) {
		vm := world.VMs[id]
		node, known := index[vm.Node]
		if vm.Type != pmxcfs.TypeQEMU || vm.Conf.Template() || !known {
			continue
		}
		b.vms = append(b.vms, placement.VM{Node: node, Tags: vm.Conf.Tags(), Pool: world.PoolOf(id), ID: id, Name: vm.Conf.Name()})
	}
}

// lockedCluster is what is known now, with what was placed and is not seen yet.
func (s *Scheduler) lockedCluster(now time.Time, cordons map[string]string) (placement.Cluster, error) {
	c, err := s.lockedKnown(now, cordons)
	if err == nil {
		s.book.Join(&c, now)
	}
	return c, err
}

// lockedKnown is what is known now of the nodes and their VMs.
func (s *Scheduler) lockedKnown(now time.Time, cordons map[string]string) (placement.Cluster, error) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return placement.Cluster{}, err
	}
	s.builder.build(world)
	peers := map[string]cluster.Peer{}
	for _, p := range s.cfg.Peers() {
		peers[p.Name] = p
	}
	c := placement.Cluster{VMs: s.builder.vms}
	for _, name := range s.builder.names {
		n := placement.Node{Name: name, CPUs: s.cfg.CPUs(name), Cordoned: cordons[name]}
		if name == s.cfg.Node {
			n.State = s.own(now)
		} else {
			n.State, n.Silent = peers[name].State, s.lockedSilence(world, peers, name, now)
		}
		n.State.Digest.Cordoned = false // the file says so, and what a node tells of itself is older
		if n.Cordoned == "" && world.HA.Maintenance(name) {
			n.Cordoned = "in HA maintenance"
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c, nil
}

// own is what this node has now, not what it has told the others.
func (s *Scheduler) own(now time.Time) view.Node {
	return view.Node{Digest: s.cfg.Digest(), DigestAt: now, Facts: s.cfg.Facts(), FactsAt: now}
}

// lockedSilence says why the agent of another node cannot be asked, "" if it can.
func (s *Scheduler) lockedSilence(world *pmxcfs.World, peers map[string]cluster.Peer, node string, now time.Time) string {
	peer, heard := peers[node]
	at, silent := s.silent[node]
	switch {
	case !world.Online(node):
		return "is offline"
	case heard && !peer.Compatible:
		return "has an agent of version " + peer.Version + ", which speaks no protocol of ours"
	case silent && now.Sub(at) < refusalCounts:
		return "has an agent that did not answer a moment ago"
	}
	return ""
}

// unanswered is the error of a node that did not answer, nil if err is none.
func unanswered(err error) *forward.PeerError {
	down, _ := errors.AsType[*forward.PeerError](err)
	return down
}
