package pmxcfs

import (
	"context"
	"fmt"
	"os"
	"time"
)

const (
	// proofLife is how long an opened config file proves its owner.
	proofLife = time.Second
	// absentApart is how far apart two readings of .vmlist must be that miss a guest before it counts as absent: inside
	// pmxcfs a migration is a delete followed by a register, so two immediate readings can both miss it.
	absentApart = time.Second
	// forgetAfter is how long it is remembered when a guest left .vmlist.
	forgetAfter = time.Minute
)

// moving is how long Locate waits for a guest that was there a moment ago and is neither here nor there now.
var moving = []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond}

// Locate returns a guest with its owner, proven by opening its config file there at most 1 s ago; concurrent calls for
// one guest share that proof. If the file is not where .vmlist had it, .vmlist is read again. The guest may be a
// container, or belong to another node: the caller decides. Conf is as of the last reading, so whoever is about to destroy
// something compares the uuid after a Refresh: PVE gives the number of a deleted VM to the next one at once.
//
// ErrNotFound says that it was not found, never that it does not exist: ask Absent.
func (w *Watcher) Locate(ctx context.Context, vmid int) (*VM, error) {
	return w.locate(ctx, vmid, w.now()-int64(proofLife)+1)
}

// LocateNow is Locate with a proof that is made after the call, for whoever is about to change a guest, or to say of one
// that it does not run: it may have moved a moment ago.
func (w *Watcher) LocateNow(ctx context.Context, vmid int) (*VM, error) {
	return w.locate(ctx, vmid, w.now())
}

// locate finds a guest with a proof from since or later.
func (w *Watcher) locate(ctx context.Context, vmid int, since int64) (*VM, error) {
	world := w.world.Load()
	if world == nil {
		return w.search(ctx, vmid, nil, since)
	}
	vm := world.VMs[vmid]
	if vm != nil && vm.proven(since) {
		return vm, nil
	}
	return w.search(ctx, vmid, vm, since)
}

// proven reports whether the config file was opened since then, on the Watcher's clock, which is never 0 or less.
func (v *VM) proven(since int64) bool {
	at := v.provenAt.Load()
	return at != 0 && at >= since
}

// search proves vm, the hint, or finds where the guest is now.
func (w *Watcher) search(ctx context.Context, vmid int, vm *VM, since int64) (*VM, error) {
	known := vm != nil
	err := w.prove(ctx, vmid, vm, since)
	for _, pause := range moving {
		if err == nil || !missing(err) {
			break
		}
		if err := w.look(ctx, pause); err != nil {
			return nil, fmt.Errorf("locate guest %d: %w", vmid, err)
		}
		world := w.world.Load()
		if known = known || world.Has(vmid); !known {
			break
		}
		vm, err = world.VMs[vmid], world.Unread[vmid]
		if vm != nil || err == nil {
			err = w.prove(ctx, vmid, vm, since)
		}
	}
	switch {
	case err == nil:
		return vm, nil
	case missing(err):
		return nil, fmt.Errorf("guest %d: %w: %w", vmid, ErrNotFound, err)
	default:
		return nil, fmt.Errorf("locate guest %d: %w", vmid, err)
	}
}

// look reads anew after a pause.
func (w *Watcher) look(ctx context.Context, pause time.Duration) error {
	if err := sleep(ctx, pause); err != nil {
		return err
	}
	return w.Refresh(ctx)
}

// prove opens the config of vm where it is supposed to be.
func (w *Watcher) prove(ctx context.Context, vmid int, vm *VM, since int64) error {
	if vm == nil {
		return &os.PathError{Op: "find", Path: w.cfg.Tree.path(".vmlist") + " entry", Err: os.ErrNotExist}
	}
	path := w.cfg.Tree.path(confName(vm.Type, vm.Node, vmid))
	for !vm.proven(since) {
		// It may join a look that began too early; then the next one is ours.
		_, err := fetch(ctx, &w.reads, path+" (open)", true, func() (struct{}, error) {
			at := w.now()
			err := w.cfg.Tree.prove(vm.Type, vm.Node, vmid)
			if err == nil {
				vm.provenAt.Store(at)
			}
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
