package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestAFailedTaskIsTold, by every poll of a while, and also after a restart of the agent: the manager never stops
// polling, and a reference that it cannot have answered wedges its VM. (What comes after that while is shown where time
// can be made to pass, in package guest.)
func TestAFailedTaskIsTold(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, map[string]string{"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr9"})
	before := s.inventory()
	release := s.sim.HoldTasks("qmclone")
	defer release()
	s.sim.FailTask("qmclone", 0, "no space left on device")
	c := s.began(request("web-01"))
	release()
	release = s.sim.HoldTasks("qmstart")
	defer release()
	power, err := s.tryPower("500", powerOn)
	s.must(err)
	release()
	tell := func() {
		for _, tc := range []struct {
			task *providerpb.TaskRef
			says string
		}{{c.GetTask(), "no space left on device"}, {power, "bridge 'vmbr9' does not exist"}} {
			if failure := s.outcome(tc.task); !strings.Contains(failure, tc.says) {
				t.Errorf("%s: %q, want %q", tc.task.GetId(), failure, tc.says)
			}
		}
	}
	tell()
	tell()
	s.stop()
	s.startAgent(quick)
	tell()
	s.nothingLeft(before)
	if d, err := s.describe(c.GetId()); err != nil || d.GetExists() {
		t.Errorf("the VM that could not be made: %v, err %v; the manager has to hear that it does not exist", d, err)
	}
}

func TestTaskReferences(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, malformed := range []string{"", "x", "a/b/c", "create/pve1/10000-0123abcd/x/y", "create//10000/x", "create/pve1/%zz/x", "UPID:pve1:00000001:00000001:00000001:qmclone:9000:root@pam:"} {
		_, err := s.agent.Provider.TaskStatus(s.ctx, &providerpb.TaskStatusRequest{Task: &providerpb.TaskRef{Id: malformed}})
		refused(t, err, codes.InvalidArgument, "task")
	}
	_, err := s.agent.Provider.TaskStatus(s.ctx, &providerpb.TaskStatusRequest{})
	refused(t, err, codes.InvalidArgument, "task")

	// The journal that knew these is gone. Of a VM Describe tells what came of it; of other things nothing does, and
	// done would be taken for success.
	for kind, done := range map[ops.Kind]bool{
		ops.Create: true, ops.Delete: true, ops.Power: true, ops.Reconfigure: true,
		ops.Clone: false, ops.SnapshotCreate: false, ops.SnapshotDelete: false, ops.SnapshotRevert: false,
		ops.ImagePrepare: false, ops.ExportDisk: false, ops.ImportDisk: false, "of-a-later-version": false,
	} {
		// Of a node that may come back nothing is said to be done.
		for node, done := range map[string]bool{"pve1": done, "pve9": false} {
			ref := ops.Ref{Kind: kind, Node: node, Subject: "10000-0123abcd", Op: "01a202a1-69d6-7b82-8643-75218b485c25"}
			st := s.poll(&providerpb.TaskRef{Id: ref.String()})
			if kind == ops.Clone && node == "pve1" { // of a VM that certainly does not exist
				if !st.GetDone() || !strings.Contains(st.GetError(), "does not exist") {
					t.Errorf("%s on %s: %v, want its failure", kind, node, st)
				}
				continue
			}
			if st.GetDone() != done || st.GetError() != "" {
				t.Errorf("%s on %s: %v, want done %v without an error", kind, node, st, done)
			}
		}
	}
}

// TestATaskOutlivesTheAgent: a stop interrupts what is under way, and the next start ends it.
func TestATaskOutlivesTheAgent(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	release := s.sim.HoldTasks("qmclone")
	defer release()
	c := s.began(everyStep("web-01"))
	s.stop()
	s.startAgent(quick)
	if st := s.poll(c.GetTask()); st.GetDone() {
		t.Errorf("%v, but its clone is still held", st)
	}
	again := s.began(everyStep("web-01"))
	if again.GetId() != c.GetId() || again.GetTask().GetId() != c.GetTask().GetId() {
		t.Errorf("a repeat got %v, before the restart it was %v", again, c)
	}
	release()
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	s.wellFormed(c.GetId())
	if n := s.sim.TaskCount("qmclone"); n != 1 {
		t.Errorf("%d clones", n)
	}
	s.stop()
	s.startAgent(quick)
	if st := s.poll(c.GetTask()); !st.GetDone() || st.GetError() != "" {
		t.Errorf("after another restart: %v", st)
	}
	if id := s.create(request("web-01")); id != c.GetId() {
		t.Errorf("a repeat after the restart made %s beside %s", id, c.GetId())
	}
}

// TestAFailedCreateIsUndoneAfterARestart: the agent stops while it takes back what it has made.
func TestAFailedCreateIsUndoneAfterARestart(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	before := s.inventory()
	release := s.sim.HoldTasks("qmdestroy")
	defer release()
	s.sim.Fail(pvesim.Match("PUT", configPath), 500, "something odd", 1)
	c, err := s.agent.Provider.Create(s.ctx, everyStep("web-01"))
	s.must(err)
	s.eventually("it is being undone", func() bool { return s.sim.TaskCount("qmdestroy") == 1 })
	s.stop()
	s.startAgent(quick)
	release()
	if failure := s.outcome(c.GetTask()); !strings.Contains(failure, "something odd") {
		t.Errorf("the task says %q", failure)
	}
	s.nothingLeft(before)
}
