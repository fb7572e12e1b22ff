package e2e

import (
	"log/slog"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// TestHotplug changes the vCPUs and the balloon of a VM that runs, and has its guest count them.
func TestHotplug(t *testing.T) {
	t.Parallel()
	t.Run("simulated on FUSE", func(t *testing.T) {
		t.Parallel()
		hotplugged(start(t, fuse), false)
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		s := raise(t, setting{sim: func(c *pvesim.Config) { c.QEMU, c.PollUnit, c.CPUs = pvesim.Auto, time.Second, 4 }})
		if !s.rig.Real() {
			t.Skipf("skipped: needs qemu and a Linux guest for it; enable with: %s", rig.InstallQEMU)
		}
		s.patience = 3 * time.Minute // without KVM, on a machine that does other things
		s.startAgent()
		hotplugged(s, true)
	})
}

func hotplugged(s *stage, linux bool) {
	s.Helper()
	id := s.create(request("hot-01", class(`{"CPU":1,"MemoryMiB":512,"PerformanceProfile":{"CPUHotAddEnabled":true}}`)))
	s.on(id)
	plugger, target := s.plugger(id)
	var inside guest
	total := 0
	if linux {
		inside = s.guestOf(id)
		total = inside.memory("MemTotal")
	}
	// The CPUs come last: see below.
	for _, mib := range []int{256, 512} {
		if got, err := plugger.Balloon(s.ctx, target, mib); err != nil || got != mib {
			s.Fatalf("balloon to %d MiB: %d, %v", mib, got, err)
		}
		if linux {
			s.eventually("the guest counts what the balloon has left", func() bool {
				return total-inside.memory("MemTotal") == 512-mib && inside.memory("MemAvailable") < mib
			})
		}
	}
	// Under TCG, QEMU 7.2 does not plug a vCPU again that was unplugged, and aborts at a PCI device that is plugged then.
	for _, want := range []hotplug.CPUs{{From: 1, To: 4}, {From: 4, To: 2}} {
		if got, err := plugger.CPUs(s.ctx, target, want.To); err != nil || got != want {
			s.Fatalf("from %d to %d vCPUs: %+v, %v", want.From, want.To, got, err)
		}
		if got := s.config(id)["vcpus"]; got != string(rune('0'+want.To)) {
			s.Errorf("the config says vcpus: %s, want %d", got, want.To)
		}
		if linux {
			s.eventually("the guest counts its CPUs", func() bool { return inside.cpus() == want.To })
		}
	}
}

// plugger is one for a VM on the agent's node.
func (s *stage) plugger(id string) (*hotplug.Plugger, hotplug.Target) {
	s.Helper()
	n := s.agent.Node
	tree := pmxcfs.Open(n.PMXCFS)
	number := vmid(s, id)
	conf, err := tree.Conf(n.Name, number)
	s.must(err)
	target := hotplug.Target{VMID: number, Is: func(c *pmxcfs.Conf) bool { return c.SMBIOSUUID() == conf.SMBIOSUUID() }}
	return hotplug.New(hotplug.Config{
		Node: n.Name, Tree: tree, RunDir: n.Run, LockDir: n.Lock, Gate: qmp.NewGate(qmp.GateConfig{}), Log: slog.New(slog.NewTextHandler(s.Output(), nil)),
		Limits: hotplug.Limits{Unplug: s.patience, Still: s.patience}, // under TCG a guest needs a while for anything
	}), target
}
