package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

const snapshotPath = "/nodes/*/qemu/*/snapshot"

func (s *stage) trySnapshot(id, name string, change ...func(*providerpb.SnapshotCreateRequest)) (*providerpb.SnapshotCreateResponse, error) {
	r := &providerpb.SnapshotCreateRequest{VmId: id, NameHint: name}
	for _, f := range change {
		f(r)
	}
	return s.agent.Provider.SnapshotCreate(s.ctx, r)
}

// snapshot takes a snapshot, waits for it and returns its id.
func (s *stage) snapshot(id, name string, change ...func(*providerpb.SnapshotCreateRequest)) string {
	s.Helper()
	r, err := s.trySnapshot(id, name, change...)
	if err != nil {
		s.Fatalf("snapshot %s of %s: %v", name, id, err)
	}
	if failure := s.outcome(r.GetTask()); failure != "" {
		s.Fatalf("snapshot %s of %s: %s", name, id, failure)
	}
	return r.GetSnapshotId()
}

func withMemory(r *providerpb.SnapshotCreateRequest) { r.IncludeMemory = true }

func described(text string) func(*providerpb.SnapshotCreateRequest) {
	return func(r *providerpb.SnapshotCreateRequest) { r.Description = text }
}

func (s *stage) tryUnsnapshot(id, snapshot string) (*providerpb.TaskResponse, error) {
	return s.agent.Provider.SnapshotDelete(s.ctx, &providerpb.SnapshotDeleteRequest{VmId: id, SnapshotId: snapshot})
}

func (s *stage) unsnapshot(id, snapshot string) {
	s.Helper()
	r, err := s.tryUnsnapshot(id, snapshot)
	if err != nil {
		s.Fatalf("delete snapshot %s of %s: %v", snapshot, id, err)
	}
	if failure := s.outcome(r.GetTask()); failure != "" {
		s.Fatalf("delete snapshot %s of %s: %s", snapshot, id, failure)
	}
}

// revert goes back to a snapshot and returns how that ended.
func (s *stage) revert(id, snapshot string) error {
	s.Helper()
	r, err := s.agent.Provider.SnapshotRevert(s.ctx, &providerpb.SnapshotRevertRequest{VmId: id, SnapshotId: snapshot})
	if err != nil {
		return err
	}
	if failure := s.outcome(r.GetTask()); failure != "" {
		return status.Error(codes.Unknown, failure)
	}
	return nil
}

// snapshots are the snapshots of a VM as they stand in its file.
func (s *stage) snapshots(id string) map[string]vmconf.Section {
	s.Helper()
	owner, _ := s.sim.Owner(vmid(s, id))
	return vmconf.Parse(s.file("etc/pve/nodes", owner, "qemu-server", fmt.Sprint(vmid(s, id))+".conf")).Snapshots
}

// TestSnapshots walks through the life of snapshots, on each version of PVE.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"7.4", "8.4", "9.1"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			aSnapshotsLife(start(t, ofVersion(version)))
		})
	}
}

