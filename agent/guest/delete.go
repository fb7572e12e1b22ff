package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// The steps of a delete operation, in their order.
const (
	stepDestroy = "destroy" // stop, destroy, wait until it is gone, remove its volumes
	stepForget  = "forget"  // its record and its snippets
)

// removal is what a delete operation is asked to do and must remember.
type removal struct {
	ID     string
	Traits string         `json:",omitempty"` // of a VM without SMBIOS uuid: what tells it from another of its number
	Record *record.Record `json:",omitempty"` // ours, if we made the VM
	// Generation is Record's, which its JSON lacks: a record's file has it in its name.
	Generation int `json:",omitempty"`

	Volumes  []string `json:",omitempty"` // every volume known to belong to the VM
	Snippets []string `json:",omitempty"`
}

// Delete removes a VM with its disks, or joins the removal that is under way. A nil handle means that the VM does
// not exist, without doubt: there is nothing to do.
func (g *Guests) Delete(ctx context.Context, owner string, id record.ID) (*ops.Handle, error) {
	// A mere number is looked up anew: the removal under way may be that of the VM which had it before.
	if h := g.running(ops.Delete, id); h != nil && id.UUID8 != "" {
		return h, nil
	}
	if _, err := g.cfg.Watcher.World(); err != nil { // or a read of /etc/pve might never come back
		return nil, fault.New(fault.Precondition, "delete %s: %w", id, err)
	}
	if h := g.makingOf(id); h != nil {
		// It ends with a VM that can be deleted, or with none.
		if _, err := h.Wait(ctx, nil); err != nil {
			return nil, fault.New(fault.Aborted, "delete %s: it is still being created: %w", id, err)
		}
	}
	vm, err := g.findHere(ctx, id)
	if err != nil {
		if h, lerr := g.dropAbandoned(ctx, id); h != nil || lerr != nil {
			return h, lerr
		}
	}
	if errors.Is(err, errAbsent) {
		return nil, g.forgetAbsent(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	order, err := g.mayDelete(ctx, id, vm)
	if err != nil {
		return nil, err
	}
	if err := g.mayStart(ctx, fmt.Sprintf("delete %s", id), true); err != nil {
		return nil, err
	}
	h, _, err := g.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Delete, Key: deleteKey(order.ID), Params: order,
		Subject: ops.Subject{Owner: owner, Name: vm.Conf.Name(), ID: order.ID},
	})
	return h, err
}

// deleteKey is the key of the operation that deletes a VM: the whole id, because the number may be another VM's by now.
func deleteKey(id string) string { return string(ops.Delete) + "/" + id }

// mayDelete refuses what must not be deleted, and collects what has to go with the VM.
func (g *Guests) mayDelete(ctx context.Context, id record.ID, vm *pmxcfs.VM) (removal, error) {
	if err := deletable(id, vm.Conf); err != nil {
		return removal{}, err
	}
	// The whole id, even if the request had only the number: a resumed operation must not take another VM for this one.
	order := removal{ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String(), Traits: traits(vm.Conf), Volumes: volumes(vm.Conf)}
	rec, ours, err := g.recordOf(ctx, vm)
	if err != nil {
		return removal{}, err
	}
	if !ours {
		if !g.cfg.DeleteForeign {
			return removal{}, fault.New(fault.Precondition, "delete %s: VM %d (%s) was not made by pve-rigaud, and the configuration forbids deleting such VMs (delete-foreign: false)",
				id, vm.ID, vm.Conf.Name())
		}
		return order, nil
	}
	order.Record, order.Generation, order.Snippets = &rec, rec.Generation, rec.Snippets
	for _, v := range rec.Volumes {
		if !slices.Contains(order.Volumes, v) {
			order.Volumes = append(order.Volumes, v)
		}
	}
	return order, nil
}

// dropAbandoned removes what is left of a VM whose making was given up, the journal that knew of it being lost: under
// the number of id may be a half-made VM, which has not the uuid of id yet. A nil handle: there is nothing of that kind.
func (g *Guests) dropAbandoned(ctx context.Context, id record.ID) (*ops.Handle, error) {
	rec, ok, err := g.cfg.Records.ByVMID(id.VMID)
	if err != nil || !ok || rec.State != record.Creating || rec.Node != g.cfg.Node || rec.ID() != id {
		return nil, nil //nolint:nilerr // without its record the VM is whatever was found before
	}
	if dead, err := g.dead(ctx, rec); err != nil || !dead {
		return nil, err
	}
	return g.dropDead(ctx, rec)
}

// forgetAbsent gives back the record of a VM that somebody else has removed.
func (g *Guests) forgetAbsent(ctx context.Context, id record.ID) error {
	rec, ok, err := g.cfg.Records.ByVMID(id.VMID)
	if err != nil || !ok || rec.State != record.Ready || id.UUID8 != "" && record.NewID(rec.VMID, rec.UUID) != id {
		return nil //nolint:nilerr // the VM is gone, which is what was asked; a record that stays is found dead later
	}
	return g.forget(ctx, &rec, rec.Snippets)
}

// remove is the handler of delete operations.
func (g *Guests) remove(ctx context.Context, r *ops.Run) error {
	var order removal
	if err := r.Params(&order); err != nil {
		return err
	}
	id, err := ParseID(order.ID)
	if err != nil {
		return err
	}
	err = r.Step(ctx, stepDestroy, func(ctx context.Context, _ *ops.StepRun) error {
		ctx, cancel := budget(ctx, r.Op(), g.cfg.TaskTimeout)
		defer cancel()
		return g.destroyWhole(ctx, id, order)
	})
	if err != nil {
		return err
	}
	return r.Step(ctx, stepForget, func(ctx context.Context, _ *ops.StepRun) error {
		if order.Record != nil {
			order.Record.Generation = order.Generation
		}
		return g.forget(ctx, order.Record, order.Snippets)
	})
}

// forget removes what only we know of a VM that is gone.
func (g *Guests) forget(ctx context.Context, rec *record.Record, snippets []string) error {
	if rec == nil {
		return nil
	}
	g.dropView(rec.VMID)
	if err := released(g.cfg.Records.Hold(*rec).Release()); err != nil {
		return fault.New(fault.Precondition, "delete VM %d: remove its record: %w", rec.VMID, err)
	}
	g.cfg.Snippets.Drop(ctx, snippets)
	return nil
}

// released is the error of giving a claim back: that it was lost to another is none.
func released(err error) error {
	if errors.Is(err, record.ErrLost) {
		return nil
	}
	return err
}
