package hotplug_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// TestStoppedAnywhere stops QEMU at some moment of a change. Wherever it was, what Mend finds is what the config then says, and a
// repeat completes.
func TestStoppedAnywhere(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			t.Parallel()
			on(t, func(s *stage) {
				ended := make(chan error)
				go func() {
					_, err := s.cpus(4)
					ended <- err
				}()
				<-time.After(after)
				s.vm.hang(true)
				if err := <-ended; err != nil && !errors.Is(err, hotplug.ErrBusy) {
					s.Errorf("%v, want busy or nothing", err)
				}
				s.tidy()
				s.vm.hang(false)
				mended, err := s.plugger().Mend(s.Context(), target)
				if err != nil {
					s.Error(err)
				}
				s.true(mended.To)
				s.become(mended.To, 4)
			})
		})
	}
}

// TestNoRoomLeft: the new config cannot take its place any more. A repeat finds what runs.
func TestNoRoomLeft(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) {
		s.vm.fake.SetVCPUs(2)
		return struct{}{}, os.Remove(filepath.Join(s.dir, fmt.Sprintf("%s.tmp.%d", confPath, os.Getpid())))
	})
	got, err := s.cpus(3)
	if err == nil || !strings.Contains(err.Error(), "the config does not say so") || got != (hotplug.CPUs{From: 1, To: 2}) {
		t.Errorf("%+v, %v", got, err)
	}
	s.vm.fake.Handle("device_add", nil)
	s.become(2, 3)
}

// TestOwnMonitorBusy: another session of this process with the VM does not end, and PVE's lock is not kept for it.
func TestOwnMonitorBusy(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	s.limits.Hold = 50 * time.Millisecond
	leave, err := s.gate.Enter(t.Context(), s.vm.qmp, qmp.User)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cpus(2); !errors.Is(err, hotplug.ErrBusy) {
		t.Errorf("%v, want busy", err)
	}
	leave()
	s.limits.Hold = 0
	s.become(1, 2)
}
