package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// placeTarget is what a decision may take in the largest cluster: little beside one read of /etc/pve.
const placeTarget = time.Millisecond

// vmsPerNode is how many VMs there are on a node in which a policy looks for those it is about.
const vmsPerNode = 100

// placement measures a decision by every filter, with a policy that asks about each VM there is.
func (b *bench) placement(context.Context) error {
	now := time.Now()
	for _, n := range []int{3, 32, 100} {
		c, w, s := placed(n, now)
		var p placement.Placer
		var failed error
		r := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				if d := p.Place(c, w, s, now); d.Node == "" {
					failed = errors.New(d.Refusal())
					b.FailNow()
				}
			}
		})
		if failed != nil {
			return fmt.Errorf("place a VM: %w", failed)
		}
		b.figure(fmt.Sprintf("place a VM on one of %d nodes with %d VMs", n, n*vmsPerNode), float64(r.NsPerOp())/1e3, float64(placeTarget.Microseconds()), "us")
	}
	return nil
}

// placed is a cluster in good order, and a VM that fits on each of its nodes.
func placed(n int, now time.Time) (placement.Cluster, placement.Want, placement.Settings) {
	const gib = 1 << 30
	c := placement.Cluster{}
	s := placement.Settings{MemoryReserve: gib, Zones: map[string][]string{}, Policies: []placement.Policy{{
		Name: "db", Match: placement.Match{Tags: []string{"db"}}, Spread: "zone", MinFreeMemory: gib, MaxVMsPerNode: 10 * vmsPerNode,
		Affinity:     []placement.Term{{Key: "tag", Operator: "In", Values: []string{"cache"}}},
		AntiAffinity: []placement.Term{{Key: "team", Operator: "In", Values: []string{"a"}}},
	}}}
	w := placement.Want{
		Name: "db-1", Memory: 8 * gib, CPUs: 4, Tags: []string{"db"}, Bridges: []string{"vmbr0"},
		Disks:  []placement.Disk{{Storage: "local-lvm", Content: "images", Bytes: 20 * gib}},
		Source: &placement.Source{Name: `replica of "ubuntu"`, Nodes: map[string]placement.Reach{}},
	}
	for i := range n {
		name, zone := fmt.Sprintf("pve%d", i), fmt.Sprintf("room-%d", i%4)
		c.Nodes = append(c.Nodes, placement.Node{Name: name, State: view.Node{
			DigestAt: now, Digest: view.Digest{Quorate: true, MemoryTotal: 512 * gib, MemoryPromised: vmsPerNode * gib, VCPUs: 64, VCPUsPromised: 2 * vmsPerNode},
			FactsAt: now, Facts: view.Facts{
				Storages: []view.Storage{{Name: "local", Content: []string{"iso"}}, {Name: "local-lvm", Free: 900 * gib, Content: []string{"images"}}},
				Bridges:  []string{"vmbr0", "vmbr1"},
			},
		}})
		s.Zones[zone] = append(s.Zones[zone], name)
		w.Source.Nodes[name] = placement.Reach{}
		for k := range vmsPerNode {
			c.VMs = append(c.VMs, placement.VM{
				Node: i, ID: 1000 + i*vmsPerNode + k, Name: fmt.Sprintf("vm-%d-%d", i, k), Running: true,
				Tags: []string{"linux", []string{"web", "db", "cache", "batch"}[k%4], "team-" + string(rune('a'+k%26))},
			})
		}
	}
	return c, w, s
}
