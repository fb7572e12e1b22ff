package guest

import (
	"context"
	"errors"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/snapname"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// SnapshotDelete removes a snapshot, or joins its removal. A nil handle means that there is none, or no VM: nothing was
// called. The manager asks once and does not look at what comes of it, so that the operation waits for whatever stands
// in its way.
func (g *Guests) SnapshotDelete(ctx context.Context, owner string, id record.ID, name string) (*ops.Handle, error) {
	if name == "" {
		return nil, fault.New(fault.Invalid, "snapshot_id: is empty")
	}
	conf, id, err := g.snapshotted(ctx, id)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, there := findSnapshot(conf, name)
	if !there {
		s.Name = snapname.Encode(name)
	}
	p := snapshotting{ID: id.String(), Snapshot: s.Name}
	if !there && g.cfg.Ops.Find(snapshotKey(ops.SnapshotCreate, p.ID, p.Snapshot)) == nil &&
		g.cfg.Ops.Find(snapshotKey(ops.SnapshotDelete, p.ID, p.Snapshot)) == nil {
		return nil, g.absence(p)
	}
	if conf.Template() {
		return nil, fault.New(fault.Precondition, "%s: VM %d (%s) is a template, whose snapshots PVE does not remove", p.act("delete"), id.VMID, conf.Name())
	}
	if err := g.mayStart(ctx, p.act("delete"), true); err != nil {
		return nil, err
	}
	h, _, err := g.cfg.Ops.Start(ctx, askSnapshot(ops.SnapshotDelete, owner, conf, p.ID, p.Snapshot, p))
	return h, err
}

const stepRemove = "remove" // the only step of removing a snapshot

// unsnapshotTime is how long the removal of a snapshot waits for what is in its way. Nobody asks for it a second time,
// and a backup may take hours.
const unsnapshotTime = 24 * time.Hour

// removeSnapshot is the handler of SnapshotDelete operations.
func (g *Guests) removeSnapshot(ctx context.Context, r *ops.Run) error {
	var p snapshotting
	if err := r.Params(&p); err != nil {
		return err
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	return r.Step(ctx, stepRemove, func(ctx context.Context, s *ops.StepRun) error {
		ctx, cancel := budget(ctx, r.Op(), max(unsnapshotTime, g.cfg.TaskTimeout))
		defer cancel()
		t := g.pveTask(s,
			func(ctx context.Context) (pve.UPID, bool, error) {
				// What it has done is seen by the call that follows.
				return "", false, g.awaitTasks(ctx, id.VMID, "qmdelsnapshot", r.Op().Created)
			},
			func(ctx context.Context) (pve.UPID, error) { return g.startUnsnapshot(ctx, r, id, p) })
		err := ops.Retry(ctx, waitable, t.Attempt)
		if err != nil && pve.KindOf(err) != pve.KindNoSnapshot {
			return explainSnapshot(p.act("delete"), err)
		}
		g.refresh(ctx)
		return nil
	})
}

// absence fails where it cannot be told whether a snapshot is there: without quorum the config is what it was.
func (g *Guests) absence(p snapshotting) error {
	if err := g.quorate(); err != nil {
		return fault.New(fault.Precondition, "%s: %w", p.act("delete"), err)
	}
	return nil
}

// startUnsnapshot makes the call, unless the snapshot is gone or something is in its way. A VM that was migrated
// meanwhile is followed: PVE passes our call on, and nobody would ask again.
func (g *Guests) startUnsnapshot(ctx context.Context, r *ops.Run, id record.ID, p snapshotting) (pve.UPID, error) {
	vm, err := g.findBy(ctx, id, g.cfg.Watcher.LocateNow)
	if errors.Is(err, errAbsent) {
		return "", nil // with all its snapshots
	}
	if err != nil {
		return "", err
	}
	conf := vm.Conf
	if vm.Node == g.cfg.Node {
		if conf, _, err = g.snapshotted(ctx, id); err != nil {
			return "", err
		}
	}
	if err := g.held(r, conf, p, ops.SnapshotCreate); err != nil {
		return "", err
	}
	if _, there := conf.Snapshot(p.Snapshot); !there {
		return "", g.absence(p)
	}
	return g.cfg.PVE.DeleteSnapshot(ctx, vm.Node, id.VMID, p.Snapshot)
}