func aSnapshotsLife(s *stage) {
	s.Helper()
	id := s.create(request("web-01"))
	first := s.snapshot(id, "v1.2", described("before the upgrade\nby hand"))
	if first != "v1_2" {
		s.Errorf("the snapshot is called %s", first)
	}
	s.on(id)
	long := strings.Repeat("very-long-", 12) + "name"
	second := s.snapshot(id, long, withMemory)
	snaps := s.snapshots(id)
	if a, b := snaps[first], snaps[second]; len(snaps) != 2 || a["vmstate"] != "" || b["vmstate"] == "" || b["parent"] != first ||
		a[vmconf.Description] != "before the upgrade\nby hand" || b[vmconf.Description] != "Snapshot name: "+long {
		s.Errorf("snapshots %v", snaps)
	}

	s.must(s.sim.SetConfig(vmid(s, id), map[string]string{"cores": "4"}))
	s.must(s.revert(id, long)) // with memory: it runs again, as it did
	if d := s.described(id); d.GetPowerState() != "On" || s.raw(d)["cpus"] != "2" || !s.sim.Running(vmid(s, id)) {
		s.Errorf("after going back with memory: %v", d)
	}
	s.must(s.revert(id, "v1.2")) // without memory it is started again
	if d := s.described(id); d.GetPowerState() != "On" || !s.sim.Running(vmid(s, id)) {
		s.Errorf("after going back without memory: %v", d)
	}
	s.off(id)
	s.must(s.revert(id, first))
	if d := s.described(id); d.GetPowerState() != "Off" || s.sim.Running(vmid(s, id)) {
		s.Errorf("after going back, turned off: %v", d)
	}
	s.must(s.revert(id, second)) // the state of a machine that runs
	if d := s.described(id); d.GetPowerState() != "On" {
		s.Errorf("after going back with memory, turned off: %v", d)
	}
	s.off(id)

	s.unsnapshot(id, long)
	s.unsnapshot(id, first)
	for _, gone := range []string{long, first, "v1.2", "never-was"} {
		s.silent("deleting what is not there", func() { s.unsnapshot(id, gone) })
	}
	if left := s.snapshots(id); len(left) != 0 {
		s.Errorf("left: %v", left)
	}
	s.must(s.delete(id))
	s.silent("deleting a snapshot of a VM that is gone", func() { s.unsnapshot(id, first) })
	_, err := s.trySnapshot(id, "late")
	refused(s, err, codes.NotFound, id)
}

// TestASnapshotIsTakenOnce: the manager asks twice for most of them, and the repeat may come at any time.
func TestASnapshotIsTakenOnce(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, nil)
	release := s.sim.HoldTasks("qmsnapshot")
	defer release()
	const callers = 6
	type answer struct {
		r   *providerpb.SnapshotCreateResponse
		err error
	}
	answers := make(chan answer)
	for range callers {
		go func() {
			r, err := s.trySnapshot("500", "nightly.1")
			answers <- answer{r, err}
		}()
	}
	tasks := map[string]bool{}
	var task *providerpb.TaskRef
	for range callers {
		a := <-answers
		if a.err != nil || a.r.GetSnapshotId() != "nightly_1" {
			t.Errorf("%v, err %v", a.r, a.err)
		}
		task = a.r.GetTask()
		tasks[task.GetId()] = true
	}
	if len(tasks) != 1 || task.GetId() == "" {
		t.Errorf("tasks %v, want one", tasks)
	}
	release()
	if failure := s.outcome(task); failure != "" {
		t.Error(failure)
	}
	s.silent("a repeat of what is done", func() {
		r, err := s.trySnapshot("500", "nightly.1", withMemory, described("other"))
		if err != nil || r.GetSnapshotId() != "nightly_1" || r.GetTask().GetId() != "" {
			t.Errorf("a repeat got %v, err %v", r, err)
		}
	})
	if n := s.sim.TaskCount("qmsnapshot"); n != 1 {
		t.Errorf("%d were taken", n)
	}
	if left := s.snapshots("500"); len(left) != 1 {
		t.Errorf("snapshots %v", left)
	}
}

// TestTwoSnapshotsAtOnce: PVE locks a VM for each, and the other waits for its turn.
func TestTwoSnapshotsAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, nil)
	var tasks []*providerpb.TaskRef
	for _, name := range []string{"one", "two", "three"} {
		r, err := s.trySnapshot("500", name)
		s.must(err)
		tasks = append(tasks, r.GetTask())
	}
	for _, task := range tasks {
		if failure := s.outcome(task); failure != "" {
			t.Error(failure)
		}
	}
	if got := s.snapshots("500"); len(got) != 3 {
		t.Errorf("snapshots %v", got)
	}
}

