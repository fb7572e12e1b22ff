package guest

import (
	"context"
	"maps"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// publishedTime is how long ListFar waits for what PVE publishes of other nodes.
const publishedTime = time.Second

// ListFar returns the VMs of nodes whose agents cannot be asked: what /etc/pve says of them, and whether they ran when
// PVE last published it. Their Raw says stale.
func (g *Guests) ListFar(ctx context.Context, nodes map[string]bool) ([]Listing, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return nil, fault.New(fault.Precondition, "list VMs of other nodes: %w", err)
	}
	making, err := g.makings()
	if err != nil {
		return nil, err
	}
	var far []*pmxcfs.VM
	for _, vm := range world.VMs {
		if nodes[vm.Node] && vm.Type == pmxcfs.TypeQEMU && !vm.Conf.Template() && !making[vm.ID] && !unborn(vm) {
			far = append(far, vm)
		}
	}
	if len(far) == 0 {
		return nil, nil
	}
	running := g.published(ctx)
	all := make([]Listing, 0, len(far))
	for _, vm := range far {
		st := status.State{Power: status.Off}
		if running[vm.ID] {
			st.Power, st.Running = status.On, true
		}
		l, _ := g.newListing(ctx, world, vm, st)
		l.Raw = maps.Clone(l.Raw)
		l.Raw["stale"] = "true"
		all = append(all, l)
	}
	return all, nil
}

// makings returns the numbers of VMs that are being made anywhere.
func (g *Guests) makings() (map[int]bool, error) {
	list, err := g.cfg.Records.List()
	if err != nil {
		return nil, fault.New(fault.Precondition, "list VMs of other nodes: which ones are being made: %w", err)
	}
	making := map[int]bool{}
	for _, r := range list.Records {
		if r.State == record.Creating {
			making[r.VMID] = true
		}
	}
	return making, nil
}

// published returns which VMs of the cluster ran when their nodes last told, as far as PVE can be asked now.
func (g *Guests) published(ctx context.Context) map[int]bool {
	ctx, cancel := context.WithTimeout(ctx, publishedTime)
	defer cancel()
	all, err := g.cfg.PVE.Resources(ctx, "vm")
	if err != nil {
		g.log.WarnContext(ctx, "which VMs run on other nodes is not known", "err", err)
	}
	running := make(map[int]bool, len(all))
	for _, r := range all {
		running[int(r.VMID)] = r.Status == "running"
	}
	return running
}
