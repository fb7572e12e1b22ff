package provider

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// Fleet is the agents of the other nodes.
type Fleet interface {
	// Others returns the other nodes of the cluster, online or not.
	Others() []string
	// ListVMs asks one of them for its own VMs.
	ListVMs(ctx context.Context, node string) (*providerpb.ListVMsResponse, error)
	// Asked reports whether the request behind ctx is such a question of another agent.
	Asked(ctx context.Context) bool
}

const (
	// farTime is how long the agent of another node has to list its VMs.
	farTime = time.Second
	// maxList is what a gRPC client takes by default (4 MiB), less what frames and headers need.
	maxList = 4<<20 - 4<<10
)

// ListVMs lists the VMs of the cluster, for adoption. Those of nodes whose agents do not answer are listed as /etc/pve
// has them, and marked stale.
func (s *Server) ListVMs(ctx context.Context, _ *providerpb.ListVMsRequest) (*providerpb.ListVMsResponse, error) {
	all, err := s.cfg.Guests.List(ctx)
	if err != nil {
		return nil, Status(err)
	}
	resp := &providerpb.ListVMsResponse{Vms: vmInfos(all)}
	if s.cfg.Fleet == nil || s.cfg.Fleet.Asked(ctx) {
		return resp, nil
	}
	far, err := s.listFar(ctx)
	if err != nil {
		return nil, Status(err)
	}
	resp.Vms = byID(append(resp.GetVms(), far...))
	s.fit(ctx, resp)
	return resp, nil
}

// listFar lists the VMs of all other nodes, asking their agents at once.
func (s *Server) listFar(ctx context.Context) ([]*providerpb.VMInfo, error) {
	ask, cancel := context.WithTimeout(ctx, farTime)
	defer cancel()
	var (
		group  sync.WaitGroup
		mu     sync.Mutex // guards found and silent
		found  []*providerpb.VMInfo
		silent = map[string]bool{}
	)
	for _, node := range s.cfg.Fleet.Others() {
		group.Go(func() {
			resp, err := s.cfg.Fleet.ListVMs(ask, node)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[node] = true
				s.cfg.Log.InfoContext(ctx, "VMs of a node are listed as /etc/pve has them, because its agent was not reached", "peer", node, "err", err)
				return
			}
			found = append(found, resp.GetVms()...)
		})
	}
	group.Wait()
	stale, err := s.cfg.Guests.ListFar(ctx, silent)
	if err != nil {
		return nil, err
	}
	return append(found, vmInfos(stale)...), nil
}

func vmInfos(all []guest.Listing) []*providerpb.VMInfo {
	infos := make([]*providerpb.VMInfo, 0, len(all))
	for _, l := range all {
		infos = append(infos, vmInfo(l))
	}
	return infos
}

// byID sorts VMs and leaves one of each, the first: a VM that moves while nodes are asked may be listed by both.
func byID(all []*providerpb.VMInfo) []*providerpb.VMInfo {
	slices.SortStableFunc(all, func(a, b *providerpb.VMInfo) int {
		return cmp.Or(cmp.Compare(vmid(a), vmid(b)), strings.Compare(a.GetId(), b.GetId()))
	})
	return slices.CompactFunc(all, func(a, b *providerpb.VMInfo) bool { return a.GetId() == b.GetId() })
}

// vmid is the number in a VM's id; agents hand out none without.
func vmid(v *providerpb.VMInfo) int {
	text, _, _ := strings.Cut(v.GetId(), "-")
	n, _ := strconv.Atoi(text)
	return n
}

// optional are the parts of a listing that a client can do without: what they add up to, and how they go. Ids, names
// and power states stay.
var optional = []struct {
	name string
	size func(v *providerpb.VMInfo) int
	drop func(v *providerpb.VMInfo)
}{
	{"provider_raw", func(v *providerpb.VMInfo) int { return sizeOf(&providerpb.VMInfo{ProviderRaw: v.GetProviderRaw()}) }, dropRaw},
	{"networks", func(v *providerpb.VMInfo) int { return sizeOf(&providerpb.VMInfo{Networks: v.GetNetworks()}) }, func(v *providerpb.VMInfo) { v.Networks = nil }},
	{"disks", func(v *providerpb.VMInfo) int { return sizeOf(&providerpb.VMInfo{Disks: v.GetDisks()}) }, func(v *providerpb.VMInfo) { v.Disks = nil }},
	{"ips", func(v *providerpb.VMInfo) int { return sizeOf(&providerpb.VMInfo{Ips: v.GetIps()}) }, func(v *providerpb.VMInfo) { v.Ips = nil }},
}

func sizeOf(v *providerpb.VMInfo) int { return proto.Size(v) }

// dropRaw keeps what must not be missed.
func dropRaw(v *providerpb.VMInfo) {
	stale := v.GetProviderRaw()["stale"]
	v.ProviderRaw = nil
	if stale != "" {
		v.ProviderRaw = map[string]string{"stale": stale}
	}
}

// fit drops the largest optional part of all VMs, and then the next, until the answer can be received.
func (s *Server) fit(ctx context.Context, resp *providerpb.ListVMsResponse) {
	for range optional {
		if proto.Size(resp) <= maxList {
			return
		}
		largest, most := -1, 0
		for i, part := range optional {
			sum := 0
			for _, v := range resp.GetVms() {
				sum += part.size(v)
			}
			if sum > most {
				largest, most = i, sum
			}
		}
		if largest < 0 {
			return
		}
		for _, v := range resp.GetVms() {
			optional[largest].drop(v)
		}
		s.cfg.Log.WarnContext(ctx, "the list of VMs is too long for a gRPC answer, so a part of each is left out",
			"vms", len(resp.GetVms()), "left_out", optional[largest].name)
	}
}
