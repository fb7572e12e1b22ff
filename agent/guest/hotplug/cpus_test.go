package hotplug_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// TestPlug adds vCPUs up to what the VM can have, which the config says, too.
func TestPlug(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		s.become(1, 2)
		s.says("2")
		s.become(2, 4)
		s.says("4")
		s.become(4, 4)
		want := []string{"/machine/unattached/device[0]", "/machine/peripheral/cpu2", "/machine/peripheral/cpu3", "/machine/peripheral/cpu4"}
		if got := s.running(); !slices.Equal(got, want) {
			s.Errorf("running %q, want %q", got, want)
		}
		for _, want := range []int{5, 0, -1} {
			if _, err := s.cpus(want); !is[*hotplug.HeadroomError](err) || !strings.Contains(err.Error(), "1 to 4") {
				s.Errorf("%d vCPUs: %v, want no room", want, err)
			}
		}
	})
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// TestGuestKeepsItsCPUs: nobody answers device_del, and the config goes on saying what runs.
func TestGuestKeepsItsCPUs(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		s.become(1, 3)
		got, err := s.cpus(1)
		refused, ok := errors.AsType[*hotplug.RefusedError](err)
		if !ok || *refused != (hotplug.RefusedError{What: "vCPUs", Want: 1, Got: 3}) || got.To != 3 {
			s.Errorf("%+v, %v; want a refusal", got, err)
		}
		s.true(3)
		s.become(3, 4)
	})
}

// TestHungQEMU stops the process: an end within bounds, nothing half written, and all is well when it goes on.
func TestHungQEMU(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		s.vm.hang(true)
		begin := time.Now()
		for what, f := range map[string]func() error{
			"cpus":    func() error { _, err := s.cpus(2); return err },
			"mend":    func() error { _, err := s.plugger().Mend(s.Context(), target); return err },
			"balloon": func() error { _, err := s.plugger().Balloon(s.Context(), target, 32); return err },
		} {
			if err := f(); !errors.Is(err, hotplug.ErrBusy) {
				s.Errorf("%s: %v, want busy", what, err)
			}
		}
		if took := time.Since(begin); took > 15*time.Second {
			s.Errorf("took %v", took)
		}
		s.says("1")
		s.tidy()
		s.vm.hang(false)
		s.become(1, 2)
	})
}

// TestHeldMonitor has somebody else talk to QEMU.
func TestHeldMonitor(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		other, err := qmp.Open(s.Context(), s.vm.qmp, qmp.Options{Greeting: 10 * time.Second, Hold: time.Minute})
		if err != nil {
			s.Fatal(err)
		}
		defer other.Close()
		if _, err := s.cpus(2); !errors.Is(err, hotplug.ErrBusy) || !errors.Is(err, qmp.ErrBusy) {
			s.Errorf("%v, want busy", err)
		}
		s.says("1")
		s.tidy()
		other.Close()
		s.become(1, 2)
	})
}

// TestMend takes away what the config knew.
func TestMend(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		s.become(1, 3)
		for _, text := range []string{
			usual,
			strings.Replace(usual, "vcpus: 1\n", "", 1), // four
			usual + "\n[PENDING]\nvcpus: 2\n",
			usual + "lock: backup\n",
		} {
			s.setConf(text)
			got, err := s.plugger().Mend(s.Context(), target)
			if err != nil || got.To != 3 {
				s.Errorf("%+v, %v", got, err)
			}
			s.true(3)
			if pending := "[PENDING]\nvcpus: 2\n"; strings.Contains(text, pending) && !strings.HasSuffix(s.conf(), pending) {
				s.Errorf("what waits for a power cycle is gone:\n%s", s.conf())
			}
		}
		s.setConf(usual) // a repeat mends, too
		s.become(3, 4)
		s.setConf(usual + "lock: migrate\n")
		if _, err := s.plugger().Mend(s.Context(), target); !is[*hotplug.LockedError](err) {
			s.Errorf("%v, want it locked", err)
		}
	})
}

// TestDead: no QEMU, and a VM that is elsewhere.
func TestDead(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		all := func(want error) {
			s.Helper()
			_, err := s.cpus(2)
			_, mend := s.plugger().Mend(s.Context(), target)
			_, balloon := s.plugger().Balloon(s.Context(), target, 32)
			for _, err := range []error{err, mend, balloon} {
				if !errors.Is(err, want) {
					s.Errorf("%v, want %v", err, want)
				}
			}
		}
		s.vm.kill()
		all(hotplug.ErrNotRunning)
		s.says("1")
		s.tidy()
		s.setConf(strings.Replace(usual, uuid, "00000000-0000-0000-0000-000000000001", 1))
		all(hotplug.ErrMoved)
		if err := os.Remove(filepath.Join(s.dir, confPath)); err != nil {
			s.Fatal(err)
		}
		all(hotplug.ErrMoved)
		if err := os.Remove(filepath.Join(s.dir, ".version")); err != nil {
			s.Fatal(err)
		}
		all(pmxcfs.ErrNotMounted)
	})
}

