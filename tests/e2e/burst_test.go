package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestBurst: VMs that are asked for at once, through three agents on equal nodes, are spread evenly, and what does not
// fit is refused. (With two hundred, and processes: package netns.)
func TestBurst(t *testing.T) {
	t.Parallel()
	const mib, vm, each, asked = 1 << 20, 256, 12, 39
	c := assemble(t, quick, setting{sim: func(sim *pvesim.Config) {
		sim.Memory = (1024 + each*vm + vm/2) * mib // the agents keep 1 GiB for the host
	}})
	for i, node := range []string{"pve1", "pve2", "pve3"} {
		c.must(c.sim.AddVM(9200+i, node, map[string]string{"template": "1", "name": "golden"}))
	}
	for node := range c.at {
		root := c.root(node)
		c.eventually(node+" takes all for nodes that can have a VM", func() bool {
			resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Name: "web", Image: "golden", Memory: vm * mib, Cpus: 1})
			fits := 0
			for _, row := range resp.GetPlacement().GetRows() {
				if row.GetFits() {
					fits++
				}
			}
			return err == nil && fits == 3
		})
	}
	small := class(fmt.Sprintf(`{"CPU":1,"MemoryMiB":%d}`, vm))
	var (
		group   sync.WaitGroup
		mu      sync.Mutex // guards refusals
		refusal []error
	)
	for i := range asked {
		at := c.at[fmt.Sprintf("pve%d", i%3+1)]
		group.Go(func() {
			made, err := at.agent.Provider.Create(c.ctx, request(fmt.Sprintf("web-%02d", i), from("golden"), small))
			if err == nil {
				if failure := at.outcome(made.GetTask()); failure != "" {
					t.Error(failure)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			refusal = append(refusal, err)
		})
	}
	group.Wait()
	nodes, names := map[string]int{}, map[string]bool{}
	for _, id := range c.sim.VMIDs() {
		conf, err := c.sim.Config(id)
		c.must(err)
		if owner, _ := c.sim.Owner(id); strings.HasPrefix(conf["name"], "web-") {
			nodes[owner]++
			names[conf["name"]] = true
		}
	}
	if len(names) != 3*each || nodes["pve1"] != each || nodes["pve2"] != each || nodes["pve3"] != each {
		t.Errorf("%d names, by node %v; each node has room for %d", len(names), nodes, each)
	}
	for _, err := range refusal {
		refused(t, err, codes.ResourceExhausted, "no node fits", "memory (needs ")
	}
	if len(refusal) != asked-3*each {
		t.Errorf("%d are refused, want %d", len(refusal), asked-3*each)
	}
}
