package node

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// Members lists the nodes that .members or gossip know, and ourselves.
func (s *Service) Members(context.Context, *nodepb.MembersRequest) (*nodepb.MembersResponse, error) {
	now := s.cfg.Now()
	world, err := s.cfg.World()
	resp := &nodepb.MembersResponse{View: s.view(world, err, now)}
	all := nodes{s.cfg.Self.Name: {Name: s.cfg.Self.Name, Self: true}}
	if world != nil {
		all.addPVE(world.Members)
	}
	all.addPeers(s.cfg.Peers(), now)
	all.addLinks(s.cfg.Links(), now)
	all.addCordons(s.cfg.Cordoned)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		resp.Members = append(resp.Members, all[name])
	}
	return resp, nil
}

// nodes are the nodes by name, as they are put together.
type nodes map[string]*nodepb.Member

func (n nodes) get(name string) *nodepb.Member {
	if n[name] == nil {
		n[name] = &nodepb.Member{Name: name}
	}
	return n[name]
}

func (n nodes) addPVE(members pmxcfs.Members) {
	for name, m := range members.Nodes {
		n.get(name).Pve = &nodepb.PVENode{Online: m.Online, Ip: m.IP}
	}
}

func (n nodes) addPeers(peers []cluster.Peer, now time.Time) {
	for _, p := range peers {
		m := n.get(p.Name)
		m.Agent = &nodepb.Agent{
			Address: address(p.Member), Version: p.Version, ProtocolMin: p.Protocol.Min, ProtocolMax: p.Protocol.Max,
			Compatible: p.Compatible, Alive: p.Alive,
		}
		if !p.Since.IsZero() {
			m.Agent.SinceMs = age(now, p.Since)
		}
		m.Capacity = capacity(p.State, now)
	}
}

// addCordons adds what gossip may not tell: a node that is down can be cordoned too.
func (n nodes) addCordons(of func(node string) (cordoned, draining bool)) {
	if of == nil {
		return
	}
	for name, m := range n {
		if c := m.GetCapacity(); c != nil {
			cordoned, draining := of(name)
			c.Cordoned, c.Draining = cordoned, draining || c.GetDraining()
		}
	}
}

// addLinks adds nothing for a node that nobody knows any more: that it was called once makes it no member.
func (n nodes) addLinks(links []forward.Link, now time.Time) {
	for _, l := range links {
		m := n[l.Node]
		if m == nil {
			continue
		}
		m.Link = &nodepb.Link{Up: l.Since.IsZero(), LastError: l.LastError}
		if !m.GetLink().GetUp() {
			m.Link.DownMs = age(now, l.Since)
		}
	}
}

// address is where a node's agent answers; "" if it is not known.
func address(m cluster.Member) string {
	if !m.Address.IsValid() {
		return ""
	}
	return m.Address.String()
}

// capacity is a digest with its age, or nil if there is none.
func capacity(n view.Node, now time.Time) *nodepb.Capacity {
	old, ok := n.DigestAge(now)
	if !ok {
		return nil
	}
	d := n.Digest
	return &nodepb.Capacity{
		AgeMs:       old.Milliseconds(),
		MemoryTotal: d.MemoryTotal, MemoryFree: d.MemoryFree, MemoryPromised: d.MemoryPromised,
		Cpus: d.VCPUs, VcpusPromised: d.VCPUsPromised, Load: float64(d.Load) / 100,
		PressureCpu: float64(d.PSICPU) / 100, PressureMemory: float64(d.PSIMemory) / 100, PressureIo: float64(d.PSIIO) / 100,
		Cordoned: d.Cordoned, Draining: d.Draining, Quorate: d.Quorate,
	}
}