// TestUnplug goes down with a guest that takes its time, in which PVE's lock is free.
func TestUnplug(t *testing.T) {
	t.Parallel()
	s := with(t, strings.Replace(usual, "vcpus: 1\n", "vcpus: 4\n", 1), qmptest.Config{VCPUs: 4, UnplugDelay: 60 * time.Millisecond})
	s.limits.Unplug = 10 * time.Second
	free := make(chan error, 1)
	go func() {
		s.until("the first vCPU is asked for", func() bool { return s.vm.fake.Stats().Commands["device_del"] > 0 })
		ctx, cancel := context.WithTimeout(s.Context(), 50*time.Millisecond)
		defer cancel()
		unlock, err := pmxcfs.LockConf(ctx, s.dir, vmid)
		if err == nil {
			err = unlock()
		}
		free <- err
	}()
	s.become(4, 2)
	if err := <-free; err != nil {
		t.Errorf("PVE's lock while the guest gives a vCPU back: %v", err)
	}
	s.says("2")
	if got := s.vm.fake.Stats().Commands["device_del"]; got != 2 {
		t.Errorf("%d times device_del, want 2", got)
	}
	s.become(2, 3)
}

// until waits for a state that comes without a signal of its own.
func (s *stage) until(what string, reached func() bool) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !reached() {
		select {
		case <-tick.C:
		case <-late:
			s.Errorf("not reached: %s", what)
			return
		}
	}
}

// TestCores: PVE fills the cores of a socket first.
func TestCores(t *testing.T) {
	t.Parallel()
	conf := strings.NewReplacer("cores: 1", "cores: 2", "sockets: 4", "sockets: 2").Replace(usual)
	s := with(t, conf, qmptest.Config{Sockets: 2, Cores: 2, VCPUs: 1, CPUType: "host"})
	var plugged []string
	s.vm.fake.Handle("device_add", func(args json.RawMessage) (any, error) {
		plugged = append(plugged, string(args))
		s.vm.fake.SetVCPUs(s.vm.fake.VCPUs() + 1)
		return struct{}{}, nil
	})
	s.become(1, 4)
	want := []string{
		`{"core-id":1,"driver":"host-x86_64-cpu","id":"cpu2","socket-id":0,"thread-id":0}`,
		`{"core-id":0,"driver":"host-x86_64-cpu","id":"cpu3","socket-id":1,"thread-id":0}`,
		`{"core-id":1,"driver":"host-x86_64-cpu","id":"cpu4","socket-id":1,"thread-id":0}`,
	}
	if !slices.Equal(plugged, want) {
		t.Errorf("plugged\n%s\nwant\n%s", strings.Join(plugged, "\n"), strings.Join(want, "\n"))
	}
}

// TestPending: a number that waits for a power cycle is settled by ours.
func TestPending(t *testing.T) {
	t.Parallel()
	for name, pending := range map[string]string{"value": "vcpus: 4\n", "removal": "delete: vcpus\n"} {
		for _, want := range []int{1, 2} {
			t.Run(fmt.Sprint(name, " to ", want), func(t *testing.T) {
				t.Parallel()
				s := with(t, usual+"\n[PENDING]\nmemory: 128\n"+pending, qmptest.Config{})
				s.become(1, want)
				if conf := s.conf(); !strings.HasSuffix(conf, fmt.Sprintf("vcpus: %d\n\n[PENDING]\nmemory: 128\n", want)) {
					t.Errorf("config:\n%s", conf)
				}
			})
		}
	}
}

func TestUnpluggable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		conf string
		cfg  qmptest.Config
		ids  func(*qmptest.QEMU)
	}{
		"hotplug without cpu":  {conf: strings.Replace(usual, "cpu,", "", 1)},
		"default hotplug":      {conf: strings.Replace(usual, "hotplug: cpu,disk,network,usb\n", "", 1)},
		"another architecture": {conf: usual + "arch: aarch64\n"},
		"other places":         {conf: strings.Replace(usual, "sockets: 4", "sockets: 8", 1)},
		"no such machine":      {conf: usual, ids: immutable},
		"not started for it":   {conf: strings.Replace(usual, "vcpus: 1", "vcpus: 2", 1), cfg: qmptest.Config{VCPUs: 2}, ids: nameless},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := with(t, c.conf, c.cfg)
			if c.ids != nil {
				c.ids(s.vm.fake)
			}
			before := s.running()
			if _, err := s.cpus(3); !errors.Is(err, hotplug.ErrUnpluggable) {
				t.Errorf("%v, want it refused", err)
			}
			if s.conf() != c.conf || len(s.running()) != len(before) {
				t.Errorf("something has changed: %q, running %q", s.conf(), s.running())
			}
		})
	}
}

