package hotplug_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

const mib = 1 << 20

// balloon asks for so much memory.
func (s *stage) balloon(want int) (int, error) {
	return s.plugger().Balloon(s.Context(), target, want)
}

// TestBalloonWithoutGuest: QEMU says yes, and nobody moves.
func TestBalloonWithoutGuest(t *testing.T) {
	t.Parallel()
	on(t, func(s *stage) {
		got, err := s.balloon(32)
		refused, ok := errors.AsType[*hotplug.RefusedError](err)
		if !ok || *refused != (hotplug.RefusedError{What: "MiB", Want: 32, Got: 64}) || got != 64 {
			s.Errorf("%d MiB, %v; want a refusal", got, err)
		}
		if got, err := s.balloon(64); err != nil || got != 64 {
			s.Errorf("to what it has: %d MiB, %v", got, err)
		}
		s.says("1")
	})
}

func TestBalloon(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{MemoryMiB: 512})
	if got, err := s.balloon(256); err != nil || got != 256 || s.vm.fake.Balloon() != 256*mib {
		t.Errorf("a willing guest: %d MiB, %v", got, err)
	}
	if n := s.vm.fake.Stats().Connections; n != 1 {
		t.Errorf("%d conversations, want one", n)
	}
	s.vm.fake.SetBalloonStep(100 * mib)
	if got, err := s.balloon(512); err != nil || got != 512 {
		t.Errorf("a slow guest: %d MiB, %v", got, err)
	}
	s.vm.fake.SetBalloonStep(0)
	s.vm.fake.SetBalloonFloor(300*mib + 5)
	got, err := s.balloon(200)
	refused, ok := errors.AsType[*hotplug.RefusedError](err)
	if !ok || refused.Want != 200 || refused.Got != 301 || got != 301 {
		t.Errorf("a guest that keeps a part: %d MiB, %v", got, err)
	}
	// What it has is its target now: it does not shrink later.
	s.vm.fake.SetBalloonFloor(0)
	if at := s.vm.fake.Balloon(); at != 301*mib {
		t.Errorf("the balloon is at %d bytes", at)
	}
	if got, err := s.balloon(1024); !is[*hotplug.RefusedError](err) || got != 512 {
		t.Errorf("more than there is: %d MiB, %v", got, err)
	}
}

// TestSlowBalloon moves for longer than it may stand still.
func TestSlowBalloon(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{MemoryMiB: 512})
	s.limits.Still = 250 * time.Millisecond
	s.vm.fake.SetBalloonStep(120 * mib)
	begin := time.Now()
	if got, err := s.balloon(256); err != nil || got != 256 {
		t.Errorf("%d MiB, %v", got, err)
	}
	if took := time.Since(begin); took < 2*pauseFirst {
		t.Errorf("took %v: it was looked at without a pause", took)
	}
}

const pauseFirst = 100 * time.Millisecond

func TestNoBalloon(t *testing.T) {
	t.Parallel()
	s := with(t, usual, qmptest.Config{BalloonMiB: -1})
	if _, err := s.balloon(32); !errors.Is(err, hotplug.ErrNoBalloon) {
		t.Errorf("%v, want no balloon", err)
	}
}

// TestBalloonEnds with the caller, with the VM, and when QEMU says nothing for too long.
func TestBalloonEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(*stage, context.CancelFunc)
		want error
	}{
		"canceled": {func(_ *stage, cancel context.CancelFunc) { cancel() }, context.Canceled},
		"stopped":  {func(s *stage, _ context.CancelFunc) { s.vm.kill() }, hotplug.ErrNotRunning},
		"hung":     {func(s *stage, _ context.CancelFunc) { s.vm.hang(true) }, hotplug.ErrBusy},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := with(t, usual, qmptest.Config{MemoryMiB: 512})
			s.limits.Still = 2 * time.Second
			s.vm.fake.SetBalloonDriver(false)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error)
			go func() {
				_, err := s.plugger().Balloon(ctx, target, 256)
				ended <- err
			}()
			s.until("it was looked at", func() bool { return s.vm.fake.Stats().Commands["query-balloon"] > 1 })
			c.end(s, cancel)
			if err := <-ended; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}
