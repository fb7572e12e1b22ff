package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const statusPath = "/nodes/*/qemu/*/status/*"

func TestPower(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i, tc := range []struct {
		op      providerpb.PowerOp
		running bool
		task    string // PVE's, "" for none
		want    string
	}{
		{powerOn, false, "qmstart", "On"},
		{powerOn, true, "", "On"},
		{powerOff, true, "qmstop", "Off"},
		{powerOff, false, "", "Off"},
		{graceful, true, "qmshutdown", "Off"},
		{graceful, false, "", "Off"},
		{reboot, false, "qmstart", "On"},
	} {
		id := 500 + i
		t.Run(fmt.Sprintf("%s of a VM that runs %v", tc.op, tc.running), func(t *testing.T) {
			s := s.within(t)
			s.add(id, nil)
			if tc.running {
				s.must(s.sim.StartVM(id))
			}
			change := func() { s.must(s.power(fmt.Sprint(id), tc.op)) }
			before := s.sim.TaskCount("")
			if tc.task == "" {
				s.silent("a change to what is", change)
			} else {
				change()
			}
			tasks := s.sim.Tasks()[before:]
			if tc.task != "" && (len(tasks) != 1 || tasks[0].Type() != tc.task) || tc.task == "" && len(tasks) != 0 {
				t.Errorf("%d tasks, want one %s", len(tasks), tc.task)
			}
			if got := s.described(fmt.Sprint(id)).GetPowerState(); got != tc.want {
				t.Errorf("%s afterwards, want %s", got, tc.want)
			}
			if got := s.sim.Running(id); got != (tc.want == "On") {
				t.Errorf("there is a process: %v", got)
			}
		})
	}
}

// pid is that of a VM's process.
func (s *stage) pid(id int) string {
	b, err := os.ReadFile(filepath.Join(s.rig.Dir, "pve1", "run", "qemu-server", fmt.Sprintf("%d.pid", id)))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func TestRebootOfARunningVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.on("500")
	old := s.pid(500)
	requests := s.watch("POST", statusPath)
	s.must(s.power("500", reboot))
	s.eventually("another process", func() bool { p := s.pid(500); return p != "" && p != old })
	s.eventually("On", func() bool { return s.described("500").GetPowerState() == "On" })
	if got := requests(); len(got) != 1 || !strings.Contains(got[0], "/status/reboot") {
		t.Errorf("rebooted by %q", got)
	}
}

// TestGracefulOfAGuestThatDoesNotListen: it is given its time, and then stopped.
func TestGracefulOfAGuestThatDoesNotListen(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.sim.SetDeaf(500, true)
	for seconds, want := range map[int32]string{5: "timeout=5", 0: "timeout=60"} {
		s.on("500")
		requests := s.watch("POST", statusPath)
		task, err := s.agent.Provider.Power(s.ctx, &providerpb.PowerRequest{Id: "500", Op: graceful, GracefulTimeoutSeconds: seconds})
		s.must(err)
		if failure := s.outcome(task.GetTask()); failure != "" {
			t.Errorf("%d s: %s", seconds, failure)
		}
		if s.sim.Running(500) {
			t.Errorf("%d s: still running", seconds)
		}
		if got := requests(); len(got) != 1 || !strings.Contains(got[0], "/shutdown?") || !strings.Contains(got[0], want) || !strings.Contains(got[0], "forceStop=1") {
			t.Errorf("%d s: shut down by %q, want %s and forceStop=1", seconds, got, want)
		}
	}
}

// TestGracefulLeavesTheGuestItsTime: a guest that does listen is not stopped under its hands.
func TestGracefulLeavesTheGuestItsTime(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Fake.PowerdownDelay = 100 * time.Millisecond }})
	s.add(500, nil)
	s.on("500")
	stops := s.watch("POST", "/nodes/*/qemu/*/status/stop")
	s.must(s.power("500", graceful))
	if got := s.described("500").GetPowerState(); got != "Off" || len(stops()) != 0 {
		t.Errorf("%s, stopped by %q", got, stops())
	}
}

func TestGracefulOfAPausedVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.on("500")
	q, ok := s.sim.QEMU(500)
	if !ok {
		t.Fatal("no stand-in")
	}
	q.SetRunstate("paused")
	if got := s.described("500").GetPowerState(); got != "On" {
		t.Errorf("a paused VM is %s", got)
	}
	s.must(s.power("500", graceful))
	if got := s.described("500").GetPowerState(); got != "Off" {
		t.Errorf("%s", got)
	}
}

