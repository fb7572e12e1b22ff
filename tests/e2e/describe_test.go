package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// tuned starts stand-ins that differ from the usual.
func tuned(change func(*qmptest.Config)) setting {
	return setting{sim: func(c *pvesim.Config) {
		c.Fake.Tune = func(_ kvm.Spec, q *qmptest.Config) { change(q) }
	}}
}

func TestDescribeAVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	s.silent("Describe", func() {
		d := s.described(id)
		if d.GetPowerState() != "Off" || len(d.GetIps()) != 0 {
			t.Errorf("a VM that never ran: %v", d)
		}
		if want := "https://" + s.sim.Node("pve1").IP.String() + ":8006/?console=kvm&node=pve1&novnc=1&vmid=10000&vmname=web-01"; d.GetConsoleUrl() != want {
			t.Errorf("console_url %s, want %s", d.GetConsoleUrl(), want)
		}
		want := map[string]string{
			"vmid": "10000", "node": "pve1", "name": "web-01", "status": "stopped", "cpus": "2", "cpus_max": "2", "memory_mib": "4096",
		}
		if diff := cmp.Diff(want, s.raw(d)); diff != "" {
			t.Errorf("provider_raw_json (-want +got):\n%s", diff)
		}
	})
}

// TestDescribeIsQuiet: each change of an answer is a write to etcd, six times a minute and VM.
func TestDescribeIsQuiet(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.on("500")
	s.eventually("the guest agent has answered", func() bool {
		d := s.described("500")
		return len(d.GetIps()) > 0 && s.raw(d)["hostname"] == "vm-500" && s.raw(d)["status"] == "running"
	})
	s.silent("Describe", func() {
		first := s.described("500")
		for range 100 {
			if d := s.described("500"); d.String() != first.String() {
				t.Fatalf("changes from\n%v\nto\n%v", first, d)
			}
		}
	})
	if q, _ := s.sim.QEMU(500); q.Stats().Sessions > 3 {
		t.Errorf("%d sessions with QEMU for 100 answers", q.Stats().Sessions)
	}
}

func TestDescribeOrdersAddresses(t *testing.T) {
	t.Parallel()
	s := start(t, tuned(func(q *qmptest.Config) {
		q.Guest.Interfaces = []qga.Interface{
			{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: prefixes("127.0.0.1/8", "::1/128")},
			{Name: "docker0", MAC: "02:42:00:00:00:01", Addresses: prefixes("172.17.0.1/16")},
			{Name: "eth0", MAC: "bc:24:11:00:00:01", Addresses: prefixes("fe80::1/64", "2001:db8::2/64", "192.0.2.7/24", "169.254.3.4/16")},
			{Name: "odd", MAC: "bc:24:11:00:00:02", Addresses: prefixes("::1/128", "198.51.100.1/24")},
		}
	}))
	s.add(500, nil)
	s.on("500")
	s.eventually("the guest agent has answered", func() bool { return len(s.described("500").GetIps()) > 0 })
	got := s.described("500").GetIps()
	for _, ip := range []string{"192.0.2.7", "2001:db8::2", "198.51.100.1"} {
		if !slices.Contains(got, ip) {
			t.Errorf("%s is not among %v", ip, got)
		}
	}
	for _, ip := range got {
		if a := netip.MustParseAddr(ip); a.IsLoopback() || a.IsLinkLocalUnicast() {
			t.Errorf("%s is among %v: nobody can reach it", ip, got)
		}
	}
	if len(got) > 0 && got[0] != "192.0.2.7" {
		t.Errorf("%v, want the IPv4 address of the NIC first", got)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range texts {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

func TestDescribeKnowsTwoPowerStates(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]string{
		"running": "On", "paused": "On", "suspended": "On", "prelaunch": "On", "io-error": "On", "internal-error": "On",
		"shutdown": "Off", // the guest has powered off, and PVE has not ended QEMU yet
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := start(t, tuned(func(q *qmptest.Config) { q.Runstate = state }))
			s.add(500, nil)
			s.must(s.sim.StartVM(500))
			d := s.described("500")
			if d.GetPowerState() != want || s.raw(d)["status"] != state {
				t.Errorf("power state %s, status %s, want %s", d.GetPowerState(), s.raw(d)["status"], want)
			}
		})
	}
}

