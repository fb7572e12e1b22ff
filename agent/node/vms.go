package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// The words of VM.power.
const (
	powerOn      = "on"
	powerOff     = "off"
	powerUnknown = "unknown"
)

// VMs lists the guests of the cluster and who they belong to.
func (s *Service) VMs(ctx context.Context, req *nodepb.VMsRequest) (*nodepb.VMsResponse, error) {
	now := s.cfg.Now()
	world, err := s.cfg.World()
	if world == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the guests of the cluster are not known: %v", err)
	}
	known, recordsErr := s.records()
	resp := &nodepb.VMsResponse{View: s.view(world, err, now), RecordsError: recordsErr}
	all := guests{world: world, records: known, now: now, power: func(vm *pmxcfs.VM) string { return s.cfg.Power(ctx, vm) }}
	for vm := range all.all() {
		if req.GetNode() == "" || vm.GetNode() == req.GetNode() {
			if req.GetSnapshots() {
				all.addSnapshots(vm)
			}
			resp.Vms = append(resp.Vms, vm)
		}
	}
	if _, known := world.Members.Nodes[req.GetNode()]; !known && len(resp.GetVms()) == 0 && req.GetNode() != "" && req.GetNode() != world.Node {
		return nil, status.Errorf(codes.NotFound, "the cluster has no node %q", req.GetNode())
	}
	slices.SortStableFunc(resp.Vms, func(a, b *nodepb.VM) int {
		return cmp.Or(cmp.Compare(a.GetVmid(), b.GetVmid()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return resp, nil
}

// records reads all records. What it could not read it says in words.
func (s *Service) records() ([]record.Record, string) {
	list, err := s.cfg.Records.List()
	if err != nil {
		return nil, fmt.Sprintf("records cannot be read: %v", err)
	}
	var reasons []string
	if n := len(list.Incomplete); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d being written, or left so by a crash", n))
	}
	for _, err := range list.Broken {
		reasons = append(reasons, err.Error())
	}
	if len(reasons) == 0 {
		return list.Records, ""
	}
	return list.Records, "records that cannot be read: " + strings.Join(reasons, "; ")
}

// guests puts together what pmxcfs and the records say about each guest.
type guests struct {
	world   *pmxcfs.World
	records []record.Record
	now     time.Time
	power   func(*pmxcfs.VM) string
}

// all yields every guest once, in no order.
func (g guests) all() func(yield func(*nodepb.VM) bool) {
	return func(yield func(*nodepb.VM) bool) {
		claimed := g.claims()
		for id, vm := range g.world.VMs {
			if !yield(g.listed(vm, claimed[id])) {
				return
			}
		}
		for _, id := range slices.Sorted(maps.Keys(g.world.Unread)) {
			if _, read := g.world.VMs[id]; !read && !yield(g.unread(id, claimed[id])) {
				return
			}
		}
		for _, r := range g.records {
			if !g.world.Has(r.VMID) && !yield(g.unlisted(r)) {
				return
			}
		}
	}
}

// claims are the records by number. PVE gives numbers out again, so there may be several for one.
func (g guests) claims() map[int][]record.Record {
	byVMID := make(map[int][]record.Record, len(g.records))
	for _, r := range g.records {
		if r.VMID != 0 {
			byVMID[r.VMID] = append(byVMID[r.VMID], r)
		}
	}
	return byVMID
}

// listed describes a guest of which pmxcfs tells the owner, and of a VM the config.
func (g guests) listed(vm *pmxcfs.VM, claims []record.Record) *nodepb.VM {
	out := &nodepb.VM{Vmid: int32(vm.ID), Node: vm.Node, Type: vm.Type, Power: powerUnknown, Listed: true}
	if err, ok := g.world.Unread[vm.ID]; ok {
		out.Stale = fmt.Sprintf("its config could not be read: %v", err)
	} else if m, ok := g.world.Members.Nodes[vm.Node]; ok && !m.Online {
		out.Stale = fmt.Sprintf("node %s is offline", vm.Node)
	}
	if vm.Type != pmxcfs.TypeQEMU {
		return out
	}
	out.Name, out.Template, out.Lock = vm.Conf.Name(), vm.Conf.Template(), vm.Conf.Lock()
	if vm.Node == g.world.Node {
		out.Power = cmp.Or(g.power(vm), powerUnknown)
	}
	if r, ok := claim(vm.Conf, claims); ok {
		out.Id, out.Record = r.ID().String(), g.encode(r)
		out.Name = cmp.Or(out.GetName(), r.Name) // a clone has its name only at its end
	} else if !halfMade(vm.Conf) {
		out.Id = record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String()
	}
	return out
}

// claim finds the record of a VM among those with its number: the one with its uuid. A VM that is still being made may
// have another uuid, or none; its number tells only as long as nothing else speaks against it.
func claim(conf *pmxcfs.Conf, claims []record.Record) (record.Record, bool) {
	uuid := conf.SMBIOSUUID()
	for _, r := range claims {
		if uuid != "" && r.UUID == uuid {
			return r, true
		}
		if r.State == record.Creating && (halfMade(conf) || conf.Name() == "" || conf.Name() == r.Name) {
			return r, true
		}
	}
	return record.Record{}, false
}

// halfMade says that a VM is being made, by us or somebody else, and does not have its uuid yet.
func halfMade(conf *pmxcfs.Conf) bool {
	lock := conf.Lock()
	return lock == "clone" || lock == "create"
}

// unread describes a guest of which .vmlist has the number and nothing else could be read.
func (g guests) unread(id int, claims []record.Record) *nodepb.VM {
	out := &nodepb.VM{
		Vmid: int32(id), Power: powerUnknown, Listed: true,
		Stale: fmt.Sprintf("its config could not be read: %v", g.world.Unread[id]),
	}
	if len(claims) == 1 { // whose else it would be
		out.Name, out.Record = claims[0].Name, g.encode(claims[0])
	}
	return out
}

// unlisted describes what only a record knows of: a VM that is not made yet, or one that has gone.
func (g guests) unlisted(r record.Record) *nodepb.VM {
	out := &nodepb.VM{Vmid: int32(r.VMID), Name: r.Name, Node: r.Node, Type: pmxcfs.TypeQEMU, Power: powerUnknown, Record: g.encode(r)}
	if r.VMID != 0 {
		out.Id = r.ID().String()
	}
	if r.State == record.Ready {
		out.Stale = "only its record is there: no such guest in .vmlist"
	}
	return out
}

func (g guests) encode(r record.Record) *nodepb.Record {
	out := &nodepb.Record{Owner: r.Owner, State: string(r.State), Node: r.Node}
	if !r.Created.IsZero() {
		out.AgeMs = age(g.now, r.Created)
	}
	return out
}
