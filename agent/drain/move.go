package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

const (
	// tries is how many times a VM is moved, to whatever nodes, before it stays.
	tries = 3
	// pollMin and pollMax are the pauses between two questions to another agent.
	pollMin, pollMax = 50 * time.Millisecond, 2 * time.Second
	// callTime is how long another agent may take for an answer.
	callTime = 15 * time.Second
	// calm is how long a VM is left alone before it is tried for a third time: what fails at once may be over soon.
	calm = 5 * time.Second
	// renewal is how often a target is asked to go on keeping room: a move may take hours.
	renewal = 5 * time.Minute
	// lookTime is how long a VM may be at neither node, as files go from one to the other.
	lookTime = 10 * time.Second
)

// moveOne moves one VM, and tries other nodes if the first one fails it.
func (e *evacuation) moveOne(ctx context.Context, vmid int) error {
	for {
		if err := e.quorate(ctx); err != nil {
			return err
		}
		m, ok := e.find(vmid)
		if !ok || !m.open() || m.State == planned && e.now().Stopping {
			return nil
		}
		vm, err := e.look(ctx, m)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case fault.Is(err, fault.NotFound):
			return e.drop(vmid)
		case err != nil:
			return e.change(vmid, func(x *Move) { x.State, x.Reason = failed, err.Error() })
		case vm.Node != m.From:
			return e.elsewhere(ctx, m, vm)
		}
		if done, err := e.attempt(ctx, m, vm); done || err != nil {
			return err
		}
	}
}

// quorate waits until /etc/pve can be read and changed, or nothing more is to be begun.
func (e *evacuation) quorate(ctx context.Context) error {
	for {
		world, err := e.cfg.Watcher.World()
		if err == nil && world.Quorate || e.now().Stopping {
			return nil
		}
		if !sleep(ctx, pollMax) {
			return ctx.Err()
		}
	}
}

func (e *evacuation) find(vmid int) (Move, bool) {
	for _, m := range e.now().Moves {
		if m.VMID == vmid {
			return m, true
		}
	}
	return Move{}, false
}

