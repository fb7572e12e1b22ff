package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// TestReconfigureOfALinuxGuest has a guest on real QEMU count what the manager's calls give it.
func TestReconfigureOfALinuxGuest(t *testing.T) {
	t.Parallel()
	patient := setting{
		sim:     func(c *pvesim.Config) { c.QEMU, c.PollUnit, c.CPUs = pvesim.Auto, time.Second, 4 },
		options: []agent.Option{agent.WithPluggingLimits(hotplug.Limits{Unplug: 3 * time.Minute, Still: 3 * time.Minute})},
	}
	s := raise(t, patient)
	if !s.rig.Real() {
		t.Skipf("skipped: needs qemu and a Linux guest for it; enable with: %s", rig.InstallQEMU)
	}
	s.patience = 3 * time.Minute // without KVM, on a machine that does other things
	s.startAgent(patient)
	sized := func(cpus, mib, gib int) string {
		return strings.TrimSuffix(hot(cpus, mib), "}") + fmt.Sprintf(`,"DiskDefaults":{"Type":"thin","SizeGiB":%d}}`, gib)
	}
	id := s.create(request("linux-01", class(sized(1, 512, 1))))
	s.on(id)
	inside := s.guestOf(id)
	total := inside.memory("MemTotal")

	s.becomes(id, desired(sized(1, 512, 2), disks(`[{"Name":"data","SizeGiB":1}]`)))
	const gib = 1 << 30 / 512
	for disk, sectors := range map[string]int{"sda": 2 * gib, "sdb": gib} {
		s.eventually("the guest sees "+disk, func() bool {
			out, err := inside.run("/bin/cat", "/sys/block/"+disk+"/size")
			return err == nil && out == fmt.Sprint(sectors)
		})
	}
	for _, mib := range []int{256, 512} {
		s.becomes(id, desired(sized(1, mib, 2)))
		s.eventually("the guest counts what the balloon has left", func() bool { return total-inside.memory("MemTotal") == 512-mib })
		s.shows(id, "1", fmt.Sprint(mib), map[int]string{256: "memory", 512: ""}[mib])
	}
	// The last thing: under TCG, QEMU 7.2 does not plug a vCPU again that was unplugged.
	for _, cpus := range []int{4, 2} {
		s.becomes(id, desired(sized(cpus, 512, 2)))
		s.eventually("the guest counts its CPUs", func() bool { return inside.cpus() == cpus })
		s.says(id, map[string]string{"vcpus": fmt.Sprint(cpus)})
		s.shows(id, fmt.Sprint(cpus), "512", "")
	}
}

// becomes reconfigures a VM, however long that takes.
func (s *stage) becomes(id, desired string) {
	s.Helper()
	var err error
	s.eventually("the end of a change", func() bool {
		err = s.reconfigure(id, desired)
		return status.Code(err) != codes.Aborted
	})
	s.must(err)
}
