// Package node is rigaud.v1.Node: what an agent tells people and programs about itself and its cluster, and the unix
// socket on which root of the node asks for it.
//
// The service answers from what is known anyway, whatever works: without gossip, without quorum, with an /etc/pve that
// cannot be read. It decides nothing, and says with each answer how far it can be believed. Service and Server know
// nothing of each other, so that the one can be served elsewhere too.
package node

import (
	"context"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// Records tells who made which VM; *record.Store does.
type Records interface {
	List() (record.Listing, error)
}

// Config is where a Service looks. All of it must be set, but for what says otherwise.
type Config struct {
	Self cluster.Member // our agent, as gossip shows it to others
	// World is the cluster as pmxcfs has it. With an error it may still return a World, an old one, which is then used
	// and called stale.
	World   func() (*pmxcfs.World, error)
	Records Records
	// Power is "on" or "off" for a VM of this node; "" if that cannot be told. It is asked about each of them.
	Power     func(ctx context.Context, vm *pmxcfs.VM) string
	Scheduler Scheduler             // nil: it decides nothing
	Peers     func() []cluster.Peer // the agents that gossip has seen, ourselves too; nil: there is no gossip
	Links     func() []forward.Link // to the nodes that were ever called; nil: there are none
	Now       func() time.Time      // default time.Now
	// Cordoned tells which nodes take no new VMs, and which are being drained, also of nodes whose agents say nothing
	// more; nil: what gossip last told is all there is.
	Cordoned func(node string) (cordoned, draining bool)
	// Maintenance cordons, drains and restores; nil: nobody does.
	Maintenance Maintenance
	// Images tells of all images, or the one of a name, and asks the other nodes' agents too unless alone is set; nil: none
	// are known.
	Images func(ctx context.Context, name string, alone bool) ([]*nodepb.Image, error)
}

// Service is the node service. It is safe for concurrent use and keeps nothing.
type Service struct {
	nodepb.UnimplementedNodeServer
	cfg Config
}

// New makes a Service.
func New(cfg Config) *Service {
	if cfg.Peers == nil {
		cfg.Peers = func() []cluster.Peer { return nil }
	}
	if cfg.Links == nil {
		cfg.Links = func() []forward.Link { return nil }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg}
}

// view says how far an answer can be believed that rests on world, which may be nil; err is what came with it.
func (s *Service) view(world *pmxcfs.World, err error, now time.Time) *nodepb.View {
	v := &nodepb.View{Node: s.cfg.Self.Name, Version: s.cfg.Self.Version}
	var reasons []string
	if err != nil {
		reasons = append(reasons, err.Error())
	}
	if world != nil {
		v.Cluster, v.ReadAtUnixMs, v.AgeMs = world.Members.Cluster, world.ReadAt.UnixMilli(), age(now, world.ReadAt)
		v.Quorate = world.Quorate && err == nil
		if !world.Quorate {
			reasons = append(reasons, "node "+world.Node+" has no quorum: the others may have changed since")
		}
	}
	v.Stale = strings.Join(reasons, "; ")
	return v
}

// age is how many milliseconds ago t was; 0 for a time to come, as after a step of the clock.
func age(now, t time.Time) int64 { return max(0, now.Sub(t).Milliseconds()) }
