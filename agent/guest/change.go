package guest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// change is one life of a reconfigure operation. What is to be done is planned anew after each step: the world decides,
// not the journal, whether the agent was killed meanwhile or somebody else has changed the VM.
type change struct {
	*Guests
	run   *ops.Run
	order changing
	id    record.ID

	mend   bool            // an earlier life may have left a vCPU of which the config says nothing
	tried  map[string]bool // steps that were carried out
	failed []failure
	live   []string  // what was done, in words
	waits  []string  // what was written for the next start
	silent time.Time // since when QEMU does not answer; zero: it does
	reason string    // why it waits, as logged last
}

// failure is a part of the VM that could not be changed.
type failure struct {
	part string
	err  error
}

// errAgain marks a step that came to nothing because the VM is not any more what it was planned for.
var errAgain = errors.New("the VM has changed meanwhile")

// errAtWork marks a VM that PVE is at work on, for a while.
var errAtWork = errors.New("PVE is at work on it")

// reconfigure is the handler of reconfigure operations.
func (g *Guests) reconfigure(ctx context.Context, r *ops.Run) error {
	c := &change{Guests: g, run: r, tried: map[string]bool{}}
	if err := r.Params(&c.order); err != nil {
		return err
	}
	var err error
	if c.id, err = ParseID(c.order.ID); err != nil {
		return err
	}
	ctx, cancel := budget(ctx, r.Op(), g.cfg.TaskTimeout)
	defer cancel()
	if err := c.awaitEarlier(ctx); err != nil {
		return err
	}
	err = ops.Retry(ctx, c.worth, c.all)
	return c.conclude(ctx, err)
}

