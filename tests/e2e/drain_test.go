package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// root is root of a node, who gives the agent there commands.
func (c *company) root(node string) nodepb.NodeClient {
	c.Helper()
	conn, err := grpc.NewClient("unix:"+c.at[node].agent.Config.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	c.must(err)
	c.Cleanup(func() { _ = conn.Close() })
	return nodepb.NewNodeClient(conn)
}

// fill adds VMs to a node, with disks on its own storage; the even ones run.
func (c *company) fill(node string, options map[string]string, running bool, ids ...int) {
	c.Helper()
	for _, id := range ids {
		more := maps.Clone(options)
		if more == nil {
			more = map[string]string{}
		}
		if more["name"] = fmt.Sprintf("vm-%d", id); more["memory"] == "" {
			more["memory"] = fmt.Sprint(256 + id)
		}
		c.must(c.sim.AddVM(id, node, more))
		if running {
			c.must(c.sim.StartVM(id))
		}
	}
	for name, at := range c.at {
		c.eventually("the agent of "+name+" knows the VMs", func() bool {
			d, err := at.describe(fmt.Sprint(ids[len(ids)-1]))
			return err == nil && d.GetExists()
		})
	}
}

// where says which node has each VM, and marks those that do not run.
func (c *company) where(ids ...int) string {
	var out []string
	for _, id := range ids {
		owner, _ := c.sim.Owner(id)
		if !c.sim.Running(id) {
			owner += "-off"
		}
		out = append(out, fmt.Sprintf("%d:%s", id, owner))
	}
	return strings.Join(out, " ")
}

// ended waits for the end of a drain or restore of a node.
func (c *company) ended(client nodepb.NodeClient, node string) *nodepb.DrainResponse {
	c.Helper()
	var resp *nodepb.DrainResponse
	c.eventually("the end of it", func() bool {
		var err error
		if resp, err = client.Evacuation(c.ctx, &nodepb.EvacuationRequest{Node: node}); err != nil {
			c.Fatal(err)
		}
		return resp.GetState() != "running" && resp.GetState() != "stopping"
	})
	return resp
}

// moves is what an answer says of each VM.
func moves(resp *nodepb.DrainResponse) string {
	var out []string
	for _, m := range resp.GetMoves() {
		text := fmt.Sprintf("%d:%s", m.GetVmid(), m.GetState())
		if m.GetState() == "stays" || m.GetState() == "failed" {
			text += " (" + m.GetReason() + ")"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// inService reports what the health service of a node's agent tells balancers.
func (c *company) inService(node string) bool {
	c.Helper()
	resp, err := grpc_health_v1.NewHealthClient(c.at[node].agent.Conn).Check(c.ctx, &grpc_health_v1.HealthCheckRequest{})
	c.must(err)
	return resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// TestCordonThroughAnotherNode: the agent that is asked writes it down, all see it, and it needs no agent of the node.
func TestCordonThroughAnotherNode(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.must(c.at["pve2"].agent.Stop())
	resp, err := c.root("pve1").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve2", Reason: "new disks"})
	if err != nil || !resp.GetChanged() || resp.GetView().GetNode() != "pve1" {
		t.Fatalf("%v, %v", resp, err)
	}
	if again, err := c.root("pve3").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve2"}); err != nil || again.GetChanged() {
		t.Errorf("again: %v, %v", again, err)
	}
	_, err = c.root("pve1").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve9"})
	refused(t, err, codes.NotFound, `no node "pve9"`)
	c.at["pve2"].agent = c.startAgentOn("pve2")
	c.eventually("pve2 tells that it is cordoned", func() bool { return c.at["pve2"].cordoned("pve2") && c.at["pve3"].cordoned("pve2") })
	if !c.inService("pve2") {
		t.Error("a node that is only cordoned is left by balancers")
	}
	if resp, err := c.root("pve3").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve2", Uncordon: true}); err != nil || !resp.GetChanged() {
		t.Errorf("uncordon: %v, %v", resp, err)
	}
	c.eventually("the cordon is lifted", func() bool { return !c.at["pve2"].cordoned("pve2") })
}

// TestCordonNeedsQuorum, and not the node: a node that is cut off cannot cordon, and can be cordoned.
func TestCordonNeedsQuorum(t *testing.T) {
	t.Parallel()
	c := assemble(t, fuse)
	c.must(c.sim.Partition([][]string{{"pve3"}, {"pve1", "pve2"}}))
	c.eventually("pve3 has no quorum", func() bool { return c.at["pve3"].validate() != "" })
	_, err := c.root("pve3").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve1"})
	refused(t, err, codes.FailedPrecondition, "node pve3 has no quorum")
	_, err = c.root("pve3").Drain(c.ctx, &nodepb.DrainRequest{Node: "pve3"})
	refused(t, err, codes.FailedPrecondition, "node pve3 has no quorum")
	for _, reason := range []string{"cut off", "new disks"} { // the second one takes the place of a file
		if resp, err := c.root("pve1").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve3", Reason: reason}); err != nil || !resp.GetChanged() {
			t.Errorf("%q: %v, %v", reason, resp, err)
		}
	}
	c.eventually("pve2 knows that pve3 is cordoned", func() bool { return c.at["pve2"].cordoned("pve3") })
	if c.at["pve3"].cordoned("pve3") {
		t.Error("pve3 knows of a cordon from which it is cut off")
	}
	c.must(c.sim.Heal())
	c.eventually("pve3 knows that it is cordoned", func() bool { return c.at["pve3"].cordoned("pve3") })
}

// TestDrainAndRestore empties a node, whose agent then is left by balancers and answers all the same, and fills it again.
func TestDrainAndRestore(t *testing.T) {
	t.Parallel()
	c := assemble(t, secure)
	c.fill("pve2", nil, true, 101, 102, 103, 104)
	c.fill("pve2", nil, false, 105)
	c.must(c.sim.AddHA(103, "started"))
	root := c.root("pve2")
	plan, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", DryRun: true})
	if err != nil || moves(plan) != "101:planned, 102:planned, 103:planned, 104:planned" || plan.GetState() != "planned" {
		t.Fatalf("%v, %v", plan, err)
	}
	if first := plan.GetMoves()[0]; first.GetVmid() != 104 || first.GetMemory() != 360<<20 || !first.GetRunning() {
		t.Errorf("the largest does not come first: %v", plan)
	}
	if c.where(101, 105) != "101:pve2 105:pve2-off" || !c.inService("pve2") {
		t.Error("a dry run has done something")
	}
	if _, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2"}); err != nil {
		t.Fatal(err)
	}
	end := c.ended(root, "pve2")
	if end.GetState() != "done" || moves(end) != "101:moved, 102:moved, 103:moved, 104:moved" {
		t.Fatal(end)
	}
	for _, m := range end.GetMoves() {
		if owner, _ := c.sim.Owner(int(m.GetVmid())); owner == "pve2" || owner != m.GetTo() || !c.sim.Running(int(m.GetVmid())) || m.GetHa() != (m.GetVmid() == 103) {
			t.Errorf("VM %d is on %s, %v", m.GetVmid(), owner, m)
		}
	}
	if n := c.sim.TaskCount("hamigrate"); n != 1 {
		t.Errorf("%d requests to HA", n)
	}
	if c.where(105) != "105:pve2-off" {
		t.Error("a VM that did not run was moved")
	}
	c.eventually("the decision about a VM can be explained", func() bool {
		why, err := c.root("pve1").Explain(c.ctx, &nodepb.ExplainRequest{Vm: "vm-104"})
		return err == nil && len(why.GetPlacements()) == 1 && why.GetPlacements()[0].GetAct() == "drain" && why.GetPlacements()[0].GetDecidedBy() == "pve2"
	})
	c.eventually("pve2 is left by balancers", func() bool { return !c.inService("pve2") })
	if code, text := c.at["pve2"].get("/readyz"); code != http.StatusServiceUnavailable || text != "draining\n" {
		t.Errorf("readyz: %d %q", code, text)
	}
	if d := c.at["pve2"].described("101"); d.GetPowerState() != "On" {
		t.Errorf("through the node that was drained: %v", d)
	}
	if _, err := root.Restore(c.ctx, &nodepb.RestoreRequest{Node: "pve2"}); err != nil {
		t.Fatal(err)
	}
	back := c.ended(root, "pve2")
	if back.GetAct() != "restore" || back.GetState() != "done" || len(back.GetMoves()) != 4 {
		t.Error(back)
	}
	if got := c.where(101, 102, 103, 104, 105); got != "101:pve2 102:pve2 103:pve2 104:pve2 105:pve2-off" {
		t.Errorf("after the restore: %s", got)
	}
	c.eventually("pve2 serves again", func() bool { return c.inService("pve2") })
	if again, err := root.Restore(c.ctx, &nodepb.RestoreRequest{Node: "pve2", DryRun: true}); err != nil || len(again.GetMoves()) != 0 {
		t.Errorf("there is nothing left to restore: %v, %v", again, err)
	}
}

// TestDrainIsRefused: a plan with a VM that cannot go is refused before anything is done, unless that is wanted; then what
// fails is told.
func TestDrainIsRefused(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.fill("pve2", nil, true, 101)
	c.fill("pve2", map[string]string{"hostpci0": "0000:01:00.0"}, true, 102)
	c.must(c.sim.AddContainer(103, "pve2"))
	c.fill("pve2", nil, true, 104)
	c.must(c.sim.AddHA(104, "started"))
	c.eventually("pve2 knows the container", func() bool {
		resp, err := c.root("pve2").VMs(c.ctx, &nodepb.VMsRequest{Node: "pve2"})
		return err == nil && len(resp.GetVms()) == 4
	})
	root := c.root("pve2")
	const plan = "101:planned, 102:stays (it uses a device or feature of its host (hostpci0)), 103:stays (it is a container), 104:planned"
	for _, through := range []string{"pve1", "pve2"} {
		resp, err := c.root(through).Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", DryRun: true})
		if err != nil || moves(resp) != plan || resp.GetView().GetNode() != "pve2" {
			t.Errorf("through %s: %v, %v", through, resp, err)
		}
	}
	_, err := c.root("pve1").Drain(c.ctx, &nodepb.DrainRequest{Node: "pve9"})
	refused(t, err, codes.NotFound, `no node "pve9"`)
	_, err = c.root("pve3").Evacuation(c.ctx, &nodepb.EvacuationRequest{Node: "pve2"})
	refused(t, err, codes.NotFound, "no drain or restore since its agent was started")
	_, err = root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2"})
	refused(t, err, codes.FailedPrecondition, "nothing was begun", "VM 102 (vm-102) stays: it uses a device or feature of its host (hostpci0)", "--force")
	if c.where(101) != "101:pve2" || !c.inService("pve2") {
		t.Error("a refused drain has done something")
	}
	for range 2 { // what HA is asked for and cannot do, to either node
		c.sim.FailTask("qmigrate", 104, "migration aborted")
	}
	if _, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", Force: true}); err != nil {
		t.Fatal(err)
	}
	end := c.ended(root, "pve2")
	for _, m := range end.GetMoves() {
		if m.GetVmid() == 104 && (m.GetState() != "failed" || strings.Count(m.GetReason(), "the HA manager has tried") != 2) {
			t.Errorf("what HA could not do: %v", m)
		}
	}
	if end.GetState() != "failed" || !strings.HasPrefix(moves(end), "101:moved, 102:stays") || c.where(102) != "102:pve2" {
		t.Errorf("%v %v", end, c.where(102))
	}
}