// TestASnapshotWaitsForABackup, and its removal too; going back does not.
func TestASnapshotWaitsForABackup(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, nil)
	s.snapshot("500", "old")
	s.must(s.sim.SetLock(500, "backup"))
	err := s.revert("500", "old")
	refused(t, err, codes.FailedPrecondition, "locked (backup)", "old")
	r, err := s.trySnapshot("500", "new")
	s.must(err)
	d, err := s.tryUnsnapshot("500", "old")
	s.must(err)
	short, err := s.trySnapshot("500", "short-lived") // and removed before it was taken
	s.must(err)
	gone, err := s.tryUnsnapshot("500", short.GetSnapshotId())
	s.must(err)
	all := []*providerpb.TaskRef{r.GetTask(), d.GetTask(), short.GetTask(), gone.GetTask()}
	for _, task := range all {
		if task.GetId() == "" || s.poll(task).GetDone() {
			t.Errorf("task %q is not under way", task.GetId())
		}
	}
	if n := s.sim.TaskCount("qmdelsnapshot"); n != 0 {
		t.Errorf("PVE was asked %d times for what it would refuse", n)
	}
	s.must(s.sim.SetLock(500, ""))
	for _, task := range all {
		if failure := s.outcome(task); failure != "" {
			t.Error(failure)
		}
	}
	got := s.snapshots("500")
	if _, ok := got["new"]; !ok || len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
}

// TestRemovedWhileItIsTaken: the one that was asked for later has the last word.
func TestRemovedWhileItIsTaken(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, nil)
	release := s.sim.HoldTasks("qmsnapshot")
	defer release()
	first, err := s.trySnapshot("500", "x1")
	s.must(err)
	removal, err := s.tryUnsnapshot("500", first.GetSnapshotId())
	s.must(err)
	if removal.GetTask().GetId() == "" {
		t.Error("it is said to be removed while it is being taken")
	}
	release()
	for _, task := range []*providerpb.TaskRef{first.GetTask(), removal.GetTask()} {
		if failure := s.outcome(task); failure != "" {
			t.Error(failure)
		}
	}
	if got := s.snapshots("500"); len(got) != 0 {
		t.Errorf("snapshots %v", got)
	}

	s.snapshot("500", "x1")
	release = s.sim.HoldTasks("qmdelsnapshot")
	defer release()
	removal, err = s.tryUnsnapshot("500", "x1")
	s.must(err)
	again, err := s.trySnapshot("500", "x1")
	s.must(err)
	if again.GetTask().GetId() == "" {
		t.Error("a snapshot is said to be there that is being removed")
	}
	release()
	for _, task := range []*providerpb.TaskRef{removal.GetTask(), again.GetTask()} {
		if failure := s.outcome(task); failure != "" {
			t.Error(failure)
		}
	}
	if got := s.snapshots("500"); len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
}

// TestSnapshotsThatCannotBe are refused before PVE is asked for anything.
func TestSnapshotsThatCannotBe(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i, tc := range []struct {
		name    string
		options map[string]string
		code    codes.Code
		names   []string
	}{
		{
			"raw",
			map[string]string{"scsi1": "local:500/vm-500-disk-1.raw,size=1G"},
			codes.FailedPrecondition,
			[]string{"scsi1", "vm-500-disk-1.raw", "raw", "storage local", "type dir", "--format qcow2"},
		},
		{
			"tpm",
			map[string]string{"tpmstate0": "local:501/vm-501-disk-1.raw,size=4M,version=v2.0", "efidisk0": "local:501/vm-501-disk-2.qcow2"},
			codes.FailedPrecondition,
			[]string{"tpmstate0", "TPM", "storage local", "qm disk move 501 tpmstate0"},
		},
		{"passed through", map[string]string{"virtio3": "/dev/disk/by-id/x"}, codes.FailedPrecondition, []string{"virtio3", "/dev/disk/by-id/x"}},
	} {
		s.add(500+i, tc.options)
		s.silent(tc.name, func() {
			_, err := s.trySnapshot(fmt.Sprint(500+i), "x1")
			refused(t, err, tc.code, tc.names...)
			if strings.Contains(err.Error(), "scsi0") || strings.Contains(err.Error(), "efidisk0") {
				t.Errorf("%s: a disk is named that could be: %v", tc.name, err)
			}
		})
	}
	s.add(510, map[string]string{"ide2": "local:510/vm-510-cloudinit.raw,media=cdrom", "ide0": "none,media=cdrom"})
	s.snapshot("510", "fine")

	s.silent("a template", func() {
		_, err := s.trySnapshot(fmt.Sprint(template), "x1")
		refused(t, err, codes.FailedPrecondition, "template")
	})
	s.silent("bad requests", func() {
		for _, name := range []string{"", "two\nlines", strings.Repeat("x", 254), " x"} {
			_, err := s.trySnapshot("510", name)
			refused(t, err, codes.InvalidArgument, "name_hint")
		}
		_, err := s.trySnapshot("510", "x1", described(strings.Repeat("x", 9000)))
		refused(t, err, codes.InvalidArgument, "description")
		_, err = s.trySnapshot("x", "x1")
		refused(t, err, codes.InvalidArgument, "vm id")
		_, err = s.tryUnsnapshot("510", "")
		refused(t, err, codes.InvalidArgument, "snapshot_id")
		refused(t, s.revert("510", ""), codes.InvalidArgument, "snapshot_id")
		refused(t, s.revert("510", "never-was"), codes.NotFound, "never-was", "510")
	})
}

