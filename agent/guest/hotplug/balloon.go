package hotplug

import (
	"context"
	"errors"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

const mib = int64(1) << 20

// Balloon asks the guest of a running VM to live with so much memory and returns, in MiB, what it has when that has arrived.
// QEMU reports success also without a driver in the guest, so only what query-balloon tells counts: a guest that has not moved
// for some seconds has refused, and its target is then what it has, so that nothing changes behind the caller's back later. The
// config is not written. Balloon may be repeated.
func (p *Plugger) Balloon(ctx context.Context, t Target, want int) (actual int, err error) {
	b := balloon{p: p, t: t, want: int64(want) * mib}
	err = b.run(ctx)
	return b.mib(), explain(ctx, "set the balloon", t, err)
}

// balloon is one call of Balloon.
type balloon struct {
	p      *Plugger
	t      Target
	want   int64 // bytes
	actual int64 // bytes
}

// mib is what the guest has; it has the begun one, too.
func (b *balloon) mib() int { return int((b.actual + mib - 1) / mib) }

// arrived reports that the guest has what it should have. Less than a MiB is lost to pages that the guest rounds to.
func (b *balloon) arrived() bool { return max(b.actual-b.want, b.want-b.actual) < mib }

func (b *balloon) run(ctx context.Context) error {
	if err := b.set(ctx, b.want); err != nil {
		return err
	}
	moved, seen := time.Now(), b.actual
	for wait := pauseFirst; !b.arrived(); wait = min(2*wait, pauseLast) {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		err := b.look(ctx)
		switch {
		case err == nil && b.actual != seen:
			moved, seen = time.Now(), b.actual
		case errors.Is(err, ErrNotRunning), errors.Is(err, ErrMoved), errors.Is(err, ErrNoBalloon):
			return err
		case time.Since(moved) < b.p.cfg.Limits.Still:
		case err != nil:
			return err
		default:
			return b.refused(ctx)
		}
	}
	return nil
}

// set sends the target, and looks at once: a willing guest that runs may be there already.
func (b *balloon) set(ctx context.Context, target int64) error {
	conf, err := b.p.conf(b.t)
	if err == nil {
		err = free(conf)
	}
	if err != nil {
		return err
	}
	return b.talk(ctx, func(s *qmp.Session) error {
		if err := s.Execute(ctx, "balloon", map[string]int64{"value": target}, nil); err != nil {
			return err
		}
		return b.query(ctx, s)
	})
}

// look asks what the guest has.
func (b *balloon) look(ctx context.Context) error {
	return b.talk(ctx, func(s *qmp.Session) error { return b.query(ctx, s) })
}

func (b *balloon) query(ctx context.Context, s *qmp.Session) error {
	var state struct{ Actual int64 }
	if err := s.Execute(ctx, "query-balloon", nil, &state); err != nil {
		return err
	}
	b.actual = state.Actual
	return nil
}

func (b *balloon) talk(ctx context.Context, f func(*qmp.Session) error) error {
	err := b.p.talk(ctx, b.t, f)
	if refused, ok := errors.AsType[*qmp.Error](err); ok && refused.Class == qmp.ClassDeviceNotActive {
		return ErrNoBalloon
	}
	return err
}

// refused makes what the guest has its target.
func (b *balloon) refused(ctx context.Context) error {
	refused := &RefusedError{What: "MiB", Want: int(b.want / mib), Got: b.mib()}
	if err := b.set(ctx, int64(refused.Got)*mib); err != nil {
		return errors.Join(refused, err)
	}
	return refused
}