// immutable makes it a machine like microvm, in QEMU's words.
func immutable(q *qmptest.QEMU) {
	q.Handle("query-hotpluggable-cpus", func(json.RawMessage) (any, error) {
		return nil, errors.New("machine does not support hot-plugging CPUs")
	})
}

// nameless makes the second vCPU one that was there from the start, as with -smp 2.
func nameless(q *qmptest.QEMU) {
	q.Handle("query-hotpluggable-cpus", func(json.RawMessage) (any, error) {
		slots := []map[string]any{}
		for i := range 4 {
			slot := map[string]any{"type": "qemu64-x86_64-cpu", "vcpus-count": 1, "props": map[string]int{"socket-id": i, "core-id": 0, "thread-id": 0}}
			if i < 2 {
				slot["qom-path"] = fmt.Sprintf("/machine/unattached/device[%d]", i)
			}
			slots = append(slots, slot)
		}
		return slots, nil
	})
}

// TestLockedConfig: PVE is at work on the VM.
func TestLockedConfig(t *testing.T) {
	t.Parallel()
	s := with(t, usual+"lock: backup\n", qmptest.Config{})
	_, cpus := s.cpus(2)
	_, balloon := s.plugger().Balloon(t.Context(), target, 32)
	for _, err := range []error{cpus, balloon} {
		if locked, ok := errors.AsType[*hotplug.LockedError](err); !ok || locked.Lock != "backup" {
			t.Errorf("%v, want it locked by a backup", err)
		}
	}
	if n := s.vm.fake.Stats().Connections; n != 0 {
		t.Errorf("%d conversations with its QEMU, want none", n)
	}
}

// TestBackupBegins while the guest has its time: what runs is written down, and the rest is left.
func TestBackupBegins(t *testing.T) {
	t.Parallel()
	s := with(t, strings.Replace(usual, "vcpus: 1\n", "vcpus: 3\n", 1), qmptest.Config{VCPUs: 3})
	s.vm.fake.Handle("device_del", func(json.RawMessage) (any, error) {
		s.setConf(s.conf() + "lock: backup\n")
		s.vm.fake.SetVCPUs(2)
		return struct{}{}, nil
	})
	got, err := s.cpus(1)
	if !is[*hotplug.LockedError](err) || got != (hotplug.CPUs{From: 3, To: 2}) {
		t.Errorf("%+v, %v; want it locked after one", got, err)
	}
	s.true(2)
	if !strings.Contains(s.conf(), "lock: backup\n") {
		t.Errorf("the backup's lock is gone:\n%s", s.conf())
	}
}

// TestLockHeld: PVE changes the VM, and takes longer than we wait.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	s.limits = quick
	unlock, err := pmxcfs.LockConf(t.Context(), s.dir, vmid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cpus(2); !errors.Is(err, hotplug.ErrBusy) || !strings.Contains(err.Error(), "lock-100.conf") {
		t.Errorf("%v, want busy", err)
	}
	if n := s.vm.fake.Stats().Connections; n != 0 {
		t.Errorf("%d conversations while waiting for the lock, want none", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.plugger().CPUs(ctx, target, 2); !errors.Is(err, context.Canceled) || errors.Is(err, hotplug.ErrBusy) {
		t.Errorf("%v, want the caller's end", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	s.become(1, 2)
}

// TestLongHold: the lock is given back in between when there is much to do.
func TestLongHold(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	s.limits.Hold = 200 * time.Millisecond
	s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) {
		<-time.After(101 * time.Millisecond)
		s.vm.fake.SetVCPUs(s.vm.fake.VCPUs() + 1)
		return struct{}{}, nil
	})
	s.become(1, 4)
	if got := s.vm.fake.Stats().Commands["query-hotpluggable-cpus"]; got != 3 {
		t.Errorf("%d stretches under the lock, want 3", got)
	}
}

// TestUnwritable: what cannot be written is not begun.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	beside := filepath.Join(s.dir, fmt.Sprintf("%s.tmp.%d", confPath, os.Getpid()))
	if err := os.Mkdir(beside, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.cpus(2); err == nil {
		t.Error("no error")
	}
	s.says("1")
	if n := s.vm.fake.Stats().Commands["device_add"]; n != 0 {
		t.Error("a vCPU was plugged that the config cannot say")
	}
	s.become(1, 2)
}

// TestQEMURefuses: nothing is written, and nothing stays beside the config.
func TestQEMURefuses(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{})
	s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) { return nil, errors.New("no memory for that") })
	_, err := s.cpus(2)
	if refused, ok := errors.AsType[*qmp.Error](err); !ok || refused.Desc != "no memory for that" {
		t.Errorf("%v, want QEMU's words", err)
	}
	s.true(1)
	s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) { return struct{}{}, nil })
	if _, err := s.cpus(2); err == nil || !strings.Contains(err.Error(), "counts 1 vCPUs") {
		t.Errorf("%v, want it to notice that nothing came", err)
	}
	s.true(1)
}