// TestPVEHasTheLastWord about what can be snapshot.
func TestPVEHasTheLastWord(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.sim.Fail(pvesim.Match("GET", "/nodes/*/qemu/500/feature"), 500, "something odd", 1)
	_, err := s.trySnapshot("500", "x1")
	refused(t, err, codes.FailedPrecondition, "something odd", "x1")
	s.sim.FailTask("qmsnapshot", 500, "no space left on device")
	_, err = s.trySnapshot("500", "x1")
	refused(t, err, codes.ResourceExhausted, "no space left", "x1", "500")
	s.sim.FailTask("qmrollback", 500, "can't rollback, 'x1' is not most recent snapshot on 'local-zfs:vm-500-disk-0'")
	s.snapshot("500", "x1")
	s.snapshot("500", "x2")
	refused(t, s.revert("500", "x1"), codes.FailedPrecondition, "newest", "x2", "delete them first")
}

// TestSnapshotLocksPass: after a rollback `qm cleanup` may hold the lock of a VM for 30 s, longer than PVE waits for it.
func TestSnapshotLocksPass(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	var held atomic.Pointer[os.File]
	s.sim.AfterTask(func(*pvesim.Task) {
		if f := held.Swap(nil); f != nil {
			_ = f.Close()
		}
	})
	for _, step := range []struct {
		task string
		do   func()
	}{
		{"qmsnapshot", func() { s.snapshot("500", "x1") }},
		{"qmrollback", func() { s.must(s.revert("500", "x1")) }},
		{"qmdelsnapshot", func() { s.unsnapshot("500", "x1") }},
	} {
		lock, err := os.OpenFile(filepath.Join(s.agent.Node.Lock, "lock-500.conf"), os.O_CREATE|os.O_RDWR, 0o600)
		s.must(err)
		s.must(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
		held.Store(lock)
		step.do()
		if held.Load() != nil || s.sim.TaskCount(step.task) != 2 {
			t.Errorf("%d tasks %s, want one that times out and one that does not", s.sim.TaskCount(step.task), step.task)
		}
	}
	if got := s.snapshots("500"); len(got) != 0 {
		t.Errorf("snapshots %v", got)
	}
}

// TestMemoryOfAVMThatIsOff is none.
func TestMemoryOfAVMThatIsOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	requests := s.watch("POST", snapshotPath)
	s.snapshot("500", "x1", withMemory)
	if got := requests(); len(got) != 1 || strings.Contains(got[0], "vmstate") {
		t.Errorf("taken by %q", got)
	}
}

