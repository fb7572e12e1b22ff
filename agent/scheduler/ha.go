package scheduler

import (
	"context"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// WantOf tells what a VM that is made already needs of another node, and what HA's rules say about that.
func (s *Scheduler) WantOf(_ context.Context, vm *pmxcfs.VM) (placement.Want, error) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return placement.Want{}, fault.New(fault.Precondition, "VM %d: %w", vm.ID, err)
	}
	w := guest.WantOf(vm)
	w.Pool = world.PoolOf(vm.ID)
	for i, d := range w.Disks {
		if storage, ok := world.Storages.Get(d.Storage); ok && storage.Shared {
			w.Disks[i].Bytes = 0 // it is there already
		}
	}
	w.Never, w.Prefer = map[string]string{}, map[string]int{}
	allow(&w, world, vm.ID)
	for _, tie := range world.HA.Apart(vm.ID) {
		if other, there := world.VMs[tie.VMID]; there {
			w.Never[other.Node] = fmt.Sprintf("has VM %d, and %s keeps them apart", tie.VMID, tie.Rule)
		}
	}
	for _, tie := range world.HA.Together(vm.ID) {
		other, there := world.VMs[tie.VMID]
		if !there || other.Node == vm.Node { // it is about to move as well, or not: HA brings them together again
			continue
		}
		for node := range world.Members.Nodes {
			if node != other.Node {
				w.Never[node] = fmt.Sprintf("does not have VM %d, and %s keeps them together", tie.VMID, tie.Rule)
			}
		}
	}
	return w, nil
}

// allow follows the rule that names the nodes of a VM.
func allow(w *placement.Want, world *pmxcfs.World, vmid int) {
	nodes, strict, rule, ok := world.HA.Allowed(vmid)
	if !ok {
		return
	}
	for node := range world.Members.Nodes {
		priority, named := nodes[node]
		switch {
		case named:
			w.Prefer[node] = priority + 1 // a node that is named stands above one that is not
		case strict:
			w.Never[node] = "is not among the nodes of " + rule
		}
	}
}
