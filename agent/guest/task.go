package guest

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// call is a PVE call that starts a task. An empty UPID means that PVE did it at once, as older versions do for some.
type call func(ctx context.Context) (pve.UPID, error)

// lookup finds what an earlier, interrupted call has done: its task, or an empty UPID when the effect is there
// without one. ok is false when there is nothing of it.
type lookup func(ctx context.Context) (u pve.UPID, ok bool, err error)

// pveTask is the body of a step that makes one PVE call and waits for its task, once per step and VM however often
// the agent dies in between.
type pveTask struct {
	wait  func(ctx context.Context, u pve.UPID) error
	step  *ops.StepRun
	find  lookup // nil: the call may simply be repeated
	start call

	known  pve.UPID // the task to wait for, if there is one
	unsure bool     // a call may have had its effect without our knowing its task
}

// runTask makes the call and waits for its task. After a crash, or when the answer of the call was lost, it first
// looks at what is there: the journaled UPID, then find. Passing troubles (a held lock, PVE restarting) are waited
// out until ctx ends.
func (g *Guests) runTask(ctx context.Context, s *ops.StepRun, find lookup, start call) error {
	return ops.Retry(ctx, passing, g.pveTask(s, find, start).attempt)
}

// RunTask is the body of a step of an operation of another room that makes one PVE call and waits for its task, once
// however often the agent dies in between. find tells what an earlier call has done whose answer was lost; nil: the call
// may simply be repeated. Passing troubles, a held lock or PVE restarting, are waited out until ctx ends.
func RunTask(
	ctx context.Context, s *ops.StepRun, wait func(context.Context, pve.UPID) error,
	find func(context.Context) (u pve.UPID, ok bool, err error), start func(context.Context) (pve.UPID, error),
) error {
	t := &pveTask{wait: wait, step: s, find: find, start: start, known: pve.UPID(s.UPID), unsure: s.Again}
	return ops.Retry(ctx, passing, t.attempt)
}

func (g *Guests) pveTask(s *ops.StepRun, find lookup, start call) *pveTask {
	return &pveTask{wait: g.cfg.PVE.Wait, step: s, find: find, start: start, known: pve.UPID(s.UPID), unsure: s.Again}
}

func (t *pveTask) attempt(ctx context.Context) error {
	if done, err := t.obtain(ctx); done || err != nil {
		return err
	}
	err := t.wait(ctx, t.known)
	switch {
	case err == nil:
		return nil
	case pve.KindOf(err) == pve.KindNoTask:
		t.known, t.unsure = "", true // its log is gone: the next attempt looks at what it did
		return err
	case pve.Uncertain(err):
		return err // the task goes on: the next attempt waits for it again
	}
	t.known, t.unsure = "", false // it ended, without effect: the next attempt starts anew
	return err
}

// obtain finds or starts the task to wait for; done means that the effect is there already.
func (t *pveTask) obtain(ctx context.Context) (done bool, err error) {
	if t.known != "" {
		return false, nil
	}
	if t.unsure && t.find != nil {
		u, ok, err := t.find(ctx)
		if err != nil {
			return false, err
		}
		if ok {
			return u == "", t.journal(u)
		}
	}
	u, err := t.start(ctx)
	if err != nil {
		t.unsure = t.unsure || pve.Uncertain(err)
		return false, err
	}
	return u == "", t.journal(u)
}

func (t *pveTask) journal(u pve.UPID) error {
	if u == "" {
		return nil
	}
	t.known = u
	return t.step.Task(string(u))
}