// TestDrainIsStopped: what is under way ends, nothing more begins, and what was moved can be brought back.
func TestDrainIsStopped(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.fill("pve2", nil, true, 101, 102, 103)
	release := c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	root := c.root("pve2")
	if _, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	c.eventually("a move is under way", func() bool { return c.sim.TaskCount("qmigrate") == 1 })
	if _, err := root.Restore(c.ctx, &nodepb.RestoreRequest{Node: "pve2"}); err == nil {
		t.Error("a restore in the middle of a drain")
	}
	resp, err := root.StopEvacuation(c.ctx, &nodepb.StopEvacuationRequest{Node: "pve2"})
	if err != nil || resp.GetState() != "stopping" {
		t.Errorf("%v, %v", resp, err)
	}
	release()
	end := c.ended(root, "pve2")
	if end.GetState() != "stopped" || moves(end) != "101:planned, 102:planned, 103:moved" {
		t.Errorf("%v", end)
	}
	if got := c.where(101, 102); got != "101:pve2 102:pve2" {
		t.Error(got)
	}
	if _, err := root.Restore(c.ctx, &nodepb.RestoreRequest{Node: "pve2"}); err != nil {
		t.Fatal(err)
	}
	if end := c.ended(root, "pve2"); end.GetState() != "done" || c.where(101, 102, 103) != "101:pve2 102:pve2 103:pve2" {
		t.Errorf("%v %s", end, c.where(101, 102, 103))
	}
}

