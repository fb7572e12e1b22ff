package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

const (
	// moveTime is how long a move may take: local disks of terabytes go over the network.
	moveTime = 24 * time.Hour
	// lockPatience is how long a move waits for what PVE is doing to the VM, such as a backup.
	lockPatience = 5 * time.Minute
	// haPatience is how long the HA manager may do nothing visible about a move. It looks at its requests every 10 s, on
	// two nodes one after the other, and moves a few VMs at a time.
	haPatience = 10 * time.Minute
	// arrival is how long the files and the published states may take to tell of a move that has ended.
	arrival = 20 * time.Second
)

// migration is what a migrate operation is asked to do.
type migration struct {
	ID, Target string
	Running    bool // it ran when that was asked
}

func (p migration) act() string { return fmt.Sprintf("move VM %s to node %s", p.ID, p.Target) }

// Migrate begins to move a VM of this node to another node, or joins the move there that is under way. A running VM goes
// on running. A nil handle means that it is there already.
func (g *Guests) Migrate(ctx context.Context, owner string, id record.ID, target string) (*ops.Handle, error) {
	vm, err := g.findBy(ctx, id, g.cfg.Watcher.LocateNow)
	if err != nil {
		return nil, err
	}
	if vm.Node == target {
		return nil, nil
	}
	if err := g.here(id, vm); err != nil {
		return nil, err
	}
	p := migration{ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String(), Target: target, Running: g.cfg.Status.Running(vm.ID)}
	if err := g.mayMove(ctx, vm, p); err != nil {
		return nil, err
	}
	h, joined, err := g.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Migrate, Key: fmt.Sprintf("%s/%d", ops.Migrate, vm.ID), Params: p,
		Subject: ops.Subject{Owner: owner, Name: vm.Conf.Name(), ID: p.ID},
	})
	if !joined || err != nil {
		return h, err
	}
	var other migration
	if err := json.Unmarshal(h.Op().Params, &other); err == nil && other.Target != target {
		return nil, fault.New(fault.Aborted, "%s: it is being moved to node %s", p.act(), other.Target)
	}
	return h, nil
}

// mayMove refuses what cannot succeed, before anything is begun.
func (g *Guests) mayMove(ctx context.Context, vm *pmxcfs.VM, p migration) error {
	if err := g.mayStart(ctx, p.act(), true); err != nil {
		return err
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", p.act(), err)
	}
	if _, known := world.Members.Nodes[p.Target]; !known {
		return fault.New(fault.Invalid, "%s: the cluster has no such node", p.act())
	}
	if !world.Online(p.Target) {
		return fault.New(fault.Precondition, "%s: that node is offline", p.act())
	}
	if why := Immovable(vm.Conf, world.Storages, p.Running); why != "" {
		return fault.New(fault.Precondition, "%s: %s", p.act(), why)
	}
	return nil
}

// migrate is the handler of migrate operations. PVE itself sees to it that a VM never runs on two nodes; here it is only
// asked once, and looked at afterwards, whatever it says.
func (g *Guests) migrate(ctx context.Context, r *ops.Run) error {
	var p migration
	if err := r.Params(&p); err != nil {
		return err
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	return r.Step(ctx, "migrate", func(ctx context.Context, s *ops.StepRun) error {
		ctx, cancel := budget(ctx, r.Op(), moveTime)
		defer cancel()
		m := &move{Guests: g, migration: p, id: id, began: r.Op().Created, task: pve.UPID(s.UPID)}
		err := ops.Retry(ctx, m.worth, g.pveTask(s, m.find, m.start).Attempt)
		return m.end(ctx, err)
	})
}

// move is a migrate operation under way.
type move struct {
	*Guests
	migration
	id    record.ID
	began time.Time
	task  pve.UPID // of PVE; "": none yet
}

// worth reports whether an attempt may succeed later. What PVE does to the VM ends by itself, mostly.
func (m *move) worth(err error) bool {
	if pve.KindOf(err) == pve.KindLocked || errors.Is(err, errOccupied) {
		return time.Since(m.began) < lockPatience
	}
	return passing(err) || errors.Is(err, errNotYet)
}

// errOccupied is the finding that PVE is at work on a VM.
var errOccupied = errors.New("PVE is at work on it")

// find looks for the task of a call whose answer was lost, and for what it did.
func (m *move) find(ctx context.Context) (pve.UPID, bool, error) {
	t, ok, err := m.lastTask(ctx, "qmigrate", "hamigrate")
	if err != nil || !ok {
		return "", false, err
	}
	m.task = t.UPID
	return t.UPID, true, nil
}

// lastTask is the newest task of this operation, of one of the types. PVE shows tasks of others only to who has
// Sys.Audit.
func (m *move) lastTask(ctx context.Context, types ...string) (newest pve.Task, ok bool, err error) {
	for _, typ := range types {
		tasks, err := m.cfg.PVE.Tasks(ctx, m.cfg.Node, pve.TaskQuery{VMID: m.id.VMID, Type: typ, Since: m.began, Source: "all", Limit: 1})
		if err != nil {
			return pve.Task{}, false, err
		}
		if len(tasks) > 0 && (!ok || tasks[0].Start >= newest.Start) {
			newest, ok = tasks[0], true
		}
	}
	return newest, ok, nil
}

// start asks PVE for the move, unless the VM is elsewhere already.
func (m *move) start(ctx context.Context) (pve.UPID, error) {
	vm, err := m.findBy(ctx, m.id, m.cfg.Watcher.LocateNow)
	if err != nil {
		return "", err
	}
	if vm.Node != m.cfg.Node {
		return "", nil // end tells whether it is where it should be
	}
	if lock := vm.Conf.Lock(); lock != "" {
		return "", fmt.Errorf("%s: %w (lock: %s)", m.act(), errOccupied, lock)
	}
	running := m.cfg.Status.Running(vm.ID)
	m.task, err = m.cfg.PVE.Migrate(ctx, m.cfg.Node, vm.ID, pve.MigrateParams{Target: m.Target, Online: running, WithLocalDisks: running})
	return m.task, err
}

// end looks where the VM is after PVE's task has ended with err.
func (m *move) end(ctx context.Context, err error) error {
	if err == nil && pve.IsHARequest(m.task) {
		err = m.awaitHA(ctx)
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return err // the agent stops: the next one looks
	}
	looking, cancel := context.WithTimeout(ctx, arrival)
	defer cancel()
	vm, lerr := m.look(looking, err == nil)
	switch {
	case lerr != nil:
		return errors.Join(m.explain(err), lerr)
	case vm.Node == m.Target && err == nil:
		return nil
	case vm.Node == m.Target:
		return m.arrived(looking, vm, err)
	case vm.Node != m.cfg.Node:
		return fault.New(fault.Aborted, "%s: it is on node %s now", m.act(), vm.Node)
	case err == nil:
		return fault.New(fault.Aborted, "%s: PVE says that it has done so, and it is still on node %s", m.act(), vm.Node)
	}
	return m.explain(err)
}

func (m *move) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errOccupied):
		return fault.New(fault.Aborted, "%w", err)
	case fault.Of(err) != fault.Internal:
		return err
	}
	if task, ok := errors.AsType[*pve.TaskError](err); ok {
		if why := complaint(task.Log); why != "" {
			return explain(fmt.Sprintf("%s: %s", m.act(), why), err)
		}
	}
	return explain(m.act(), err)
}

