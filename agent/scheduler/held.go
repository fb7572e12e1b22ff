package scheduler

import (
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// held is room for one VM.
type held struct {
	vmid  int // 0: it has no number yet
	want  placement.Want
	until time.Time // zero: as long as its operation goes on
	seen  bool      // it was among the VMs of this node
	made  time.Time // when it was made, by the clock of World.ReadAt; zero: not yet

	// Of a VM that comes from the node where it is made:
	name   string // "": it is made here, or has come
	others []int  // the VMs of this node that have the name and are not it
}

// over brings it up to date, and reports whether it counts no more. World is nil while /etc/pve cannot be read.
func (h *held) over(world *pmxcfs.World, now time.Time) bool {
	if world != nil {
		h.arrive(world, now)
	}
	return !h.until.IsZero() && now.After(h.until) || world != nil && h.gone(world)
}

// arrive finds the VM that was to come, by its name. From then on it counts by its number, and as one that was made here.
func (h *held) arrive(world *pmxcfs.World, now time.Time) {
	if h.name == "" {
		return
	}
	for _, vmid := range named(world, h.name) {
		if slices.Contains(h.others, vmid) {
			continue
		}
		h.vmid, h.name = vmid, ""
		if soon := now.Add(startsWithin); soon.Before(h.until) {
			h.until = soon
		}
		return
	}
}

// gone reports whether a VM that was made, and was here, is here no more.
func (h *held) gone(world *pmxcfs.World) bool {
	vm, exists := world.VMs[h.vmid]
	here := exists && vm.Node == world.Node
	h.seen = h.seen || here
	looked := h.vmid != 0 && !h.made.IsZero() && world.ReadAt.After(h.made)
	return (h.seen || looked) && !here && !h.until.IsZero()
}

// named are the VMs of this node with a name.
func named(world *pmxcfs.World, name string) []int {
	var ids []int
	for _, vm := range world.ByName(name) {
		if vm.Node == world.Node && vm.Type == pmxcfs.TypeQEMU && !vm.Conf.Template() {
			ids = append(ids, vm.ID)
		}
	}
	return ids
}