// TestDrainAndCordons: a target that is cordoned meanwhile gets no further VM, a VM that is powered off meanwhile stays, and
// who lifts the cordon of the node that is drained stops the drain.
func TestDrainAndCordons(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.fill("pve2", nil, true, 100, 101, 102)
	release := c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	root := c.root("pve2")
	resp, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	target := resp.GetMoves()[1].GetTo()
	other := map[string]string{"pve1": "pve3", "pve3": "pve1"}[target]
	c.eventually("the first move is under way", func() bool { return c.sim.TaskCount("qmigrate") == 1 })
	_, err = root.Cordon(c.ctx, &nodepb.CordonRequest{Node: target})
	c.must(err)
	c.eventually("the target knows of its cordon", func() bool { return c.at[target].cordoned(target) })
	c.must(c.sim.KillVM(100))
	release()
	if end := c.ended(root, "pve2"); end.GetState() != "done" || moves(end) != "101:moved, 102:moved" || c.where(100, 101) != "100:pve2-off 101:"+other {
		t.Errorf("%v %s", end, c.where(100, 101))
	}

	_, err = root.Cordon(c.ctx, &nodepb.CordonRequest{Node: target, Uncordon: true})
	c.must(err)
	c.fill("pve2", nil, true, 103, 104)
	release = c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	if _, err := c.root("pve1").Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2", Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the third move is under way", func() bool { return c.sim.TaskCount("qmigrate") == 3 })
	_, err = c.root("pve1").Cordon(c.ctx, &nodepb.CordonRequest{Node: "pve2", Uncordon: true})
	c.must(err)
	c.eventually("pve2 knows that it has no cordon any more", func() bool { return !c.at["pve2"].cordoned("pve2") })
	release()
	end := c.ended(root, "pve2")
	if end.GetState() != "stopped" || !strings.Contains(end.GetMessage(), "cordon of the node was lifted") || moves(end) != "103:planned, 104:moved" || c.where(103) != "103:pve2" {
		t.Errorf("%v %s", end, c.where(103))
	}
}