// TestDescribeDoesNotWaitForTheGuest: a silent agent costs nobody time, and the VM is described without it.
func TestDescribeDoesNotWaitForTheGuest(t *testing.T) {
	t.Parallel()
	s := start(t, tuned(func(q *qmptest.Config) { q.Boot = time.Hour }))
	s.add(500, nil)
	s.on("500")
	for range 20 {
		if d := s.described("500"); d.GetPowerState() != "On" || len(d.GetIps()) != 0 {
			t.Fatalf("%v", d)
		}
	}
}

func TestDescribeShowsALock(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.must(s.sim.SetLock(500, "backup"))
	s.eventually("the lock is seen", func() bool { return s.raw(s.described("500"))["lock"] == "backup" })
}

func TestDescribeAVMInCreation(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	for _, hold := range []string{"qmclone", "resize"} {
		release := s.sim.HoldTasks(hold)
		defer release()
		c := s.began(everyStep("web-" + hold))
		s.eventually("the task runs", func() bool { return s.sim.TaskCount(hold) > 0 })
		if d := s.described(c.GetId()); d.GetPowerState() != "Off" {
			t.Errorf("%s: %v", hold, d)
		}
		release()
		if failure := s.outcome(c.GetTask()); failure != "" {
			t.Error(failure)
		}
		s.described(c.GetId())
	}
}

// TestDescribeAVMThatPVEDoesNotKnowYet: the id is out, and the worker that writes the first config has not come to it.
func TestDescribeAVMThatPVEDoesNotKnowYet(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	begin := make(chan struct{})
	release := sync.OnceFunc(func() { close(begin) })
	defer release()
	s.sim.BeforeTask(func(x *pvesim.Task) {
		if x.Type() == "qmclone" {
			<-begin
		}
	})
	c := s.began(request("web-01"))
	s.throughout(func() {
		if d := s.described(c.GetId()); d.GetPowerState() != "Off" {
			t.Fatalf("%v", d)
		}
	})
	release()
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Error(failure)
	}
	s.described(c.GetId())
}

// throughout does something again and again, for longer than it takes to call a VM gone.
func (s *stage) throughout(do func()) {
	s.Helper()
	end := time.Now().Add(1500 * time.Millisecond)
	s.eventually("the end of the time", func() bool { do(); return time.Now().After(end) })
}

// vanished lets a VM of the stage vanish and returns when that was.
func (s *stage) vanished(id int) time.Time {
	s.Helper()
	at := time.Now()
	s.must(s.sim.VanishVM(id))
	return at
}