// look finds a VM right before, and right after, something is done to it.
func (e *evacuation) look(ctx context.Context, m Move) (vm *pmxcfs.VM, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	err = ops.Retry(ctx, func(err error) bool { return !fault.Is(err, fault.NotFound) }, func(ctx context.Context) (err error) {
		vm, err = e.cfg.Watcher.LocateNow(ctx, m.VMID)
		if errors.Is(err, pmxcfs.ErrNotFound) {
			if absent, aerr := e.cfg.Watcher.Absent(ctx, m.VMID); aerr == nil && absent {
				return fault.New(fault.NotFound, "VM %d does not exist any more", m.VMID)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if vm.Type != pmxcfs.TypeQEMU || record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String() != m.ID {
		return nil, fault.New(fault.NotFound, "VM %d is another machine now", m.VMID)
	}
	return vm, nil
}

// elsewhere notes a VM that has gone from where it was: moved by us, in an earlier life or without our hearing so, or by
// somebody else.
func (e *evacuation) elsewhere(ctx context.Context, m Move, vm *pmxcfs.VM) error {
	restoring := e.run.Op().Kind == ops.Restore
	switch {
	case restoring && vm.Node != e.cfg.Node && m.State == planned:
		return e.change(m.VMID, func(x *Move) { x.From = vm.Node }) // it comes from there now
	case restoring && vm.Node != e.cfg.Node:
		return e.change(m.VMID, func(x *Move) { x.State, x.Reason = failed, "it is on node "+vm.Node+" now" })
	case !restoring && m.State == planned:
		return e.drop(m.VMID) // not ours to bring back
	}
	return e.arrived(ctx, m, vm, time.Now())
}

// attempt moves a VM to where it is planned to go. Not done means that it is to be looked at again.
func (e *evacuation) attempt(ctx context.Context, m Move, vm *pmxcfs.VM) (done bool, err error) {
	if m.State == planned && vm.Node == e.cfg.Node {
		running := e.cfg.Running(vm.ID)
		if !running && !e.asked.Stopped {
			return true, e.drop(vm.ID) // it was powered off meanwhile
		}
		m.Running = running
	}
	began := time.Now()
	err = e.change(m.VMID, func(x *Move) { x.State, x.Tries, x.Running = moving, m.Tries+1, m.Running })
	if err != nil {
		return true, err
	}
	err = e.send(ctx, m, vm)
	if ctx.Err() != nil {
		return true, ctx.Err() // the agent stops; the next one looks
	}
	return e.judge(ctx, m, vm, began, err)
}

// send moves a VM that its target has room for, which is kept meanwhile: others make VMs at the same time.
func (e *evacuation) send(ctx context.Context, m Move, vm *pmxcfs.VM) error {
	if m.To == e.cfg.Node || !m.Running {
		return e.transfer(ctx, m, vm)
	}
	cpus, _ := vm.Conf.CPUs()
	req := &peerpb.AdmitRequest{Key: "move/" + m.ID, Memory: m.Memory, Cpus: uint32(max(cpus, 0)), Name: m.Name}
	if err := e.admit(ctx, m.To, req); err != nil {
		return err
	}
	var (
		renewing sync.WaitGroup
		ended    = make(chan struct{})
	)
	renewing.Go(func() { e.renew(ctx, m.To, req, ended) })
	err := e.transfer(ctx, m, vm)
	close(ended)
	renewing.Wait()
	return err
}

// judge looks where a VM is after it was sent; err is how that ended.
func (e *evacuation) judge(ctx context.Context, m Move, vm *pmxcfs.VM, began time.Time, err error) (done bool, _ error) {
	now, lerr := e.look(ctx, m)
	switch {
	case ctx.Err() != nil:
		return true, ctx.Err()
	case fault.Is(lerr, fault.NotFound):
		return true, e.drop(m.VMID)
	case lerr == nil && now.Node != m.From && (now.Node == m.To || e.run.Op().Kind == ops.Drain):
		if err != nil {
			e.cfg.Log.WarnContext(ctx, "a VM was moved, but something went wrong", "vm", m.ID, "to", now.Node, "err", err)
		}
		return true, e.arrived(ctx, m, now, began)
	}
	err = errors.Join(err, lerr)
	if err == nil {
		err = errors.New("it was not moved, and nobody says why")
	}
	return e.failedOnce(ctx, m, vm, err)
}

// failedOnce plans a VM anew whose node has failed it, unless that has happened too often.
func (e *evacuation) failedOnce(ctx context.Context, m Move, vm *pmxcfs.VM, why error) (done bool, err error) {
	reason := plain(why)
	e.cfg.Log.WarnContext(ctx, "a VM could not be moved", "vm", m.ID, "to", m.To, "try", m.Tries+1, "err", why)
	giveUp := func(reason string) (bool, error) {
		return true, e.change(m.VMID, func(x *Move) { x.State, x.Reason = failed, reason })
	}
	if m.Tries+1 >= tries || e.run.Op().Kind == ops.Restore || e.now().Stopping {
		return giveUp(reason)
	}
	if m.Avoid = maps.Clone(m.Avoid); m.Avoid == nil { // the memo has the old one
		m.Avoid = map[string]string{}
	}
	m.Avoid[m.To] = "it could not be moved there: " + reason
	decision, err := e.again(ctx, vm, m, e.now().Moves)
	if ctx.Err() != nil {
		return true, ctx.Err()
	}
	if err != nil || decision.Node == "" {
		if err == nil {
			reason = decision.Refusal()
		}
		return giveUp(reason)
	}
	if m.Tries > 0 && !sleep(ctx, calm) {
		return true, ctx.Err()
	}
	return false, e.change(m.VMID, func(x *Move) { x.State, x.To, x.Avoid, x.Reason = planned, decision.Node, m.Avoid, reason })
}

// plain is an error in the words of whoever made it, without gRPC's.
func plain(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return s.Message()
	}
	return err.Error()
}

// admit asks a target whether it has room, and has it kept. One that cannot be asked is no reason not to try: PVE tells.
func (e *evacuation) admit(ctx context.Context, target string, req *peerpb.AdmitRequest) error {
	err := e.call(ctx, target, peerpb.Peer_Admit_FullMethodName, req, &peerpb.AdmitResponse{})
	_, elsewhere := forward.IsElsewhere(err)
	code := status.Code(err)
	if elsewhere || code == codes.ResourceExhausted || code == codes.FailedPrecondition && !unanswered(err) {
		return err
	}
	return nil
}

// renew has room kept until the move has ended, and then gives it back.
func (e *evacuation) renew(ctx context.Context, target string, req *peerpb.AdmitRequest, ended <-chan struct{}) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-ended:
			req = &peerpb.AdmitRequest{Key: req.GetKey(), Release: true}
		}
		if err := e.call(ctx, target, peerpb.Peer_Admit_FullMethodName, req, &peerpb.AdmitResponse{}); err != nil {
			e.cfg.Log.DebugContext(ctx, "room that is kept could not be renewed or given back", "node", target, "err", err)
		}
		if req.GetRelease() {
			return
		}
	}
}

