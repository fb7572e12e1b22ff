package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// outcome tells from the world how an operation ended that no journal knows any more. What a VM is, Describe tells, so
// that done is a safe answer for the kinds of the VM controller. Of the others done without an error counts as success,
// and an error is final: what cannot be decided is not done.
func (g *Guests) outcome(ctx context.Context, r ops.Ref) (done bool, failure string) {
	switch r.Kind {
	case ops.SnapshotCreate, ops.SnapshotDelete, ops.SnapshotRevert, ops.Clone, ops.Migrate:
	default:
		return vmKinds[r.Kind], ""
	}
	text, snapshot, _ := strings.Cut(r.Subject, "/")
	id, err := record.ParseID(text)
	if err != nil || g.quorate() != nil || (snapshot == "") != (r.Kind == ops.Clone || r.Kind == ops.Migrate) {
		return false, ""
	}
	vm, err := g.findBy(ctx, id, g.cfg.Watcher.LocateNow)
	absent := errors.Is(err, errAbsent)
	switch {
	case err != nil && !absent:
		return false, ""
	case r.Kind == ops.Clone:
		return g.cloneOutcome(vm, id)
	case r.Kind == ops.Migrate:
		return moveOutcome(vm, r)
	case absent:
		return absentOutcome(r.Kind, id)
	}
	return snapshotOutcome(r.Kind, vm.Conf, snapshot, id)
}

// cloneOutcome tells how a clone ended; vm is nil when there is none.
func (g *Guests) cloneOutcome(vm *pmxcfs.VM, id record.ID) (done bool, failure string) {
	if vm == nil {
		return true, fmt.Sprintf("clone VM %s: it does not exist in this cluster", id)
	}
	rec, ours, err := g.cfg.Records.ByVMID(id.VMID)
	if err != nil || unborn(vm) || ours && rec.State != record.Ready {
		return false, "" // half made, and whoever takes it up removes it or makes it whole
	}
	return true, ""
}

// moveOutcome tells how a move away from the node of the reference ended; vm is nil when there is none.
func moveOutcome(vm *pmxcfs.VM, r ops.Ref) (done bool, failure string) {
	switch {
	case vm == nil:
		return true, fmt.Sprintf("move VM %s: it does not exist in this cluster", r.Subject)
	case vm.Node != r.Node:
		return true, ""
	case vm.Conf.Lock() != "":
		return false, ""
	}
	return true, fmt.Sprintf("move VM %s: it is still on node %s", r.Subject, r.Node)
}

// absentOutcome tells how an operation on a snapshot ended whose VM does not exist.
func absentOutcome(kind ops.Kind, id record.ID) (done bool, failure string) {
	if kind == ops.SnapshotDelete {
		return true, ""
	}
	return true, fmt.Sprintf("%s of VM %s: the VM does not exist in this cluster", kind, id)
}

// snapshotOutcome tells how an operation on a snapshot of a VM ended. While PVE is at work on the VM it may be it.
func snapshotOutcome(kind ops.Kind, conf *pmxcfs.Conf, snapshot string, id record.ID) (done bool, failure string) {
	if conf.Lock() != "" {
		return false, ""
	}
	_, there := conf.Snapshot(snapshot)
	switch {
	case kind == ops.SnapshotDelete && !there, kind == ops.SnapshotCreate && complete(conf, snapshot):
		return true, ""
	case kind == ops.SnapshotDelete:
		return true, fmt.Sprintf("delete snapshot %s of VM %s: it is still there", snapshot, id)
	case kind == ops.SnapshotCreate:
		return true, fmt.Sprintf("take snapshot %s of VM %s: there is none", snapshot, id)
	}
	return revertedTo(conf, snapshot), ""
}

// revertedTo reports whether the VM has gone back to a snapshot for certain: it comes from it, and so does a snapshot
// that was taken of what it was before. The newest snapshot is what a VM comes from in any case.
func revertedTo(conf *pmxcfs.Conf, snapshot string) bool {
	parent, _ := conf.Get("parent")
	return parent == snapshot && slices.ContainsFunc(conf.Snapshots(), func(s pmxcfs.Snapshot) bool { return s.Parent() == snapshot })
}