// complaint is what the log of a failed migration says of the reason: its end says only that there was one.
func complaint(log []string) string {
	for _, line := range log {
		if _, why, ok := strings.Cut(line, "ERROR: "); ok {
			return strings.TrimSpace(migrationNoise.ReplaceAllString(why, ""))
		}
	}
	return ""
}

var migrationNoise = regexp.MustCompile(`^migration aborted \(duration [0-9:]+\): `)

// look finds the VM, if it should have gone until it has.
func (m *move) look(ctx context.Context, gone bool) (vm *pmxcfs.VM, err error) {
	worth := func(err error) bool { return errors.Is(err, errNotYet) || fault.Is(err, fault.Aborted) }
	err = ops.Retry(ctx, worth, func(ctx context.Context) (err error) {
		vm, err = m.findBy(ctx, m.id, m.cfg.Watcher.LocateNow)
		if err == nil && gone && vm.Node == m.cfg.Node {
			err = errNotYet
		}
		return err
	})
	if vm != nil && errors.Is(err, errNotYet) {
		return vm, nil
	}
	return vm, err
}

// arrived judges a VM that is where it should be although PVE says that something went wrong: what is left to do on this
// node may have failed, but also the going on of the guest there.
func (m *move) arrived(ctx context.Context, vm *pmxcfs.VM, failed error) error {
	if !m.Running {
		return nil
	}
	err := ops.Retry(ctx, func(err error) bool { return errors.Is(err, errNotYet) || passing(err) }, func(ctx context.Context) error {
		if world, err := m.cfg.Watcher.World(); err == nil && !world.Online(vm.Node) {
			return errors.New("that node is offline now")
		}
		got, err := m.powerAnywhere(ctx, vm)
		if err == nil && got != status.On {
			err = errNotYet
		}
		return err
	})
	if err != nil {
		return fault.New(fault.Aborted, "%s: it is there, but does not run; PVE says: %w", m.act(), failed)
	}
	m.log.WarnContext(ctx, "a VM was moved and runs, but PVE found something wrong", "vm", m.id, "target", m.Target, "err", failed)
	return nil
}

// awaitHA waits until the HA manager, which has taken the request, has moved the VM. That it failed is in a task of its
// own on this node, which only a token with Sys.Audit sees; without it the time tells.
func (m *move) awaitHA(ctx context.Context) error {
	last := time.Now() // when something was seen to happen
	worth := func(err error) bool {
		return (errors.Is(err, errNotYet) || passing(err) || fault.Is(err, fault.Aborted)) && time.Since(last) < haPatience
	}
	return ops.Retry(ctx, worth, func(ctx context.Context) error {
		vm, err := m.findBy(ctx, m.id, m.cfg.Watcher.LocateNow)
		if err != nil || vm.Node != m.cfg.Node {
			return err
		}
		task, ok, err := m.lastTask(ctx, "qmigrate")
		ok = ok && !older(task.UPID, m.task)
		if ok && !task.Running() && task.Err() != nil {
			return fault.New(fault.Precondition, "%s: the HA manager has tried: %w", m.act(), task.Err())
		}
		if ok && task.Running() || vm.Conf.Lock() == "migrate" {
			last = time.Now()
		}
		if err == nil {
			err = errNotYet
		}
		return fmt.Errorf("%s: %w", m.act(), err)
	})
}

// older reports whether a task was started before another one of the same node: an earlier move within the same second
// says nothing of this one.
func older(u, than pve.UPID) bool {
	a, aerr := pve.ParseUPID(string(u))
	b, berr := pve.ParseUPID(string(than))
	return aerr == nil && berr == nil && a.PStart < b.PStart
}
