package hotplug

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// CPUs is a number of vCPUs and what became of it, as QEMU counts them.
type CPUs struct {
	From, To int // before and after
}

// CPUs gives a running VM so many vCPUs, and the config with it; after an error, what it returns is how far it came. It may be
// repeated, also after a crash: the config is brought in line with what runs before anything is changed. When the VM runs with
// that many already, nothing is done but to drop another number that waits for a power cycle.
func (p *Plugger) CPUs(ctx context.Context, t Target, want int) (CPUs, error) {
	c := change{p: p, t: t, want: want}
	for !c.done {
		err := p.locked(ctx, t, c.turn)
		if err == nil && !c.done && c.leaving > 0 {
			err = c.await(ctx)
		}
		if err != nil {
			return c.CPUs, explain(ctx, "change the vCPUs", t, err)
		}
	}
	return c.CPUs, nil
}

// Mend makes the config say how many vCPUs run, after a crash in the middle of CPUs. From is what the config said, To what runs.
// Where they are the same nothing is asked of the VM, and what waits for a power cycle goes on waiting in any case.
func (p *Plugger) Mend(ctx context.Context, t Target) (CPUs, error) {
	var c CPUs
	err := p.locked(ctx, t, func(ctx context.Context, h *holding) (err error) {
		_, c.From = h.conf.CPUs()
		if err := free(h.conf); err != nil && h.conf.Lock() != lockBackup {
			return err
		}
		if c.To, err = p.count(ctx, t); err != nil {
			return err
		}
		return errors.Join(h.mend(ctx, c.To), p.cfg.Tree.DropAbandoned(p.cfg.Node, t.VMID))
	})
	return c, explain(ctx, "mend the vCPUs", t, err)
}

// lockBackup is the one `lock` under which what runs may be written down: a backup has read the config, and reads it anew
// before it takes its lock away.
const lockBackup = "backup"

// pluggable refuses a VM whose vCPUs PVE itself would not change. `hotplug` with cpu, and `cores` and `sockets`, are those that
// it was started with: PVE lets their changes wait for a power cycle.
func (h *holding) pluggable() error {
	if !h.conf.Hotplugs("cpu") {
		return fmt.Errorf("%w: hotplug has no cpu", ErrUnpluggable)
	}
	if arch, ok := h.conf.Get("arch"); ok && arch != "x86_64" {
		return fmt.Errorf("%w: arch is %s", ErrUnpluggable, arch)
	}
	return nil
}

// mend writes into the config what runs, if it says something else.
func (h *holding) mend(ctx context.Context, running int) error {
	maximum, said := h.conf.CPUs()
	if running == said {
		return nil
	}
	if err := h.pluggable(); err != nil {
		return err
	}
	if running > maximum {
		return fmt.Errorf("%w: %d vCPUs run, the config has room for %d", ErrUnpluggable, running, maximum)
	}
	h.p.cfg.Log.InfoContext(ctx, "the config gets the number of vCPUs that run", "vm", h.t.VMID, "config", said, "running", running)
	conf, err := h.says(running)
	if err != nil {
		return err
	}
	return h.write(conf)
}

// change is one call of CPUs.
type change struct {
	CPUs
	p       *Plugger
	t       Target
	want    int
	begun   bool
	leaving int       // the vCPU that the guest was asked to give back; 0: none
	asked   time.Time // when
	done    bool
}

// turn is what is done of a change while PVE's lock is ours.
func (c *change) turn(ctx context.Context, h *holding) error {
	if err := free(h.conf); err != nil {
		return errors.Join(err, c.last(ctx, h))
	}
	if err := h.pluggable(); err != nil {
		return err
	}
	if maximum, _ := h.conf.CPUs(); c.want < 1 || c.want > maximum {
		return &HeadroomError{Max: maximum}
	}
	m, err := h.machine(ctx)
	if err != nil {
		return err
	}
	c.note(m.vcpus)
	if err := h.mend(ctx, m.vcpus); err != nil {
		return err
	}
	switch {
	case c.want < m.vcpus:
		return c.remove(ctx, h, m.vcpus)
	case c.want > m.vcpus:
		return c.add(ctx, h, m)
	}
	c.done = true
	return h.settle()
}

// last writes down what runs when a backup has begun while the guest had its time for a vCPU.
func (c *change) last(ctx context.Context, h *holding) error {
	if c.leaving == 0 || h.conf.Lock() != lockBackup {
		return nil
	}
	running, err := c.p.count(ctx, c.t)
	if err != nil {
		return err
	}
	c.note(running)
	return h.mend(ctx, running)
}

// note notes what runs.
func (c *change) note(vcpus int) {
	if !c.begun {
		c.begun, c.From = true, vcpus
	}
	c.To = vcpus
}

// settle drops another number of vCPUs that waits for a power cycle.
func (h *holding) settle() error {
	conf := h.conf.DropPending("vcpus")
	if string(conf.Bytes()) == string(h.conf.Bytes()) {
		return nil
	}
	return h.write(conf)
}

// add plugs vCPUs, for as long as the lock may be held.
func (c *change) add(ctx context.Context, h *holding, m machine) error {
	for n := m.vcpus + 1; n <= c.want && !h.spent(); n++ {
		if err := c.addOne(ctx, h, m, n); err != nil {
			return fmt.Errorf("plug %s: %w", cpuID(n), err)
		}
	}
	c.done = c.To == c.want
	return nil
}

// addOne plugs the vCPU number n. The config that says so is laid ready before, and counts after.
func (c *change) addOne(ctx context.Context, h *holding, m machine, n int) error {
	conf, err := h.says(n)
	if err != nil {
		return err
	}
	conf = conf.DropPending("vcpus")
	staged, err := h.stage(conf)
	if err != nil {
		return err
	}
	if err := h.plug(ctx, m, n); err != nil {
		return errors.Join(err, staged.Discard())
	}
	c.note(n)
	if err := staged.Commit(); err != nil {
		return fmt.Errorf("it runs, and the config does not say so: %w", err)
	}
	h.conf = conf
	return nil
}

// remove asks the guest to give its last vCPU back, once. The guest gets its time without the lock.
func (c *change) remove(ctx context.Context, h *holding, running int) error {
	if c.leaving == running {
		return c.refused(running)
	}
	err := h.p.talk(ctx, h.t, func(s *qmp.Session) error {
		return s.Execute(ctx, "device_del", map[string]string{"id": cpuID(running)}, nil)
	})
	if _, refused := errors.AsType[*qmp.Error](err); refused { // a guest that has not come to ACPI yet
		err = fmt.Errorf("%w: %w", c.refused(running), err)
	}
	if err != nil {
		return fmt.Errorf("unplug %s: %w", cpuID(running), err)
	}
	c.leaving, c.asked = running, time.Now()
	return nil
}

func (c *change) refused(running int) error {
	return &RefusedError{What: "vCPUs", Want: c.want, Got: running}
}

// await gives the guest its time for the vCPU that it was asked for. What came of it is found out under the lock, whatever is
// seen here.
func (c *change) await(ctx context.Context) error {
	for wait := pauseFirst / 4; time.Since(c.asked) < c.p.cfg.Limits.Unplug; wait = min(2*wait, pauseLast) {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		n, err := c.p.count(ctx, c.t)
		switch {
		case errors.Is(err, ErrNotRunning), errors.Is(err, ErrMoved):
			return err
		case err == nil && n < c.leaving:
			return nil
		}
	}
	return nil
}