// cordoned reports whether the agent tells that a node is cordoned.
func (s *stage) cordoned(node string) bool {
	s.Helper()
	for _, m := range s.members() {
		if m.GetName() == node {
			return m.GetCapacity().GetCordoned()
		}
	}
	return false
}

// TestDrainSurvivesItsAgent: the agent dies in the middle, and the next one goes on.
func TestDrainSurvivesItsAgent(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.fill("pve2", nil, true, 101, 102, 103)
	release := c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	if _, err := c.root("pve2").Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2"}); err != nil {
		t.Fatal(err)
	}
	c.eventually("two moves are under way", func() bool { return c.sim.TaskCount("qmigrate") == 2 })
	c.must(c.at["pve2"].agent.Stop())
	release()
	c.at["pve2"].agent = c.startAgentOn("pve2")
	root := c.root("pve2")
	if end := c.ended(root, "pve2"); end.GetState() != "done" || moves(end) != "101:moved, 102:moved, 103:moved" {
		t.Fatal(end)
	}
	if n := c.sim.TaskCount("qmigrate"); n != 3 {
		t.Errorf("%d migrations of 3 VMs", n)
	}
	plan, err := root.Restore(c.ctx, &nodepb.RestoreRequest{Node: "pve2", DryRun: true})
	if err != nil || moves(plan) != "101:planned, 102:planned, 103:planned" {
		t.Errorf("what it would bring back: %v, %v", plan, err)
	}
}

// TestDrainTargetDies: the VM that was on its way goes on where it is, and then to another node.
func TestDrainTargetDies(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	c.fill("pve2", nil, true, 101)
	release := c.sim.HoldTasksOn("pve2", "qmigrate")
	defer release()
	root := c.root("pve2")
	resp, err := root.Drain(c.ctx, &nodepb.DrainRequest{Node: "pve2"})
	if err != nil {
		t.Fatal(err)
	}
	dying := resp.GetMoves()[0].GetTo()
	c.eventually("the move is under way", func() bool { return c.sim.TaskCount("qmigrate") == 1 })
	c.must(c.sim.KillNode(dying))
	release()
	end := c.ended(root, "pve2")
	other := map[string]string{"pve1": "pve3", "pve3": "pve1"}[dying]
	if end.GetState() != "done" || c.where(101) != "101:"+other {
		t.Errorf("%v %s", end, c.where(101))
	}
}
