package guest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
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
	Record *record.Record `json:",omitempty"` // ours, if we made the VM
	// Generation is Record's, which its JSON lacks: a record's file has it in its name.
	Generation int `json:",omitempty"`

	Volumes  []string `json:",omitempty"` // every volume known to belong to the VM
	Snippets []string `json:",omitempty"`
}

// Delete removes a VM with its disks, or joins the removal that is under way. A nil handle means that the VM does
// not exist, without doubt: there is nothing to do.
func (g *Guests) Delete(ctx context.Context, owner string, id record.ID) (*ops.Handle, error) {
	key := fmt.Sprintf("%s/%d", ops.Delete, id.VMID)
	if h := g.cfg.Ops.Find(key); h != nil && means(id, h.Op().Subject) {
		return h, nil
	}
	if h := g.making(id); h != nil {
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
		Kind: ops.Delete, Key: key, Params: order,
		Subject: ops.Subject{Owner: owner, Name: vm.Conf.Name(), ID: order.ID},
	})
	return h, err
}

// mayDelete refuses what must not be deleted, and collects what has to go with the VM.
func (g *Guests) mayDelete(ctx context.Context, id record.ID, vm *pmxcfs.VM) (removal, error) {
	switch {
	case vm.Conf.Template():
		return removal{}, fault.New(fault.Precondition, "delete %s: VM %d (%s) is a template; templates are deleted in PVE only", id, vm.ID, vm.Conf.Name())
	case vm.Conf.Protection():
		return removal{}, fault.New(fault.Precondition, "delete %s: VM %d (%s) is protected; allow it with: qm set %d --protection 0", id, vm.ID, vm.Conf.Name(), vm.ID)
	}
	// The whole id, even if the request had only the number: a resumed operation must not take another VM for this one.
	order := removal{ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String(), Volumes: volumes(vm.Conf)}
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

// destroyWhole destroys the VM unless it is gone already, and then what is left of its volumes. It may be repeated
// at any time: the uuid tells whether the number still means the same machine.
func (g *Guests) destroyWhole(ctx context.Context, id record.ID, order removal) error {
	if err := g.awaitClone(ctx, order.Record); err != nil {
		return err
	}
	conf, err := g.confHere(id.VMID)
	if err != nil {
		return err
	}
	vols := order.Volumes
	if conf != nil && (id.Fits(id.VMID, conf.SMBIOSUUID()) || halfMade(order.Record, conf)) {
		vols = append(slices.Clone(vols), volumes(conf)...)
		if err := g.destroy(ctx, id.VMID, conf); err != nil {
			return err
		}
	}
	return g.removeVolumes(ctx, id.VMID, vols)
}

// awaitClone waits for the end of the clone that makes rec's VM, if its operation was lost and the clone goes on:
// nobody could say whose the VM is before it has a name, and PVE would not remove it.
func (g *Guests) awaitClone(ctx context.Context, rec *record.Record) error {
	if rec == nil || rec.State != record.Creating {
		return nil
	}
	err := ops.Retry(ctx, passing, func(ctx context.Context) error {
		u, _, err := g.findClone(ctx, 0, rec.VMID, rec.Created)
		if err != nil {
			return err
		}
		return g.cfg.PVE.Wait(ctx, u)
	})
	if _, failed := errors.AsType[*pve.TaskError](err); err == nil || failed {
		return nil // PVE has removed what a failed clone had made
	}
	return explain(fmt.Sprintf("delete VM %d: wait for the clone that makes it", rec.VMID), err)
}

// halfMade reports whether conf is what is left of the making of rec's VM: under the number that was reserved for it,
// with its name, and not yet with its uuid.
func halfMade(rec *record.Record, conf *pmxcfs.Conf) bool {
	return rec != nil && rec.State == record.Creating && conf.Name() == rec.Name
}

// destroy stops a VM of this node and destroys it, and returns when its config is gone from /etc/pve. It never asks
// PVE for unreferenced disks: that would take every vm-<id>-* volume on all storages, also those of another cluster
// that shares one.
func (g *Guests) destroy(ctx context.Context, vmid int, conf *pmxcfs.Conf) error {
	act := fmt.Sprintf("delete VM %d", vmid)
	if conf.Protection() { // only on what we have half made from a protected template
		err := ops.Retry(ctx, passing, func(ctx context.Context) error {
			return g.cfg.PVE.SetConfig(ctx, g.cfg.Node, vmid, url.Values{"protection": {"0"}})
		})
		if err != nil {
			return explain(act, err)
		}
	}
	// HA may start it again between our stop and our destroy, once.
	again := func(err error) bool { return passing(err) || pve.KindOf(err) == pve.KindAlreadyRunning }
	err := ops.Retry(ctx, again, func(ctx context.Context) error { return g.stopAndDestroy(ctx, vmid) })
	if err != nil && pve.KindOf(err) != pve.KindNoSuchVM {
		return explain(act, err)
	}
	return g.awaitGone(ctx, vmid)
}

func (g *Guests) stopAndDestroy(ctx context.Context, vmid int) error {
	st, err := g.cfg.Status.State(ctx, vmid, status.Want{User: true})
	if err != nil {
		return err
	}
	if st.Running {
		if err := g.powerCall(ctx, vmid, PowerOff, 0); err != nil {
			return err
		}
	}
	u, err := g.cfg.PVE.Destroy(ctx, g.cfg.Node, vmid, pve.DestroyParams{Purge: true})
	if err != nil {
		return err
	}
	return g.cfg.PVE.Wait(ctx, u)
}

// awaitGone waits until the config is gone and every reader of ours knows it.
func (g *Guests) awaitGone(ctx context.Context, vmid int) error {
	there := errors.New("its config is still there")
	err := ops.Retry(ctx, func(err error) bool { return errors.Is(err, there) }, func(context.Context) error {
		conf, err := g.confHere(vmid)
		if err == nil && conf != nil {
			err = there
		}
		return err
	})
	if err != nil {
		return fault.New(fault.Aborted, "delete VM %d: %w", vmid, err)
	}
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		return fault.New(fault.Precondition, "delete VM %d: %w", vmid, err)
	}
	return nil
}