// TestStoppedInTheMiddle: the answer to device_add does not come in time, because QEMU carries it out later, or has done so.
func TestStoppedInTheMiddle(t *testing.T) {
	t.Parallel()
	t.Run("late", func(t *testing.T) {
		t.Parallel()
		s := with(t, usual, qmptest.Config{})
		goOn := make(chan struct{})
		s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) {
			<-goOn
			s.vm.fake.SetVCPUs(2)
			return struct{}{}, nil
		})
		if _, err := s.cpus(2); !errors.Is(err, hotplug.ErrBusy) {
			t.Errorf("%v, want busy", err)
		}
		s.says("1")
		s.tidy()
		close(goOn)
		s.until("it was carried out", func() bool { return s.vm.fake.VCPUs() == 2 })
		if got, err := s.plugger().Mend(t.Context(), target); err != nil || got != (hotplug.CPUs{From: 1, To: 2}) {
			t.Errorf("%+v, %v", got, err)
		}
		s.true(2)
	})
	t.Run("done", func(t *testing.T) {
		t.Parallel()
		s := with(t, usual, qmptest.Config{})
		s.gate = qmp.NewGate(qmp.GateConfig{User: qmp.Options{Greeting: 10 * time.Second, Command: 300 * time.Millisecond, Hold: 10 * time.Second}})
		s.vm.fake.Handle("device_add", func(json.RawMessage) (any, error) {
			s.vm.fake.SetVCPUs(2)
			<-time.After(400 * time.Millisecond)
			return struct{}{}, nil
		})
		s.become(1, 2)
		if n := s.vm.fake.Stats().Commands["device_add"]; n != 1 {
			t.Errorf("%d times device_add, want it not repeated", n)
		}
	})
}

// TestGuestGivesLater: after the refusal, the guest gives its vCPU back after all.
func TestGuestGivesLater(t *testing.T) {
	t.Parallel()
	s := with(t, strings.Replace(usual, "vcpus: 1\n", "vcpus: 3\n", 1), qmptest.Config{VCPUs: 3, IgnoreUnplug: true})
	if _, err := s.cpus(1); !is[*hotplug.RefusedError](err) {
		t.Errorf("%v, want a refusal", err)
	}
	s.vm.fake.SetVCPUs(2)
	s.become(2, 4)
}

// TestEndsWhileTheGuestHasItsTime: the caller's end is the end.
func TestEndsWhileTheGuestHasItsTime(t *testing.T) {
	t.Parallel()
	s := with(t, strings.Replace(usual, "vcpus: 1\n", "vcpus: 2\n", 1), qmptest.Config{VCPUs: 2, IgnoreUnplug: true})
	s.limits.Unplug = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := s.plugger().CPUs(ctx, target, 1)
		ended <- err
	}()
	s.until("the guest was asked", func() bool { return s.vm.fake.Stats().Commands["device_del"] > 0 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || errors.Is(err, hotplug.ErrBusy) {
		t.Errorf("%v, want the caller's end", err)
	}
	s.true(2)
}

// TestStopsWhileTheGuestHasItsTime: the VM ends, and goes to another node, while a vCPU is waited for.
func TestStopsWhileTheGuestHasItsTime(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]error{"stopped": hotplug.ErrNotRunning, "migrated": hotplug.ErrMoved} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := with(t, strings.Replace(usual, "vcpus: 1\n", "vcpus: 2\n", 1), qmptest.Config{VCPUs: 2, IgnoreUnplug: true})
			s.limits.Unplug = time.Hour
			ended := make(chan error)
			go func() {
				_, err := s.cpus(1)
				ended <- err
			}()
			s.until("the guest was asked", func() bool { return s.vm.fake.Stats().Commands["device_del"] > 0 })
			if name == "migrated" {
				if err := os.Remove(filepath.Join(s.dir, confPath)); err != nil {
					t.Error(err)
				}
			}
			s.vm.kill()
			if err := <-ended; !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}
