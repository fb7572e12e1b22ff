package status_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func TestHardware(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		h, err := status.New(patiently(status.Config{RunDir: m.dir})).Hardware(t.Context(), vmid)
		if err != nil || h.CPUs != 1 {
			t.Errorf("%+v, err %v, want one vCPU", h, err)
		}
		impatient := qmp.NewGate(qmp.GateConfig{User: qmp.Options{Greeting: 50 * time.Millisecond, Command: 50 * time.Millisecond}})
		m.hang(true)
		defer m.hang(false)
		if h, err = status.New(status.Config{RunDir: m.dir, Gate: impatient}).Hardware(t.Context(), vmid); err == nil {
			t.Errorf("a QEMU that hangs says %+v", h)
		}
	})
}

func TestHardwareOfStandIns(t *testing.T) {
	dir := shortDir(t)
	tracker := status.New(patiently(status.Config{RunDir: dir}))
	if h, err := tracker.Hardware(t.Context(), vmid); !errors.Is(err, qmp.ErrGone) {
		t.Errorf("a VM that does not run has %+v, err %v", h, err)
	}
	for id, tc := range map[int]struct {
		cfg  qmptest.Config
		want status.Hardware
	}{
		100: {qmptest.Config{Cores: 4, VCPUs: 3, MemoryMiB: 512, BalloonMiB: 256}, status.Hardware{CPUs: 3, MemoryMiB: 256}},
		101: {qmptest.Config{Cores: 2, VCPUs: 2, MemoryMiB: 512, BalloonMiB: -1}, status.Hardware{CPUs: 2}},
	} {
		tc.cfg.Dir, tc.cfg.VMID = dir, id
		startQEMU(t, tc.cfg)
		if h, err := tracker.Hardware(t.Context(), id); err != nil || h != tc.want {
			t.Errorf("%+v, err %v, want %+v", h, err, tc.want)
		}
	}
}
