package guest

import (
	"context"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
)

// reportFor is how long a failed task of a VM is reported as failed, counted from the first poll that carried it.
// The manager's VM controller takes any error of a task for a transport error and polls the same reference for ever;
// once it hears done without error it looks at the VM again and acts on what it finds.
const reportFor = 30 * time.Second

// vmKinds are the operations whose outcome the manager re-derives from Describe, so that done is a safe answer.
var vmKinds = map[ops.Kind]bool{ops.Create: true, ops.Delete: true, ops.Power: true, ops.Reconfigure: true}

// TaskStatus answers a poll: whether the operation behind a reference is at its end, and its failure if that is to
// be told. Only a malformed reference is an error.
func (g *Guests) TaskStatus(ctx context.Context, ref string) (done bool, failure string, err error) {
	r, err := ops.ParseRef(ref)
	if err != nil {
		return false, "", fault.New(fault.Invalid, "task: %w", err)
	}
	op, known, err := g.cfg.Ops.Op(r.Op)
	if err == nil && !known && r.Node != g.cfg.Node {
		return g.statusElsewhere(ctx, r)
	}
	switch {
	case err != nil:
		return false, "", fault.New(fault.Precondition, "task %s: %w", ref, err)
	case !known:
		// Its journal is gone, or it was pruned.
		done, failure = g.outcome(ctx, r)
		return done, failure, nil
	case op.State != ops.Failed:
		return op.State == ops.Done, "", nil
	case vmKinds[op.Kind]:
		first := op.Reported
		if first.IsZero() {
			if first, err = g.cfg.Ops.Report(op.ID); err != nil {
				return false, "", fault.New(fault.Precondition, "task %s: %w", ref, err)
			}
		}
		if time.Since(first) >= reportFor {
			return true, "", nil
		}
	case op.Kind == ops.ImagePrepare:
		// A task error would be polled for ever and never lead to another try; the next ImagePrepare call says it.
		return false, "", nil
	}
	return true, op.Failure.Message, nil
}

// statusElsewhere answers for an operation of another node. As long as that node may come back, the operation goes on
// there or will be taken up again; when the node is gone for good, what it was working on tells how it ended.
func (g *Guests) statusElsewhere(ctx context.Context, r ops.Ref) (done bool, failure string, err error) {
	world, err := g.cfg.Watcher.World()
	if err == nil && world.Gone(r.Node, time.Now()) {
		done, failure = g.outcome(ctx, r)
		return done, failure, nil
	}
	return false, "", fault.MovedTo(r.Node, "task %s: is one of node %s: ask the agent there", r, r.Node)
}
