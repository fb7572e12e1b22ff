package guest

import (
	"context"
	"errors"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/task"
)

// runTask makes a PVE call and waits for its task; see task.Run.
func (g *Guests) runTask(ctx context.Context, s *ops.StepRun, find task.Lookup, start task.Call) error {
	return ops.Retry(ctx, passing, g.pveTask(s, find, start).Attempt)
}

func (g *Guests) pveTask(s *ops.StepRun, find task.Lookup, start task.Call) *task.Task {
	return task.New(g.cfg.PVE.Wait, s, find, start)
}

// explain turns an error of the PVE client into a failure with its reason.
func explain(act string, err error) error { return task.Explain(act, err) }

// passing reports whether an error may go away by itself while an operation waits.
func passing(err error) bool { return errors.Is(err, errUnsaid) || task.Passing(err) }

// underWay reports whether an error of waiting for a task leaves open how it ends. The task's own error is its end, and
// so is that PVE knows it no more.
func underWay(err error) bool {
	_, ended := errors.AsType[*pve.TaskError](err)
	return !ended && passing(err) && pve.KindOf(err) != pve.KindNoTask
}

func vmText(vmid int) string { return fmt.Sprintf("VM %d", vmid) }
