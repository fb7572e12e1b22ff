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

// target is a VM that is to be destroyed. Its number alone would not do: PVE gives the number of a VM that is gone to
// the next one, while an operation that was interrupted or lost an answer still tries.
type target struct {
	id record.ID
	// is reports whether a config under that number is the VM's.
	is func(*pmxcfs.Conf) bool
	// made says that the VM is half made by us: a protection that it has from its template is lifted.
	made bool
}

// traits tell a VM without SMBIOS uuid from another one that has its number later.
func traits(conf *pmxcfs.Conf) string {
	var t []string
	for _, key := range []string{"name", "meta", "vmgenid"} {
		v, _ := conf.Get(key)
		t = append(t, key+"="+v)
	}
	for _, n := range conf.NICs() {
		t = append(t, n.Key+"="+n.MAC)
	}
	return strings.Join(t, " ")
}

// target returns the VM that a removal means.
func (r removal) target(id record.ID) target {
	if r.Record != nil && r.Record.State == record.Creating {
		return target{id: id, made: true, is: func(c *pmxcfs.Conf) bool { return id.Fits(id.VMID, c.SMBIOSUUID()) || halfMade(r.Record, c) }}
	}
	if id.UUID8 == "" {
		return target{id: id, is: func(c *pmxcfs.Conf) bool { return traits(c) == r.Traits }}
	}
	return target{id: id, is: func(c *pmxcfs.Conf) bool { return id.Fits(id.VMID, c.SMBIOSUUID()) }}
}

// halfMade reports whether conf is what is left of the making of rec's VM: under the number that was reserved for it,
// with its name and not yet with its uuid, or still as PVE begins a clone, with nothing but a lock (or not even that).
func halfMade(rec *record.Record, conf *pmxcfs.Conf) bool {
	if rec == nil || rec.State != record.Creating {
		return false
	}
	return conf.Name() == rec.Name || conf.Name() == "" && conf.SMBIOSUUID() == ""
}

// deletable refuses what PVE's users have marked as not to be deleted.
func deletable(id record.ID, conf *pmxcfs.Conf) error {
	switch {
	case conf.Template():
		return fault.New(fault.Precondition, "delete %s: VM %d (%s) is a template; templates are deleted in PVE only", id, id.VMID, conf.Name())
	case conf.Protection():
		return fault.New(fault.Precondition, "delete %s: VM %d (%s) is protected; allow it with: qm set %d --protection 0", id, id.VMID, conf.Name(), id.VMID)
	}
	return nil
}

// destroyWhole destroys the VM unless it is gone already, and then what is left of its volumes. It may be repeated at
// any time. It succeeds only if the VM is gone from the cluster, not just from this node.
func (g *Guests) destroyWhole(ctx context.Context, id record.ID, order removal) error {
	if err := g.awaitClone(ctx, order.Record); err != nil {
		return err
	}
	t := order.target(id)
	conf, err := g.confHere(ctx, id.VMID)
	if err != nil {
		return err
	}
	if conf == nil || !t.is(conf) {
		if err := g.goneFromCluster(ctx, t); err != nil {
			return err
		}
		return g.removeVolumes(ctx, id.VMID, order.Volumes)
	}
	vols := append(slices.Clone(order.Volumes), volumes(conf)...)
	if err := g.destroy(ctx, t); err != nil {
		return err
	}
	return g.removeVolumes(ctx, id.VMID, vols)
}

// goneFromCluster makes sure that a VM which this node does not have is not on another one: it may have been migrated
// between the request and the operation, or while its making was interrupted.
func (g *Guests) goneFromCluster(ctx context.Context, t target) error {
	id := t.id
	err := g.cfg.Watcher.Refresh(ctx) // or what is known may still have it here
	if err != nil {
		return fault.New(fault.Precondition, "delete %s: %w", id, err)
	}
	vm, err := g.cfg.Watcher.Locate(ctx, id.VMID)
	if errors.Is(err, pmxcfs.ErrNotFound) {
		absent, aerr := g.cfg.Watcher.Absent(ctx, id.VMID)
		switch {
		case aerr != nil:
			return fault.New(fault.Precondition, "delete %s: whether it is gone cannot be decided now: %w", id, aerr)
		case !absent:
			return fault.New(fault.Aborted, "delete %s: moved meanwhile, ask again", id)
		}
		return nil
	}
	if err != nil {
		return fault.New(fault.Precondition, "delete %s: %w", id, err)
	}
	switch {
	case vm.Node == g.cfg.Node || vm.Conf == nil || !t.is(vm.Conf):
		return nil // another machine has the number
	case t.made && !id.Fits(vm.ID, vm.Conf.SMBIOSUUID()):
		return g.destroyElsewhere(ctx, t, vm.Node)
	default:
		return fault.New(fault.Aborted, "delete %s: it has moved to node %s: ask the agent there", id, vm.Node)
	}
}

