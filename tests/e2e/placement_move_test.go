package e2e

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// shared makes VMs from the template on shared storage, which pve1 has.
var shared = from("9001")

// alone checks that there is one VM of a name, on a node, with one record that names it.
func (c *company) alone(name, id, node string) {
	c.Helper()
	if made := c.made(name); !slices.Equal(made, []int{vmid(c, id)}) {
		c.Errorf("%s: VMs %v, the id is %s", name, made, id)
	}
	if home := c.home(id); home != node {
		c.Errorf("%s is on %s, want %s", name, home, node)
	}
	for through, s := range c.at {
		if c.sim.Node(through) == nil || s.agent == nil {
			continue
		}
		if d, err := s.describe(id); err != nil || !d.GetExists() {
			c.Errorf("%s through %s: %v, %v", id, through, d, err)
		}
	}
	if conf := c.config(id); conf["lock"] != "" || conf["smbios1"] == "" {
		c.Errorf("%s: %v", id, conf)
	}
}

// TestPlacementMoves: a template on shared storage serves all nodes. The node that has it makes the VM, which then moves;
// if it cannot, it stays, and is what was asked for all the same.
func TestPlacementMoves(t *testing.T) {
	t.Parallel()
	c := assemble(t, quick).acquainted()
	id := c.at["pve2"].create(request("moved", shared, placed("pve3"), func(r *providerpb.CreateRequest) {
		r.UserData = []byte("#cloud-config\nhostname: moved\n")
	}))
	if again := c.at["pve1"].create(request("moved", shared)); again != id {
		t.Errorf("a repeat made %s, the first was %s", again, id)
	}
	c.alone("moved", id, "pve3")
	if clones, moves := c.sim.TaskCount("qmclone"), c.sim.TaskCount("qmigrate"); clones != 1 || moves != 1 {
		t.Errorf("%d clones, %d moves", clones, moves)
	}
	c.at["pve1"].on(id)

	// The target is cordoned, or cannot be asked, or PVE cannot move it, by the time the VM is made.
	stays := func(name string, meanwhile func()) {
		t.Helper()
		release := c.sim.HoldTasks("qmclone")
		defer release()
		first := c.at["pve2"].began(request(name, shared, placed("pve3")))
		again := c.at["pve1"].began(request(name, shared, placed("pve3")))
		if again.GetId() != first.GetId() || again.GetTask().GetId() != first.GetTask().GetId() {
			t.Errorf("%s: a repeat got %v, the first %v", name, again, first)
		}
		meanwhile()
		release()
		if failure := c.outcome(first.GetTask()); failure != "" {
			t.Errorf("%s: %s", name, failure)
		}
		c.alone(name, first.GetId(), "pve1")
		c.on(first.GetId())
	}
	stays("cordoned", func() { c.cordon("pve3") })
	c.uncordon("pve3")
	stays("failed", func() { c.sim.FailTask("qmigrate", 0, "migration aborted") })
	stays("dead", func() {
		c.must(c.at["pve3"].agent.Stop())
		delete(c.at, "pve3")
		c.must(c.sim.KillNode("pve3"))
	})
	for _, name := range []string{"cordoned", "failed", "dead"} {
		c.must(c.delete(fmt.Sprint(c.made(name)[0])))
	}
}

// TestPlacementOfClones: a copy of a VM with shared disks may be anywhere, one with a disk of its node stays there.
func TestPlacementOfClones(t *testing.T) {
	t.Parallel()
	c := assemble(t).acquainted()
	free := c.create(request("free", shared, placed("pve1")))
	bound := c.create(request("bound", placed("pve1")))
	c.cordon("pve1")
	id := c.at["pve2"].clone(copyOf(free, "free-2"))
	if home := c.home(id); home == "pve1" {
		t.Error("on a node that is cordoned")
	} else {
		c.alone("free-2", id, home)
	}
	why := fmt.Sprintf("cannot get a copy of VM %d, which is on node pve1: its disk on local would stay there", vmid(t, bound))
	refused(t, c.at["pve2"].tryClone(copyOf(bound, "bound-2")), codes.FailedPrecondition,
		"clone bound-2: no node fits: pve1 cordoned, pve2 "+why+", pve3 "+why)
	refused(t, c.at["pve3"].tryCreate(request("bound-3")), codes.FailedPrecondition, `create bound-3: no node fits: pve1 cordoned, pve2 has no replica of "linux-template"`)
	if made := append(c.made("bound-2"), c.made("bound-3")...); len(made) > 0 {
		t.Errorf("made %v", made)
	}
	// The linked clone of a template on shared storage is no other case: its disk depends on the template's, not on a node.
	linkedID := c.at["pve3"].clone(copyOf("9001", "linked", linked))
	c.alone("linked", linkedID, c.home(linkedID))
	if c.home(linkedID) == "pve1" {
		t.Error("a linked clone is on a node that is cordoned")
	}
}
