package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestNodesTellTheirRoom: nodes that differ are known as they are on the other nodes.
func TestNodesTellTheirRoom(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	c := assemble(t, setting{sim: func(sim *pvesim.Config) {
		sim.NodeMemory = map[string]int64{"pve2": 8 * gib}
		sim.NodeCPUs = map[string]int{"pve3": 4}
	}})
	type room struct {
		Memory uint64
		CPUs   uint32
	}
	want := map[string]room{"pve1": {64 * gib, 16}, "pve2": {8 * gib, 16}, "pve3": {64 * gib, 4}}
	for _, node := range []string{"pve1", "pve3"} {
		var got map[string]room
		c.eventually(node+" knows all three", func() bool {
			got = map[string]room{}
			for _, m := range c.at[node].members() {
				if capacity := m.GetCapacity(); capacity != nil {
					got[m.GetName()] = room{capacity.GetMemoryTotal(), capacity.GetCpus()}
				}
			}
			return len(got) == 3
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("as %s knows them (-want +got):\n%s", node, diff)
		}
	}
}
