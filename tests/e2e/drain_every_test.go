//go:build every

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// TestDrainOfFifty drains a node with 50 VMs; one of the two targets dies in the middle. In the end every VM has one
// config in the whole cluster and, on a node that lives, one process.
func TestDrainOfFifty(t *testing.T) {
	const first, count, parallel = 101, 50, 4
	c := assemble(t)
	var ids []int
	for id := first; id < first+count; id++ {
		ids = append(ids, id)
	}
	c.fill("pve2", map[string]string{"memory": "64"}, true, ids...)
	for _, id := range ids[:5] {
		c.must(c.sim.AddHA(id, "started"))
	}
	root := c.root("pve2")
	if _, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", Parallel: parallel}); err != nil {
		t.Fatal(err)
	}
	on := func(node string) (n int) {
		for _, id := range ids {
			if owner, _ := c.sim.Owner(id); owner == node {
				n++
			}
		}
		return n
	}
	c.eventually("some VMs have moved", func() bool { return on("pve3") >= 5 })
	release := c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	c.eventually("some are on their way", func() bool {
		held := 0
		for _, task := range c.sim.Tasks() {
			if task.Type() == "qmigrate" && task.Exit() == "" {
				held++
			}
		}
		return held >= parallel-1
	})
	c.must(c.sim.KillNode("pve3"))
	there := on("pve3")
	release()
	end := c.ended(root, "pve2")
	if end.GetState() != "done" || len(end.GetMoves()) != count {
		t.Fatalf("%s: %s", end.GetState(), moves(end))
	}
	// One may just have been handed over when the target died.
	if here, dead := on("pve2"), on("pve3"); here != 0 || dead < there || dead > there+parallel || on("pve1") != count-dead {
		t.Errorf("%d VMs on pve2, %d on pve3, %d when it died", here, dead, there)
	}
	for _, id := range ids {
		files, err := filepath.Glob(filepath.Join(c.sim.Node("pve1").PMXCFS, "nodes", "*", "qemu-server", fmt.Sprintf("%d.conf", id)))
		c.must(err)
		owner, _ := c.sim.Owner(id)
		if len(files) != 1 || c.sim.Running(id) != (owner == "pve1") {
			t.Errorf("VM %d: %v, runs %v", id, files, c.sim.Running(id))
		}
		if conf, err := c.sim.Config(id); err != nil || owner == "pve1" && conf["lock"] != "" {
			t.Errorf("VM %d: %v, %v", id, conf, err)
		}
		for _, node := range []string{"pve1", "pve2"} {
			_, err := os.Stat(filepath.Join(c.sim.Node(node).Run, fmt.Sprintf("%d.pid", id)))
			if (err == nil) != (node == owner) {
				t.Errorf("VM %d of %s has a process on %s: %v", id, owner, node, err == nil)
			}
		}
	}
}