// removeVolumes deletes those of the given volumes that PVE has left behind.
func (g *Guests) removeVolumes(ctx context.Context, vmid int, vols []string) error {
	left, err := g.leftVolumes(ctx, vmid, vols)
	if err == nil {
		left, err = g.unused(ctx, vmid, left)
	}
	if err != nil {
		return err
	}
	for _, volume := range left {
		err := ops.Retry(ctx, passing, func(ctx context.Context) error {
			u, err := g.cfg.PVE.DeleteVolume(ctx, g.cfg.Node, volume)
			if err != nil || u == "" {
				return err
			}
			return g.cfg.PVE.Wait(ctx, u)
		})
		if err != nil && pve.KindOf(err) != pve.KindNoVolume {
			return explain(fmt.Sprintf("delete VM %d: delete its volume %s", vmid, volume), err)
		}
	}
	return nil
}

// leftVolumes asks each storage once which of the volumes are still there.
func (g *Guests) leftVolumes(ctx context.Context, vmid int, vols []string) ([]string, error) {
	byStorage := map[string][]string{}
	for _, v := range vols {
		storage, _, _ := strings.Cut(v, ":")
		byStorage[storage] = append(byStorage[storage], v)
	}
	var left []string
	for storage, want := range byStorage {
		var there []pve.Volume
		err := ops.Retry(ctx, passing, func(ctx context.Context) (err error) {
			there, err = g.cfg.PVE.Content(ctx, g.cfg.Node, storage, pve.ContentQuery{VMID: vmid})
			return err
		})
		if pve.KindOf(err) == pve.KindNoStorage {
			continue // gone with everything on it
		}
		if err != nil {
			return nil, explain(fmt.Sprintf("delete VM %d: look for its volumes on %s", vmid, storage), err)
		}
		for _, v := range there {
			if slices.Contains(want, v.VolID) {
				left = append(left, v.VolID)
			}
		}
	}
	return left, nil
}

// unused returns the volumes that no config names. Another machine may have the number by now, and PVE gives its disks
// the same names.
func (g *Guests) unused(ctx context.Context, vmid int, vols []string) ([]string, error) {
	if len(vols) == 0 {
		return nil, nil
	}
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		return nil, fault.New(fault.Precondition, "delete VM %d: see whether its volumes are in use: %w", vmid, err)
	}
	world, err := g.cfg.Watcher.World()
	if err == nil {
		err = world.Unread[vmid]
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "delete VM %d: see whether its volumes are in use: %w", vmid, err)
	}
	return slices.DeleteFunc(vols, func(volume string) bool {
		for _, vm := range world.VMs {
			if vm.Conf != nil && strings.Contains(string(vm.Conf.Bytes()), volume) {
				return true
			}
		}
		return false
	}), nil
}

// forget removes what only we know of a VM that is gone.
func (g *Guests) forget(ctx context.Context, rec *record.Record, snippets []string) error {
	g.removeSnippets(ctx, snippets)
	if rec == nil {
		return nil
	}
	err := g.cfg.Records.Hold(*rec).Release()
	if err != nil && !errors.Is(err, record.ErrLost) {
		return fault.New(fault.Precondition, "delete VM %d: remove its record: %w", rec.VMID, err)
	}
	return nil
}
