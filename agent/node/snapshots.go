package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/snapname"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// addSnapshots adds the snapshots of a VM whose config is known.
func (g guests) addSnapshots(out *nodepb.VM) {
	vm := g.world.VMs[int(out.GetVmid())]
	if vm == nil || vm.Conf == nil {
		return
	}
	out.CurrentSnapshot, _ = vm.Conf.Get("parent")
	snaps := vm.Conf.Snapshots()
	slices.SortStableFunc(snaps, func(a, b pmxcfs.Snapshot) int {
		return cmp.Or(cmp.Compare(a.Time(), b.Time()), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range snaps {
		e := &nodepb.Snapshot{
			Id: s.Name, Name: snapname.Decode(s.Name, s.Description()), Parent: s.Parent(), Memory: s.Memory(), State: s.State(),
			Description: s.Description(),
		}
		if at := s.Time(); at > 0 {
			e.AgeMs = age(g.now, time.Unix(at, 0))
		}
		out.Snapshots = append(out.Snapshots, e)
	}
}
