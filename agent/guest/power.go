package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// PowerOp is a change of a VM's power state.
type PowerOp string

// The changes a client may ask for. Their text is stored in the journal.
const (
	PowerOn       PowerOp = "on"
	PowerOff      PowerOp = "off"      // at once, without asking the guest
	PowerReboot   PowerOp = "reboot"   // asking the guest; a stopped VM is started
	PowerGraceful PowerOp = "graceful" // asking the guest, then at once
)

// defaultGrace is how long a guest may take to shut down when the request does not say.
const defaultGrace = 60 * time.Second

// powerTime is how long a change of power may take beside the time given to the guest: waiting for a lock, for PVE to
// come back, for the HA manager, which looks at its requests every 10 s.
const powerTime = 5 * time.Minute

// powering is what a power operation is asked to do.
type powering struct {
	ID    string
	Op    PowerOp
	Grace time.Duration
}

// Power changes the power state of a VM, or joins the operation that does it. A nil handle means that the VM is in
// the wanted state already: nothing was called.
func (g *Guests) Power(ctx context.Context, owner string, id record.ID, op PowerOp, grace time.Duration) (*ops.Handle, error) {
	vm, err := g.findHere(ctx, id)
	if err != nil {
		return nil, err
	}
	if vm.Conf.Template() {
		return nil, fault.New(fault.Precondition, "power %s %s: VM %d (%s) is a template and never runs", op, id, vm.ID, vm.Conf.Name())
	}
	st, err := g.state(ctx, vm)
	if err != nil {
		return nil, err
	}
	if op != PowerReboot && st.Power == wanted(op) {
		return nil, nil
	}
	if err := g.mayStart(ctx, fmt.Sprintf("power %s %s", op, id), op == PowerOn); err != nil {
		return nil, err
	}
	if grace <= 0 {
		grace = defaultGrace
	}
	h, _, err := g.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Power, Key: fmt.Sprintf("%s/%d/%s", ops.Power, vm.ID, op), Params: powering{ID: id.String(), Op: op, Grace: grace},
		Subject: ops.Subject{Owner: owner, Name: vm.Conf.Name(), ID: id.String()},
	})
	return h, err
}

func wanted(op PowerOp) status.Power {
	if op == PowerOn || op == PowerReboot {
		return status.On
	}
	return status.Off
}

// state asks for the live state of a VM of this node on behalf of a user.
func (g *Guests) state(ctx context.Context, vm *pmxcfs.VM) (status.State, error) {
	st, err := g.cfg.Status.State(ctx, vm.ID, status.Want{Lock: vm.Conf.Lock(), Agent: vm.Conf.AgentEnabled(), User: true})
	if err != nil {
		return st, fault.New(fault.Precondition, "%s: its state cannot be read: %w", vmText(vm.ID), err)
	}
	return st, nil
}