// destroyElsewhere destroys a half-made VM of ours that somebody has migrated to another node. The agent there would not
// know what it is; PVE passes our call on.
func (g *Guests) destroyElsewhere(ctx context.Context, t target, node string) error {
	g.log.WarnContext(ctx, "half-made VM was migrated, it is destroyed where it is", "vm", t.id.VMID, "on", node)
	u, err := g.cfg.PVE.Destroy(ctx, node, t.id.VMID, pve.DestroyParams{Purge: true})
	if err == nil {
		err = g.cfg.PVE.Wait(ctx, u)
	}
	if err != nil {
		return explainDestroy(t, err)
	}
	return nil
}

// awaitClone waits for the end of the clone that makes rec's VM, if its operation was lost and the clone goes on:
// nobody could say whose the VM is before it has a name, and PVE would not remove it.
func (g *Guests) awaitClone(ctx context.Context, rec *record.Record) error {
	if rec == nil || rec.State != record.Creating {
		return nil
	}
	err := ops.Retry(ctx, underWay, func(ctx context.Context) error {
		u, _, err := g.findMaking(ctx, rec.VMID, rec.Created)
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

// destroy stops a VM of this node and destroys it, and returns when its config is gone from /etc/pve. It never asks
// PVE for unreferenced disks: that would take every vm-<id>-* volume on all storages, also those of another cluster
// that shares one.
func (g *Guests) destroy(ctx context.Context, t target) error {
	// HA may start it again between our stop and our destroy, once.
	again := func(err error) bool { return passing(err) || pve.KindOf(err) == pve.KindAlreadyRunning }
	destroyed := false
	err := ops.Retry(ctx, again, func(ctx context.Context) (err error) {
		destroyed, err = g.destroyOnce(ctx, t)
		return err
	})
	if err != nil && pve.KindOf(err) != pve.KindNoSuchVM {
		return explainDestroy(t, err)
	}
	if !destroyed { // it was gone when we came, or its answer is lost
		if err := g.goneFromCluster(ctx, t); err != nil {
			return err
		}
	}
	return g.awaitGone(ctx, t)
}

func explainDestroy(t target, err error) error {
	if _, explained := errors.AsType[*fault.Error](err); explained {
		return err
	}
	return explain(fmt.Sprintf("delete VM %d", t.id.VMID), err)
}

// destroyOnce destroys the VM if it is there. It reads the config anew: a repeat must not hit another VM, nor one that
// was protected meanwhile.
func (g *Guests) destroyOnce(ctx context.Context, t target) (destroyed bool, err error) {
	vmid := t.id.VMID
	conf, err := g.confHere(ctx, vmid)
	if err != nil || conf == nil || !t.is(conf) {
		return false, err
	}
	if err := g.prepareDestroy(ctx, t, conf); err != nil {
		return false, err
	}
	u, err := g.cfg.PVE.Destroy(ctx, g.cfg.Node, vmid, pve.DestroyParams{Purge: true})
	if err == nil {
		err = g.cfg.PVE.Wait(ctx, u)
	}
	return err == nil, err
}

// prepareDestroy sees to it that PVE will destroy the VM: it is not protected, and it does not run.
func (g *Guests) prepareDestroy(ctx context.Context, t target, conf *pmxcfs.Conf) error {
	if !t.made {
		if err := deletable(t.id, conf); err != nil {
			return err
		}
	}
	if t.made && madeUnder(conf.Lock()) {
		if err := g.unlockClone(ctx, t); err != nil {
			return err
		}
	}
	if t.made && conf.Protection() {
		if err := g.cfg.PVE.SetConfig(ctx, g.cfg.Node, t.id.VMID, url.Values{"protection": {"0"}}); err != nil {
			return err
		}
	}
	st, err := g.cfg.Status.State(ctx, t.id.VMID, status.Want{User: true})
	if err != nil || !st.Running {
		return err
	}
	return g.powerCall(ctx, t.id.VMID, PowerOff, 0)
}

// errStillThere is the finding that a destroyed VM's config has not left /etc/pve yet.
var errStillThere = errors.New("its config is still there")

// awaitGone waits until the config is gone and every reader of ours knows it.
func (g *Guests) awaitGone(ctx context.Context, t target) error {
	err := ops.Retry(ctx, func(err error) bool { return errors.Is(err, errStillThere) }, func(ctx context.Context) error {
		conf, err := g.confHere(ctx, t.id.VMID)
		if err == nil && conf != nil && t.is(conf) {
			err = errStillThere
		}
		return err
	})
	if err != nil {
		return fault.New(fault.Aborted, "delete VM %d: %w", t.id.VMID, err)
	}
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		return fault.New(fault.Precondition, "delete VM %d: %w", t.id.VMID, err)
	}
	return nil
}
