package agent

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/provider"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/scheduler"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// settings are what the configuration says about placement.
func settings(cfg config.Config) placement.Settings {
	p := cfg.Placement
	s := placement.Settings{
		Scorer: p.Scorer, MemoryOvercommit: p.MemoryOvercommit, MemoryReserve: p.MemoryReserve,
		Nodes: cfg.NodeSelector, NodesRequired: p.SelectorRequired, Groups: p.Groups, Zones: p.Zones,
	}
	for _, rule := range p.Policies {
		s.Policies = append(s.Policies, placement.Policy{
			Name: rule.Name, Match: placement.Match(rule.Match), NodeSelector: rule.NodeSelector, Required: rule.Required,
			Affinity: terms(rule.Affinity), AntiAffinity: terms(rule.AntiAffinity),
			MaxVMsPerNode: rule.MaxVMsPerNode, MinFreeMemory: rule.MinFreeMemory, Spread: rule.Spread, Scorer: rule.Scorer,
		})
	}
	return s
}

func terms(list []config.Term) []placement.Term {
	out := make([]placement.Term, 0, len(list))
	for _, t := range list {
		out = append(out, placement.Term(t))
	}
	return out
}

// newScheduler wires who decides where VMs are made.
func (a *Agent) newScheduler(f *fleet, cordons *cordon.Store, records *record.Store, o options) *scheduler.Scheduler {
	return scheduler.New(scheduler.Config{
		Node: a.cfg.Node, Watcher: f.watcher, Settings: settings(a.cfg), Peers: f.gossip.Peers, Digest: a.capacity.Digest, Facts: a.capacity.Facts,
		CPUs: a.monitor.CPUs, Journal: a.journal, Now: o.now, Log: a.log, Call: f.call,
		Made: func() ([]record.Record, error) {
			list, err := records.List()
			return list.Records, err
		},
		Cordons: func(ctx context.Context) (map[string]string, error) {
			known, err := cordons.Cordons(ctx)
			why := make(map[string]string, len(known))
			for node, c := range known {
				why[node] = c.Why()
			}
			return why, err
		},
	})
}

// call asks the agent of another node.
func (f *fleet) call(ctx context.Context, node, method string, req, resp proto.Message) error {
	return f.forward.Call(ctx, node, method, req, resp)
}

// placer chooses where VMs are made that do not exist yet.
type placer struct {
	node      string
	guests    *guest.Guests
	scheduler *scheduler.Scheduler
}

// place chooses for a CreateRequest or a CloneRequest. What is wrong with it the handler says, in its own words.
func (p placer) place(ctx context.Context, req any) (forward.Way, error) {
	placing, err := p.placing(ctx, req)
	if fault.Is(err, fault.Invalid) {
		return forward.Way{Node: p.node}, nil
	}
	if err != nil {
		return forward.Way{}, err
	}
	return p.scheduler.Choose(ctx, placing)
}

func (p placer) placing(ctx context.Context, req any) (guest.Placing, error) {
	switch q := req.(type) {
	case *providerpb.CreateRequest:
		wish, err := provider.CreateWish(q)
		if err != nil {
			return guest.Placing{}, err
		}
		return p.guests.PlaceCreate(ctx, clientIdentity(ctx), wish)
	case *providerpb.CloneRequest:
		source, err := guest.ParseID(q.GetSourceVmId())
		if err != nil {
			return guest.Placing{}, err
		}
		wish, err := provider.CloneWish(q)
		if err != nil {
			return guest.Placing{}, err
		}
		return p.guests.PlaceClone(ctx, clientIdentity(ctx), source, wish)
	}
	return guest.Placing{}, fault.New(fault.Internal, "a request of type %T makes no VM", req)
}

// Explain and Place are what commands ask.
func (p placer) Explain(ctx context.Context, rq *nodepb.ExplainRequest) (*nodepb.ExplainResponse, error) {
	resp, err := p.scheduler.Explain(ctx, rq)
	if err != nil {
		return nil, provider.Status(err)
	}
	return resp, nil
}

// Place says where a VM would go now.
func (p placer) Place(ctx context.Context, rq *nodepb.PlaceRequest) (*nodepb.PlaceResponse, error) {
	w, err := p.guests.PlaceDry(ctx, guest.Dry{
		Name: rq.GetName(), Image: rq.GetImage(), CPUs: int(rq.GetCpus()), Memory: rq.GetMemory(), Disk: rq.GetDisk(),
		Tags: rq.GetTags(), Pool: rq.GetPool(), Policy: rq.GetPolicy(), Node: rq.GetNode(),
	})
	if err == nil {
		var decided *nodepb.Placement
		if decided, err = p.scheduler.Try(ctx, w); err == nil {
			return &nodepb.PlaceResponse{Placement: decided}, nil
		}
	}
	return nil, provider.Status(err)
}