// TestDescribeSaysGoneOnlyWithoutDoubt: the manager creates a new VM at once when it is told that one is gone.
func TestDescribeSaysGoneOnlyWithoutDoubt(t *testing.T) {
	t.Parallel()
	t.Run("it is gone", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		id := s.create(request("web-01"))
		s.described(id)
		at := s.vanished(10000)
		s.eventually("gone", func() bool { d, err := s.describe(id); return err == nil && !d.GetExists() })
		// A migration is a delete followed by a register: two immediate readings can both miss the VM.
		if took := time.Since(at); took < time.Second {
			t.Errorf("called gone after %s", took)
		}
	})
	t.Run("it never was", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		for _, id := range []string{"12345", "12345-0123abcd", "999999999"} {
			if d, err := s.describe(id); err != nil || d.GetExists() {
				t.Errorf("%s: %v, err %v", id, d, err)
			}
		}
	})
	t.Run("without quorum", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		id := s.create(request("web-01"))
		s.must(s.sim.SetQuorate(false))
		s.troubled("no quorum")
		_, err := s.describe(id) // another node may have it by now
		refused(t, err, codes.FailedPrecondition, "10000", "no quorum")
		s.must(s.sim.SetQuorate(true))
		s.healthy()
		s.vanished(10000)
		s.must(s.sim.SetQuorate(false))
		s.troubled("no quorum")
		s.throughout(func() {
			d, err := s.describe(id)
			if err == nil && !d.GetExists() {
				t.Fatal("called gone without quorum")
			}
			if err != nil {
				refused(t, err, codes.FailedPrecondition, "10000", "quorum")
			}
		})
		s.must(s.sim.SetQuorate(true))
		s.eventually("gone", func() bool { d, err := s.describe(id); return err == nil && !d.GetExists() })
	})
	t.Run("on another node", func(t *testing.T) {
		t.Parallel()
		s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
		id := s.create(request("web-01", from("9001")))
		s.on(id)
		s.must(s.sim.MoveVM(10000, "pve2"))
		elsewhere := false
		s.throughout(func() {
			d, err := s.describe(id)
			if err == nil && !d.GetExists() {
				t.Fatal("called gone while it is on another node")
			}
			if err != nil {
				elsewhere = true
				refused(t, err, codes.FailedPrecondition, id, "pve2", "agent", "since")
			}
		})
		if !elsewhere {
			t.Error("still described as if it were here")
		}
		s.must(s.sim.MoveVM(10000, "pve1"))
		s.eventually("back again", func() bool { d, err := s.describe(id); return err == nil && d.GetExists() })
	})
	t.Run("a node that is off", func(t *testing.T) {
		t.Parallel()
		s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 3 }})
		s.must(s.sim.AddVM(500, "pve2", nil))
		s.must(s.sim.SetOnline("pve2", false))
		_, err := s.describe("500")
		refused(t, err, codes.FailedPrecondition, "500", "pve2", "offline", "since")
	})
}

func TestDescribeRefuses(t *testing.T) {
	t.Parallel()
	s := raise(t)
	s.must(s.sim.AddContainer(501, "pve1"))
	s.must(s.sim.AddVM(502, "pve1", map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"}))
	s.startAgent()
	for id, names := range map[string][]string{
		"501":          {"501", "container", "pve1"},
		"502-76543210": {"502-76543210", "01234567-89ab-cdef-0123-456789abcdef", "vm-502"},
	} {
		_, err := s.describe(id)
		refused(t, err, codes.FailedPrecondition, names...)
	}
	for _, id := range []string{"502", "502-01234567"} {
		s.described(id)
	}
}

// TestDescribeAfterAForeignChange: what somebody changes in PVE is seen.
func TestDescribeAfterAForeignChange(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.must(s.sim.SetConfig(500, map[string]string{"name": "renamed", "memory": "1024"}))
	s.eventually("the change is seen", func() bool {
		d := s.described("500")
		return s.raw(d)["name"] == "renamed" && s.raw(d)["memory_mib"] == "1024" && strings.Contains(d.GetConsoleUrl(), "vmname=renamed")
	})
	s.on("500")
	s.must(s.sim.KillVM(500))
	s.eventually("the end of the process is seen", func() bool { return s.described("500").GetPowerState() == "Off" })
}

func TestConsoleURLIsConfigurable(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--console-url=https://pve.example/gui"}})
	s.add(500, nil)
	if got, want := s.described("500").GetConsoleUrl(), "https://pve.example/gui/?console=kvm&node=pve1&novnc=1&vmid=500&vmname=vm-500"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func (s *stage) list() []*providerpb.VMInfo {
	s.Helper()
	l, err := s.agent.Provider.ListVMs(s.ctx, &providerpb.ListVMsRequest{})
	if err != nil {
		s.Fatalf("list: %v", err)
	}
	return l.GetVms()
}
