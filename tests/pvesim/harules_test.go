package pvesim_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestHAFiles writes what HA is told as PVE does, so that who knows PVE's files reads it.
func TestHAFiles(t *testing.T) {
	c := startCluster(t, nil)
	w := pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(c.Node("pve3").PMXCFS), Node: "pve3"})
	read := func() *pmxcfs.World {
		t.Helper()
		if err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		world, err := w.World()
		if err := errors.Join(err, world.HAErr, world.PoolErr); err != nil || len(world.HA.Problems) > 0 {
			t.Fatal(err, world.HA.Problems)
		}
		return world
	}
	if h := read().HA; h.Managed(100) || h.Maintenance("pve2") {
		t.Errorf("%+v", h)
	}
	run(t, c, "ha 100 started", "maintenance pve2 on")
	if err := errors.Join(
		c.SetHARules(
			pvesim.HARule{ID: "here", Resources: []int{100}, Nodes: map[string]int{"pve1": 2, "pve3": 2}, Strict: true},
			pvesim.HARule{ID: "apart", Resources: []int{102, 100}, Affinity: "negative"},
			pvesim.HARule{ID: "off", Resources: []int{103}, Nodes: map[string]int{"pve1": 0}, Disable: true},
		),
		c.SetHAGroups(pvesim.HAGroup{ID: "fast", Nodes: map[string]int{"pve2": 1, "pve3": 0}, VMs: []int{101}}),
		c.AddPool("web"),
	); err != nil {
		t.Fatal(err)
	}
	newClient(t, c, "pve1").must("PUT /pools", "poolid=web&vms=101,102")
	world := read()
	got := fmt.Sprint(world.HA.Managed(100), world.HA.Managed(101), world.HA.Managed(102), world.HA.Apart(102), "\n")
	for vmid := 100; vmid < 104; vmid++ {
		nodes, strict, rule, ok := world.HA.Allowed(vmid)
		got += fmt.Sprintf("%d %v %v %q %v %q\n", vmid, nodes, strict, rule, ok, world.PoolOf(vmid))
	}
	for _, n := range c.Nodes() {
		got += fmt.Sprintln(n.Name, world.HA.NodeState(n.Name), world.HA.Maintenance(n.Name))
	}
	const want = `true true false [{100 HA rule "apart"}]
100 map[pve1:2 pve3:2] true "HA rule \"here\"" true ""
101 map[pve2:1 pve3:0] false "HA group \"fast\"" true "web"
102 map[] false "" false "web"
103 map[] false "" false ""
pve1 online false
pve2 maintenance true
pve3 online false
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	run(t, c, "maintenance pve2 off")
	if h := read().HA; h.Maintenance("pve2") || h.NodeState("pve2") != "online" {
		t.Errorf("after its maintenance pve2 is %q, %v", h.NodeState("pve2"), h.Maintenance("pve2"))
	}
	if _, err := c.Do(t.Context(), "maintenance pve9 on"); err == nil {
		t.Error("a node that is not there can be maintained")
	}
}
