package cluster

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
)

// joins is how many nodes are tried at a time: those that do not answer take
// seconds, and one that does brings all others.
const joins = 4

// join tries the nodes that should gossip and do not. memberlist never heals a
// split by itself, and a node whose agent was not there yet has to be tried
// again.
func (c *Cluster) join(ctx context.Context, list *memberlist.Memberlist) {
	seeds := slices.Clone(c.cfg.Seeds())
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	var group errgroup.Group
	group.SetLimit(joins)
	for _, s := range seeds {
		group.Go(func() error {
			if ctx.Err() == nil && c.missing(s) {
				c.joinOne(list, s)
			}
			return nil
		})
	}
	_ = group.Wait() // there are no errors: the next look tries again
}

func (c *Cluster) joinOne(list *memberlist.Memberlist, s Seed) {
	addr := netip.AddrPortFrom(s.AddrPort.Addr().Unmap().WithZone(""), s.AddrPort.Port()).String()
	_, err := list.Join([]string{addr})
	switch {
	case err == nil:
		c.cfg.Log.Debug("asked a node to gossip", "node", s.Name, "gossip", s.AddrPort)
	case strings.Contains(err.Error(), "decrypt") && c.warned.allows("key "+addr):
		c.cfg.Log.Warn("a node does not gossip with our keys", "node", s.Name, "gossip", s.AddrPort, "error", err)
	default:
		c.cfg.Log.Debug("a node that should gossip cannot be asked", "node", s.Name, "gossip", s.AddrPort, "error", err)
	}
}

// missing says whether gossip does not see a seed alive.
func (c *Cluster) missing(s Seed) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.AddrPort.IsValid() || s.AddrPort == c.origin.Address {
		return false
	}
	if s.Name != "" {
		return !c.peers[s.Name].Alive
	}
	for _, p := range c.peers {
		if p.Alive && p.Gossip == s.AddrPort {
			return false
		}
	}
	return true
}