// awaitEarlier waits for PVE's tasks of an earlier life: what they have done shows in the config.
func (c *change) awaitEarlier(ctx context.Context) error {
	for _, s := range c.run.Op().Steps {
		if !s.Ended.IsZero() {
			continue
		}
		c.mend = true
		if s.UPID == "" {
			continue
		}
		err := ops.Retry(ctx, underWay, func(ctx context.Context) error { return c.cfg.PVE.Wait(ctx, pve.UPID(s.UPID)) })
		if ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// worth reports whether a round that failed is worth another one.
func (c *change) worth(err error) bool {
	if text := err.Error(); text != c.reason {
		c.reason = text
		c.log.Info("a change of a VM did not get on", "vm", c.id.VMID, "err", err)
	}
	if !errors.Is(err, errSilent) && !errors.Is(err, hotplug.ErrBusy) {
		c.silent = time.Time{}
		return errors.Is(err, errAgain) || errors.Is(err, errAtWork)
	}
	if c.silent.IsZero() {
		c.silent = time.Now()
	}
	return time.Since(c.silent) < monitorTime
}

// all carries out one step after the other until nothing is left to be done.
func (c *change) all(ctx context.Context) error {
	for {
		vm, changes, err := c.look(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(changes.Steps, c.open)
		if i < 0 {
			for _, err := range changes.Refused {
				c.failed = append(c.failed, failure{err: err})
			}
			c.settleRecord(ctx, vm, c.order.Wish.Tags)
			return nil
		}
		if err := c.step(ctx, vm, changes.Steps[i]); err != nil {
			return err
		}
	}
}

// open reports whether a step is still to be carried out. A part of the VM that has failed is left as it is: the steps of
// a part build on each other.
func (c *change) open(s plan.Step) bool {
	return !c.tried[stepKey(s)] && !slices.ContainsFunc(c.failed, func(f failure) bool { return f.part == s.Part })
}

func stepKey(s plan.Step) string { return s.Part + ": " + s.What() }

// look finds the VM, free of PVE's locks, and plans what is left to be done.
func (c *change) look(ctx context.Context) (*pmxcfs.VM, plan.Changes, error) {
	if err := c.mended(ctx); err != nil {
		return nil, plan.Changes{}, err
	}
	vm, err := c.here(ctx)
	if err != nil {
		return nil, plan.Changes{}, err
	}
	now, err := c.now(ctx, vm)
	if err != nil {
		return nil, plan.Changes{}, err
	}
	changes, err := c.planChange(vm, c.order.Wish, now)
	return vm, changes, err
}

// here returns the VM with its config read anew.
func (c *change) here(ctx context.Context) (*pmxcfs.VM, error) {
	found, err := c.findHere(ctx, c.id)
	if err != nil {
		return nil, err
	}
	vm := &pmxcfs.VM{ID: found.ID, Node: found.Node, Type: found.Type}
	if vm.Conf, err = c.confHere(ctx, vm.ID); err != nil {
		return nil, err
	}
	switch {
	case vm.Conf == nil || !c.same(c.id, vm):
		return nil, fault.New(fault.Aborted, "VM %d: %w", vm.ID, errAgain)
	case lasting[vm.Conf.Lock()]:
		return nil, fault.New(fault.Precondition, "VM %d is locked (%s) until somebody resumes or unlocks it", vm.ID, vm.Conf.Lock())
	case vm.Conf.Lock() != "": // PVE takes it away when it is done
		return nil, fault.New(fault.Aborted, "VM %d is locked (%s): %w", vm.ID, vm.Conf.Lock(), errAtWork)
	}
	return vm, nil
}

// mended makes the config say how many vCPUs run, where an earlier life was interrupted. That comes before all else, and
// waits for no backup.
func (c *change) mended(ctx context.Context) error {
	if !c.mend {
		return nil
	}
	if _, err := c.findHere(ctx, c.id); err != nil {
		return err
	}
	_, err := c.cfg.Plugger.Mend(ctx, c.target(c.id.VMID))
	if errors.Is(err, hotplug.ErrNotRunning) || errors.Is(err, hotplug.ErrUnpluggable) {
		err = nil // there is nothing to be mended
	}
	if err != nil {
		return c.plugError(err)
	}
	c.mend = false
	return nil
}

func (c *change) target(vmid int) hotplug.Target {
	return hotplug.Target{VMID: vmid, Is: func(conf *pmxcfs.Conf) bool {
		return c.id.UUID8 == "" || record.NewID(vmid, conf.SMBIOSUUID()) == c.id
	}}
}

// step carries out a step. What fails is noted, and is no error here unless everything has to be looked at anew.
func (c *change) step(ctx context.Context, vm *pmxcfs.VM, s plan.Step) error {
	key := stepKey(s)
	name := fmt.Sprintf("%d %s", len(c.run.Op().Steps)+1, key) // the same may come again in another life
	err := c.run.Step(ctx, name, func(ctx context.Context, run *ops.StepRun) error {
		return c.carryOut(ctx, vm, &s, run)
	})
	switch {
	case err == nil && c.pending(ctx, vm.ID, s):
		c.waits = append(c.waits, stepKey(s))
	case err == nil:
		c.live = append(c.live, stepKey(s))
	case ctx.Err() != nil || errors.Is(err, errAgain) || errors.Is(err, hotplug.ErrBusy):
		return err
	default:
		c.failed = append(c.failed, failure{part: s.Part, err: fault.New(fault.Of(err), "%s: %w", s.Part, err)})
	}
	c.tried[key] = true
	return nil
}

// pending reports whether what a step has written waits for the next start. PVE does not tell.
func (c *change) pending(ctx context.Context, vmid int, s plan.Step) bool {
	conf, err := c.confHere(ctx, vmid)
	if err != nil || conf == nil {
		return s.Waits
	}
	waits := conf.Pending()
	return slices.ContainsFunc(slices.Concat(slices.Collect(maps.Keys(s.Config)), s.Delete), func(k string) bool {
		_, changes := waits.Get(k)
		return changes || waits.Deletes(k)
	})
}

func (c *change) carryOut(ctx context.Context, vm *pmxcfs.VM, s *plan.Step, run *ops.StepRun) error {
	switch s.Way {
	case plan.Plug:
		return c.plug(ctx, vm, s)
	case plan.Balloon:
		return c.balloon(ctx, vm, s)
	case plan.Resize:
		return c.resize(ctx, vm, s.Grow, run)
	case plan.SetTask:
		return c.setTask(ctx, vm, s, run)
	default:
		return c.set(ctx, vm, s)
	}
}

// parameters are those of a change of the config that was planned for conf: PVE refuses it if that is not so any more.
func parameters(s *plan.Step, conf *pmxcfs.Conf) url.Values {
	v := url.Values{"digest": {conf.Digest()}}
	for k, value := range s.Config {
		v.Set(k, value)
	}
	if len(s.Delete) > 0 {
		v.Set("delete", strings.Join(s.Delete, ","))
	}
	return v
}

func (c *change) set(ctx context.Context, vm *pmxcfs.VM, s *plan.Step) error {
	err := ops.Retry(ctx, passing, func(ctx context.Context) error {
		return c.cfg.PVE.SetConfig(ctx, c.cfg.Node, vm.ID, parameters(s, vm.Conf))
	})
	return c.settled(ctx, vm, s, err)
}

func (c *change) setTask(ctx context.Context, vm *pmxcfs.VM, s *plan.Step, run *ops.StepRun) error {
	find := func(ctx context.Context) (pve.UPID, bool, error) {
		// PVE writes what it was asked for as pending first: while it is at it, that says nothing of how it ends.
		if err := c.awaitTasks(ctx, vm.ID, "qmconfig", c.run.Op().Created); err != nil {
			return "", false, err
		}
		said, err := c.said(ctx, vm.ID, s)
		return "", said, err
	}
	err := c.runTask(ctx, run, find, func(ctx context.Context) (pve.UPID, error) {
		return c.cfg.PVE.ConfigTask(ctx, c.cfg.Node, vm.ID, parameters(s, vm.Conf))
	})
	return c.settled(ctx, vm, s, err)
}

// settled judges the end of a change of the config. PVE writes a change as pending before it tries to make it so, and says
// so if it cannot, for instance that there is no room for so many vCPUs: where the change is meant to wait, that is all that
// is wanted.
func (c *change) settled(ctx context.Context, vm *pmxcfs.VM, s *plan.Step, err error) error {
	switch pve.KindOf(err) {
	case pve.KindNone:
		return nil
	case pve.KindDigest, pve.KindLocked, pve.KindNoSuchVM:
		return fault.New(fault.Aborted, "%w: %w", errAgain, err)
	}
	if s.Waits {
		if said, again := c.said(ctx, vm.ID, s); said && again == nil {
			return nil
		}
	}
	return explain("set "+s.What(), err)
}

// said reports whether the config, or what waits for the next start, says what a step writes.
func (c *change) said(ctx context.Context, vmid int, s *plan.Step) (bool, error) {
	conf, err := c.confHere(ctx, vmid)
	if err != nil || conf == nil {
		return false, err
	}
	for k, want := range s.Config {
		have, ok := conf.Next(k)
		serial, disk := pmxcfs.Props(want).Get("serial")
		if disk {
			want = serial
			have, ok = pmxcfs.Props(have).Get("serial")
		}
		if !ok || have != want {
			return false, nil
		}
	}
	return !slices.ContainsFunc(s.Delete, func(k string) bool { _, ok := conf.Next(k); return ok }), nil
}

func (c *change) resize(ctx context.Context, vm *pmxcfs.VM, g plan.Growth, run *ops.StepRun) error {
	find := func(ctx context.Context) (pve.UPID, bool, error) {
		conf, err := c.confHere(ctx, vm.ID)
		if err != nil || conf == nil {
			return "", false, err
		}
		i := slices.IndexFunc(conf.Drives(), func(d pmxcfs.Drive) bool { return d.Key == g.Disk && d.Size >= int64(g.GiB)<<30 })
		return "", i >= 0, nil
	}
	err := c.runTask(ctx, run, find, func(ctx context.Context) (pve.UPID, error) {
		return c.cfg.PVE.Resize(ctx, c.cfg.Node, vm.ID, g.Disk, fmt.Sprintf("%dG", g.GiB))
	})
	switch pve.KindOf(err) {
	case pve.KindNone:
		return nil
	case pve.KindLocked, pve.KindNoSuchVM:
		return fault.New(fault.Aborted, "%w: %w", errAgain, err)
	}
	return explain(fmt.Sprintf("grow %s to %d GiB", g.Disk, g.GiB), err)
}

func (c *change) plug(ctx context.Context, vm *pmxcfs.VM, s *plan.Step) error {
	_, err := c.cfg.Plugger.CPUs(ctx, c.target(vm.ID), s.CPUs)
	if errors.Is(err, hotplug.ErrUnpluggable) { // the config allows it, and the VM was not started so
		c.log.InfoContext(ctx, "the number of vCPUs waits for the next start of a VM", "vm", vm.ID, "vcpus", s.CPUs, "err", err)
		*s = plan.Step{Part: s.Part, Way: plan.Set, Waits: true, Config: plan.Values{"vcpus": strconv.Itoa(s.CPUs)}, Why: s.Why}
		return c.set(ctx, vm, s)
	}
	return c.plugError(err)
}

// plugError gives an error of the Plugger its reason.
func (c *change) plugError(err error) error {
	_, locked := errors.AsType[*hotplug.LockedError](err)
	_, full := errors.AsType[*hotplug.HeadroomError](err)
	switch {
	case err == nil:
		return nil
	case locked, full, errors.Is(err, hotplug.ErrMoved), errors.Is(err, hotplug.ErrNotRunning):
		return fault.New(fault.Aborted, "%w: %w", errAgain, err)
	case errors.Is(err, hotplug.ErrBusy):
		return fault.New(fault.Aborted, "%w", err)
	}
	return fault.New(fault.Precondition, "%w", err)
}

func (c *change) balloon(ctx context.Context, vm *pmxcfs.VM, s *plan.Step) error {
	if len(s.Config)+len(s.Delete) > 0 {
		if err := c.set(ctx, vm, s); err != nil {
			return err
		}
	}
	got, err := c.cfg.Plugger.Balloon(ctx, c.target(vm.ID), s.MiB)
	_, refused := errors.AsType[*hotplug.RefusedError](err)
	switch {
	case errors.Is(err, hotplug.ErrNoBalloon):
		got = int(vm.Conf.MemoryMiB())
	case !refused:
		return c.plugError(err)
	}
	err = fault.New(fault.Precondition, "%w; is its balloon driver loaded?", err)
	return errors.Join(err, c.keepBalloon(ctx, got, s.MiB))
}

// keepBalloon makes the config say what the guest has after it did not do what it was asked for. If it has given nothing,
// less memory is the affair of its next start.
func (c *change) keepBalloon(ctx context.Context, got, asked int) error {
	return ops.Retry(ctx, func(err error) bool { return errors.Is(err, errAgain) || errors.Is(err, errAtWork) || passing(err) }, func(ctx context.Context) error {
		vm, err := c.here(ctx)
		if err != nil {
			return err
		}
		most := int(vm.Conf.MemoryMiB())
		s := plan.Step{Part: "memory", Way: plan.Set, Config: plan.Values{}}
		static := !vm.Conf.Hotplugs("memory") // else PVE would plug DIMMs, or take them out
		if got < most {
			s.Config = plan.Values{"balloon": strconv.Itoa(got), "shares": "0"}
			if static {
				s.Config["memory"] = strconv.Itoa(most) // PVE refuses a balloon larger than the memory that waits
			}
			return c.set(ctx, vm, &s)
		}
		s.Delete = []string{"balloon", "shares"}
		if err := c.set(ctx, vm, &s); err != nil || !static || asked >= most {
			return err
		}
		if vm, err = c.here(ctx); err != nil {
			return err
		}
		return c.set(ctx, vm, &plan.Step{Part: "memory", Way: plan.Set, Waits: true, Config: plan.Values{"memory": strconv.Itoa(asked)}})
	})
}

// conclude says what became of it all.
func (c *change) conclude(ctx context.Context, err error) error {
	var errs []error
	for _, f := range c.failed {
		errs = append(errs, f.err)
	}
	if err != nil {
		errs = append(errs, err)
	}
	if again := c.cfg.Watcher.Refresh(ctx); again != nil && ctx.Err() == nil {
		c.log.WarnContext(ctx, "VM reconfigured, but /etc/pve could not be read again at once", "vm", c.id.VMID, "err", again)
	}
	c.log.InfoContext(ctx, "VM reconfigured", "vm", c.id.VMID, "name", c.run.Op().Subject.Name, "live", c.live, "next_start", c.waits, "failed", len(errs))
	return summary(c.id.VMID, slices.Concat(c.live, c.waits), errs)
}
