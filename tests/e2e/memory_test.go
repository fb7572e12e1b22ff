package e2e

import (
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// TestMemoryGoesBack: a program in a real guest counts in its memory, and after going back to a snapshot with memory it
// counts on from where it was.
func TestMemoryGoesBack(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.QEMU, c.PollUnit = pvesim.Auto, time.Second }})
	if !s.rig.Real() {
		t.Skipf("skipped: needs qemu and a Linux guest for it; enable with: %s", rig.InstallQEMU)
	}
	s.patience = 3 * time.Minute
	s.startAgent()
	id := s.create(request("web-01", class(`{"CPU":1,"MemoryMiB":512}`), func(r *providerpb.CreateRequest) {
		r.UserData = []byte("#cloud-config\nhostname: web-01\n")
	}))
	s.on(id)
	g := s.guestOf(id)
	const counter = "i=0; while :; do i=$((i+1)); echo $i > /counter.new; mv /counter.new /counter; sleep 0.1; done >/dev/null 2>&1 </dev/null &"
	if _, err := g.run("/bin/sh", "-c", counter); err != nil {
		t.Fatal(err)
	}
	count := func() int { return g.number("/bin/cat", "/counter") }
	s.eventually("it counts", func() bool {
		out, err := g.run("/bin/cat", "/counter")
		return err == nil && out != ""
	})

	before := count()
	warm := s.snapshot(id, "v1.warm", withMemory)
	taken := count()
	s.eventually("it counts on", func() bool { return count() > taken+20 })
	late := count()
	s.must(s.revert(id, "v1.warm"))
	if d := s.described(id); d.GetPowerState() != "On" {
		t.Errorf("after going back with memory: %v", d)
	}
	g = s.guestOf(id)
	back := count()
	if back < before || back >= late {
		t.Errorf("it counts %d after going back, was at %d before the snapshot and at %d at last", back, before, late)
	}
	s.eventually("it counts on", func() bool { return count() > back+20 })
	s.unsnapshot(id, warm)
	s.must(s.delete(id))
}
