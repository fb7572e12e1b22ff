package hotplug

import (
	"context"
	"errors"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// slot is a place for a vCPU, as query-hotpluggable-cpus tells of it.
type slot struct {
	Type    string `json:"type"`     // the device's: "host-x86_64-cpu"
	QOMPath string `json:"qom-path"` // "" for one that is free
	Props   struct {
		Socket int `json:"socket-id"`
		Core   int `json:"core-id"`
	} `json:"props"`
}

// cpuID is PVE's name for the vCPU number n, counted from 1. The first one has no name.
func cpuID(n int) string { return fmt.Sprintf("cpu%d", n) }

// device is what device_add is given for the vCPU number n, as PVE does it (qemu-server, print_cpu_device): the cores of the
// first socket first. The type comes from QEMU itself, which takes no other.
func device(typ string, n, cores int) map[string]any {
	return map[string]any{
		"driver": typ, "id": cpuID(n), "socket-id": (n - 1) / cores, "core-id": (n - 1) % cores, "thread-id": 0,
	}
}

// count counts the vCPUs that run.
func count(ctx context.Context, s *qmp.Session) (int, error) {
	var cpus []struct {
		Index int `json:"cpu-index"`
	}
	err := s.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return len(cpus), err
}

// count counts the vCPUs that run, in a session of its own.
func (p *Plugger) count(ctx context.Context, t Target) (n int, err error) {
	err = p.talk(ctx, t, func(s *qmp.Session) error {
		n, err = count(ctx, s)
		return err
	})
	return n, err
}

// machine is what a QEMU has of vCPUs.
type machine struct {
	vcpus int
	typ   string // of the device
	cores int    // per socket
}

// machine looks at the VM's QEMU, and refuses one whose vCPUs are not laid out as PVE lays them out for hot-plug.
func (h *holding) machine(ctx context.Context) (m machine, err error) {
	var slots []slot
	err = h.p.talk(ctx, h.t, func(s *qmp.Session) error {
		if err := s.Execute(ctx, "query-hotpluggable-cpus", nil, &slots); err != nil {
			return err
		}
		m.vcpus, err = count(ctx, s)
		return err
	})
	if _, refused := errors.AsType[*qmp.Error](err); refused { // a kind of machine without any hot-plug of CPUs
		err = fmt.Errorf("%w: %w", ErrUnpluggable, err)
	}
	if err != nil {
		return machine{}, err
	}
	maximum, _ := h.conf.CPUs()
	if len(slots) != maximum {
		return machine{}, fmt.Errorf("%w: qemu has room for %d vCPUs, the config for %d", ErrUnpluggable, len(slots), maximum)
	}
	m.typ, m.cores = slots[0].Type, max(1, maximum/sockets(slots))
	for _, s := range slots {
		if err := m.check(s); err != nil {
			return machine{}, err
		}
	}
	return m, nil
}

// sockets counts the sockets of a machine.
func sockets(slots []slot) int {
	n := 0
	for _, s := range slots {
		n = max(n, s.Props.Socket+1)
	}
	return n
}

// check refuses a place that is not what PVE and this package rely on: the vCPUs 1 to m.vcpus run, all but the first as
// devices that can be unplugged.
func (m machine) check(s slot) error {
	n := s.Props.Socket*m.cores + s.Props.Core + 1
	want := ""
	if n <= m.vcpus {
		want = "/machine/peripheral/" + cpuID(n)
	}
	if n == 1 || s.QOMPath == want {
		return nil
	}
	return fmt.Errorf("%w: vCPU %d of %d running ones is %q in qemu", ErrUnpluggable, n, m.vcpus, s.QOMPath)
}

// plug adds the vCPU number n and verifies that it runs.
func (h *holding) plug(ctx context.Context, m machine, n int) error {
	got := 0
	err := h.p.talk(ctx, h.t, func(s *qmp.Session) (err error) {
		if err := s.Execute(ctx, "device_add", device(m.typ, n, m.cores), nil); err != nil {
			return err
		}
		got, err = count(ctx, s)
		return err
	})
	if unclear(err) {
		// QEMU may have done it, or may still: the next session's greeting comes after that.
		var again error
		if got, again = h.p.count(ctx, h.t); again != nil {
			return errors.Join(err, again)
		}
		if got == n {
			return nil
		}
	}
	if err == nil && got != n {
		err = fmt.Errorf("qemu has taken %s and counts %d vCPUs", cpuID(n), got)
	}
	return err
}

// unclear reports that an error leaves open whether QEMU has carried the command out.
func unclear(err error) bool {
	refused := new(qmp.Error)
	return err != nil && !errors.As(err, &refused) && !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrMoved) &&
		!errors.Is(err, qmp.ErrBusy) && !errors.Is(err, qmp.ErrForbidden)
}