// TestPowerFails with what PVE says, in a code that concerns one VM.
func TestPowerFails(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i, tc := range []struct {
		name    string
		options map[string]string
		op      providerpb.PowerOp
		prepare func(id int)
		code    codes.Code
		names   []string
	}{
		{
			name: "no such bridge", options: map[string]string{"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr9"}, op: powerOn,
			code: codes.FailedPrecondition, names: []string{"bridge 'vmbr9' does not exist"},
		},
		{
			name: "more CPUs than the node has", options: map[string]string{"cores": "64"}, op: powerOn,
			code: codes.FailedPrecondition, names: []string{"MAX 16 vcpus"},
		},
		{
			name: "no such disk", options: map[string]string{"scsi1": "local:500/vm-500-disk-9.qcow2,size=1G"}, op: powerOn,
			code: codes.FailedPrecondition, names: []string{"vm-500-disk-9.qcow2", "does not exist"},
		},
		{
			name: "locked", options: map[string]string{"lock": "backup"}, op: powerOn,
			code: codes.FailedPrecondition, names: []string{"locked (backup)"},
		},
		{name: "vanishes", op: powerOn, prepare: func(id int) {
			s.meanwhile("POST", fmt.Sprintf("/nodes/*/qemu/%d/status/start", id), func() {
				if err := s.sim.VanishVM(id); err != nil {
					t.Error(err)
				}
			})
		}, code: codes.Aborted, names: []string{"does not exist"}},
		{name: "PVE refuses", op: powerOn, prepare: func(id int) {
			s.sim.Fail(pvesim.Match("POST", fmt.Sprintf("/nodes/*/qemu/%d/status/start", id)), 500, "something odd", 1)
		}, code: codes.FailedPrecondition, names: []string{"something odd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.within(t)
			id := 500 + i
			s.add(id, tc.options)
			if tc.prepare != nil {
				tc.prepare(id)
			}
			_, err := s.tryPower(fmt.Sprint(id), tc.op)
			refused(t, err, tc.code, append(tc.names, fmt.Sprintf("power on VM %d", id))...)
			if s.sim.Running(id) {
				t.Error("it runs")
			}
		})
	}
}

func TestPowerRefuses(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.must(s.sim.AddVM(500, "pve2", nil))
	s.must(s.sim.AddContainer(501, "pve1"))
	s.must(s.sim.AddVM(502, "pve1", map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"}))
	s.startAgent()
	for _, op := range []providerpb.PowerOp{powerOn, powerOff, reboot, graceful} {
		for id, names := range map[string][]string{
			"9000":         {"9000", "linux-template", "template"},
			"500":          {"500", "pve2", "agent"},
			"501":          {"501", "container"},
			"502-76543210": {"502-76543210", "01234567-89ab-cdef-0123-456789abcdef"},
		} {
			s.silent("a refusal", func() {
				_, err := s.tryPower(id, op)
				refused(t, err, codes.FailedPrecondition, names...)
			})
		}
		_, err := s.tryPower("12345", op)
		refused(t, err, codes.NotFound, "12345")
	}
	_, err := s.tryPower("502", providerpb.PowerOp_POWER_OP_UNSPECIFIED)
	refused(t, err, codes.InvalidArgument, "502", "UNSPECIFIED")
}

func TestPowerWithoutPrivileges(t *testing.T) {
	t.Parallel()
	s := raise(t)
	s.startAgent(s.limited("VM.PowerMgmt"))
	s.add(500, nil)
	_, err := s.tryPower("500", powerOn)
	refused(t, err, codes.PermissionDenied, "power on VM 500", "VM.PowerMgmt", "/vms/500", "pveum")
}

// TestSomebodyElseWasFaster: what was asked for has come about.
func TestSomebodyElseWasFaster(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.meanwhile("POST", "/nodes/*/qemu/500/status/start", func() {
		if err := s.sim.StartVM(500); err != nil {
			t.Error(err)
		}
	})
	s.on("500")
	s.meanwhile("POST", "/nodes/*/qemu/500/status/stop", func() {
		if err := s.sim.KillVM(500); err != nil {
			t.Error(err)
		}
	})
	s.off("500")
}

func TestChangesOfPowerAreJoined(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	s.add(500, nil)
	release := s.sim.HoldTasks("qmstart")
	defer release()
	first, err := s.tryPower("500", powerOn)
	s.must(err)
	again, err := s.tryPower("500", powerOn)
	s.must(err)
	if first.GetId() == "" || again.GetId() != first.GetId() {
		t.Errorf("a repeat got task %q, the first %q", again.GetId(), first.GetId())
	}
	release()
	if failure := s.outcome(first); failure != "" {
		t.Error(failure)
	}
	if n := s.sim.TaskCount("qmstart"); n != 1 {
		t.Errorf("PVE was asked %d times", n)
	}
}

// TestPowerOfAnHAManagedVM: the task that PVE starts is over when the request is filed.
func TestPowerOfAnHAManagedVM(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.HADelay = 100 * time.Millisecond }})
	s.add(500, nil)
	s.must(s.sim.AddHA(500, "stopped"))
	for _, tc := range []struct {
		op   providerpb.PowerOp
		task string
	}{{powerOn, "hastart"}, {powerOff, "hastop"}, {reboot, "hastart"}, {graceful, "hastop"}} {
		before := s.sim.TaskCount(tc.task)
		s.must(s.power("500", tc.op))
		if got, want := s.sim.Running(500), tc.task == "hastart"; got != want {
			t.Errorf("after %s: there is a process: %v", tc.op, got)
		}
		if n := s.sim.TaskCount(tc.task) - before; n != 1 {
			t.Errorf("%s: %d %s tasks", tc.op, n, tc.task)
		}
	}
}

// TestHAStartsAVMElsewhere: the owner is looked up until it is there.
func TestHAStartsAVMElsewhere(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	id := s.create(request("web-01", from("9001"))) // on shared storage
	s.must(s.sim.AddHA(10000, "stopped"))
	s.sim.HAMove(10000, "pve2")
	s.must(s.power(id, powerOn))
	if owner, _ := s.sim.Owner(10000); owner != "pve2" || !s.sim.Running(10000) {
		t.Errorf("the VM is on %s, running %v", owner, s.sim.Running(10000))
	}
	_, err := s.describe(id)
	refused(t, err, codes.FailedPrecondition, id, "pve2", "agent")
}