// power is the handler of power operations.
func (g *Guests) power(ctx context.Context, r *ops.Run) error {
	var p powering
	if err := r.Params(&p); err != nil {
		return err
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	return r.Step(ctx, string(p.Op), func(ctx context.Context, s *ops.StepRun) error {
		ctx, cancel := budget(ctx, r.Op(), p.Grace+powerTime)
		defer cancel()
		vm, err := g.findHere(ctx, id)
		if err != nil {
			return err
		}
		if s.Again {
			if done, err := g.powerReached(ctx, vm, p.Op, r.Op().Created); done || err != nil {
				return err
			}
		}
		var task pve.UPID
		err = g.runTask(ctx, s, nil, func(ctx context.Context) (pve.UPID, error) {
			var err error
			task, err = g.powerStart(ctx, vm.ID, p.Op, p.Grace)
			return task, err
		})
		if err != nil && !alreadyThere(err, p.Op) {
			return explain(fmt.Sprintf("power %s VM %d", p.Op, vm.ID), err)
		}
		if task == "" {
			task = pve.UPID(s.UPID)
		}
		if !pve.IsHARequest(task) {
			return nil
		}
		return g.awaitHA(ctx, id, wanted(p.Op))
	})
}

// powerReached reports whether an interrupted operation had its effect already. For a reboot that is a process
// younger than the operation.
func (g *Guests) powerReached(ctx context.Context, vm *pmxcfs.VM, op PowerOp, since time.Time) (bool, error) {
	st, err := g.state(ctx, vm)
	if err != nil {
		return false, err
	}
	if op == PowerReboot {
		return st.Running && st.StartedAt.After(since), nil
	}
	return st.Power == wanted(op), nil
}

func alreadyThere(err error, op PowerOp) bool {
	switch pve.KindOf(err) {
	case pve.KindAlreadyRunning:
		return op == PowerOn
	case pve.KindNotRunning:
		return op == PowerOff || op == PowerGraceful
	default:
		return false
	}
}

// powerStart makes the PVE call for a change of power.
func (g *Guests) powerStart(ctx context.Context, vmid int, op PowerOp, grace time.Duration) (pve.UPID, error) {
	switch op {
	case PowerOn:
		return g.cfg.PVE.Start(ctx, g.cfg.Node, vmid)
	case PowerReboot:
		u, err := g.cfg.PVE.Reboot(ctx, g.cfg.Node, vmid, grace)
		if pve.KindOf(err) == pve.KindNotRunning { // what is wanted is a freshly booted VM
			return g.cfg.PVE.Start(ctx, g.cfg.Node, vmid)
		}
		return u, err
	case PowerGraceful:
		return g.cfg.PVE.Shutdown(ctx, g.cfg.Node, vmid, grace, true)
	default:
		return g.cfg.PVE.Stop(ctx, g.cfg.Node, vmid)
	}
}

// powerCall is powerStart with its wait, outside of a power operation.
func (g *Guests) powerCall(ctx context.Context, vmid int, op PowerOp, grace time.Duration) error {
	u, err := g.powerStart(ctx, vmid, op, grace)
	if err == nil {
		err = g.cfg.PVE.Wait(ctx, u)
	}
	if err != nil && !alreadyThere(err, op) {
		return err
	}
	if pve.IsHARequest(u) {
		return g.awaitHA(ctx, record.ID{VMID: vmid}, wanted(op))
	}
	return nil
}

// errNotYet is the state of an HA-managed VM before the HA manager has done what it was asked.
var errNotYet = errors.New("the HA manager has not done it yet")

// awaitHA waits for the real state of a VM after a hastart or hastop task, whose OK only means that the request was
// filed. The owner is looked up each time, because the HA manager may start the VM on another node.
func (g *Guests) awaitHA(ctx context.Context, id record.ID, want status.Power) error {
	worth := func(err error) bool {
		return errors.Is(err, errNotYet) || passing(err) || fault.Is(err, fault.Aborted)
	}
	err := ops.Retry(ctx, worth, func(ctx context.Context) error {
		vm, err := g.find(ctx, id)
		if err != nil {
			return err
		}
		got, err := g.powerAnywhere(ctx, vm)
		if err == nil && got != want {
			err = errNotYet
		}
		return err
	})
	if err != nil {
		return fault.New(fault.Aborted, "VM %d is managed by HA and is not %s: %w", id.VMID, strings.ToLower(string(want)), err)
	}
	return nil
}

// powerAnywhere returns the power state of a VM on whichever node it is. Of other nodes it knows what they publish to
// all every 10 s: pvedaemon passes no calls on to them.
func (g *Guests) powerAnywhere(ctx context.Context, vm *pmxcfs.VM) (status.Power, error) {
	if vm.Node == g.cfg.Node {
		st, err := g.state(ctx, vm)
		return st.Power, err
	}
	all, err := g.cfg.PVE.Resources(ctx, "vm")
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if int(r.VMID) == vm.ID && r.Status == "running" {
			return status.On, nil
		}
	}
	return status.Off, nil
}