// TestASnapshotOfAnotherMachine: going back must not make a VM another one to its clients.
func TestASnapshotOfAnotherMachine(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"})
	s.snapshot("500-01234567", "x1")
	s.set(500, map[string]string{"smbios1": "uuid=fedcba98-89ab-cdef-0123-456789abcdef"})
	s.silent("a refusal", func() {
		refused(t, s.revert("500", "x1"), codes.FailedPrecondition, "01234567-89ab", "fedcba98-89ab", "another machine")
		_, err := s.trySnapshot("500-01234567", "x2")
		refused(t, err, codes.FailedPrecondition, "another machine")
	})
}

// TestSnapshotTasksThatNobodyKnows: their outcome is told by what there is.
func TestSnapshotTasksThatNobodyKnows(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"})
	const id = "500-01234567"
	s.snapshot(id, "x1")
	s.snapshot(id, "x2")
	for _, tc := range []struct {
		kind    ops.Kind
		subject string
		lock    string
		done    bool
		failure string
	}{
		{ops.SnapshotCreate, id + "/x1", "", true, ""},
		{ops.SnapshotCreate, id + "/x1", "snapshot", false, ""},
		{ops.SnapshotCreate, id + "/x9", "", true, "there is none"},
		{ops.SnapshotCreate, id + "/x9", "snapshot", false, ""},
		{ops.SnapshotCreate, id, "", false, ""},
		{ops.SnapshotCreate, "500-76543210/x1", "", false, ""},
		{ops.SnapshotCreate, "12345-01234567/x1", "", true, "does not exist"},
		{ops.SnapshotDelete, id + "/x9", "", true, ""},
		{ops.SnapshotDelete, id + "/x1", "", true, "still there"},
		{ops.SnapshotDelete, id + "/x1", "snapshot-delete", false, ""},
		{ops.SnapshotDelete, "12345-01234567/x1", "", true, ""},
		{ops.SnapshotRevert, id + "/x1", "", false, ""}, // its parent is x2
		{ops.SnapshotRevert, id + "/x2", "", false, ""}, // it was never anywhere else
		{ops.Clone, id, "", true, ""},
		{ops.Clone, id, "clone", false, ""},
		{ops.Clone, "12345-01234567", "", true, "does not exist"},
	} {
		s.must(s.sim.SetLock(500, tc.lock))
		s.eventually("the agent knows the lock", func() bool { return s.raw(s.described(id))["lock"] == tc.lock })
		st := s.poll(&providerpb.TaskRef{Id: ops.Ref{Kind: tc.kind, Node: "pve1", Subject: tc.subject, Op: "01a202a1-69d6-7b82-8643-75218b485c25"}.String()})
		if st.GetDone() != tc.done || (tc.failure == "") != (st.GetError() == "") || !strings.Contains(st.GetError(), tc.failure) {
			t.Errorf("%s of %s, lock %q: %v, want done %v, %q", tc.kind, tc.subject, tc.lock, st, tc.done, tc.failure)
		}
	}
	s.must(s.sim.SetLock(500, ""))
	s.must(s.revert(id, "x1"))
	if st := s.poll(&providerpb.TaskRef{Id: ops.Ref{Kind: ops.SnapshotRevert, Node: "pve1", Subject: id + "/x1", Op: "01a202a1-69d6-7b82-8643-75218b485c25"}.String()}); !st.GetDone() || st.GetError() != "" {
		t.Errorf("after going back: %v", st)
	}
}

// TestTheSnapshotOfAVMThatMoves is removed where the VM is then: nobody asks a second time.
func TestTheSnapshotOfAVMThatMoves(t *testing.T) {
	t.Parallel()
	s := start(t, quick, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.add(500, map[string]string{"scsi0": "none,media=cdrom"}) // nothing that would have to move
	s.snapshot("500", "x1")
	s.must(s.sim.SetLock(500, "migrate"))
	r, err := s.tryUnsnapshot("500", "x1")
	s.must(err)
	s.must(s.sim.MoveVM(500, "pve2"))
	s.must(s.sim.SetLock(500, ""))
	if failure := s.outcome(r.GetTask()); failure != "" {
		t.Error(failure)
	}
	if left := s.snapshots("500"); len(left) != 0 {
		t.Errorf("snapshots %v", left)
	}
}