func (e *evacuation) call(ctx context.Context, node, method string, req, resp messages) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return e.cfg.Call(ctx, node, method, req, resp)
}

// transfer has the VM's node move it, and waits for the end of that.
func (e *evacuation) transfer(ctx context.Context, m Move, vm *pmxcfs.VM) error {
	id, err := record.ParseID(m.ID)
	if err != nil {
		return err
	}
	if vm.Node != e.cfg.Node {
		return e.transferThere(ctx, m, vm.Node)
	}
	h, err := e.cfg.Guests.Migrate(ctx, e.run.Op().Subject.Owner, id, m.To)
	if err != nil || h == nil {
		return err
	}
	op, err := h.Wait(ctx, nil)
	if err != nil {
		return err
	}
	return op.Err()
}

// transferThere is transfer for a VM of another node. An agent that does not answer for a while is asked again, for as
// long as the VM is there: what it has begun goes on without it.
func (e *evacuation) transferThere(ctx context.Context, m Move, owner string) error {
	var begun peerpb.MigrateResponse
	if err := e.call(ctx, owner, peerpb.Peer_Migrate_FullMethodName, &peerpb.MigrateRequest{Id: m.ID, Target: m.To}, &begun); err != nil {
		return err
	}
	if begun.GetOp() == "" {
		return nil
	}
	for pause := pollMin; ; pause = min(2*pause, pollMax) {
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
		var st providerpb.TaskStatusResponse
		err := e.call(ctx, owner, providerpb.Provider_TaskStatus_FullMethodName, &providerpb.TaskStatusRequest{Task: &providerpb.TaskRef{Id: begun.GetOp()}}, &st)
		switch {
		case err == nil && st.GetDone() && st.GetError() != "":
			return errors.New(st.GetError())
		case err == nil && st.GetDone():
			return nil
		case err == nil:
		case e.left(ctx, m, owner):
			return nil
		case e.gone(owner):
			return fmt.Errorf("node %s is gone: %w", owner, err)
		}
	}
}

// left reports whether a VM is no longer on a node.
func (e *evacuation) left(ctx context.Context, m Move, node string) bool {
	vm, err := e.cfg.Watcher.LocateNow(ctx, m.VMID)
	return err == nil && vm.Node != node
}

func (e *evacuation) gone(node string) bool {
	world, err := e.cfg.Watcher.World()
	return err == nil && world.Gone(node, time.Now())
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
