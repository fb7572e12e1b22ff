// Package task makes PVE calls that start a task, as steps of operations: each once, however often the agent dies in
// between; and turns PVE's errors into failures that say who can mend them.
package task

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// Call is a PVE call that starts a task. An empty UPID means that PVE did it at once, as older versions do for some.
type Call func(ctx context.Context) (pve.UPID, error)

// Lookup finds what an earlier, interrupted call has done: its task, or an empty UPID when the effect is there
// without one. ok is false when there is nothing of it.
type Lookup func(ctx context.Context) (u pve.UPID, ok bool, err error)

// Wait waits for the end of a task; *pve.Client does.
type Wait func(ctx context.Context, u pve.UPID) error

// Task is the body of a step that makes one PVE call and waits for its task, once per step and VM however often
// the agent dies in between.
type Task struct {
	wait  Wait
	step  *ops.StepRun
	find  Lookup // nil: the call may simply be repeated
	start Call

	known  pve.UPID // the task to wait for, if there is one
	unsure bool     // a call may have had its effect without our knowing its task
}

// New makes the body of a step. find tells what an earlier call has done whose answer was lost; nil: the call may simply
// be repeated.
func New(wait Wait, s *ops.StepRun, find Lookup, start Call) *Task {
	return &Task{wait: wait, step: s, find: find, start: start, known: pve.UPID(s.UPID), unsure: s.Again}
}

// Run makes the call and waits for its task. After a crash, or when the answer of the call was lost, it first looks at
// what is there: the journaled UPID, then find. Passing troubles (a held lock, PVE restarting) are waited out until ctx
// ends.
func Run(ctx context.Context, wait Wait, s *ops.StepRun, find Lookup, start Call) error {
	return ops.Retry(ctx, Passing, New(wait, s, find, start).Attempt)
}

// Attempt is one attempt at it, which goes on where the one before it ended.
func (t *Task) Attempt(ctx context.Context) error {
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
func (t *Task) obtain(ctx context.Context) (done bool, err error) {
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

func (t *Task) journal(u pve.UPID) error {
	if u == "" {
		return nil
	}
	t.known = u
	return t.step.Task(string(u))
}
