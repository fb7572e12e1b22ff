package pmxcfs

import (
	"context"
	"fmt"
	"os"
	"time"
)

// absence remembers since when guests are missing from .vmlist, as far as that was read with quorum.
type absence struct {
	since time.Time         // the first such reading, without a gap in quorum or a restart of pmxcfs since
	left  map[int]time.Time // the first reading that missed a guest which had been listed
}

// update takes in a reading that ended now.
func (a *absence) update(old, next *World, restarted bool, now time.Time) {
	if !next.Quorate || restarted || old == nil || a.since.IsZero() {
		*a = absence{}
		if next.Quorate {
			a.since = now
		}
		return
	}
	for id := range old.VMs {
		a.note(id, next, now)
	}
	for id := range old.Unread {
		a.note(id, next, now)
	}
	for id, t := range a.left {
		if next.Has(id) || now.Sub(t) > forgetAfter {
			delete(a.left, id)
		}
	}
}

func (a *absence) note(id int, next *World, now time.Time) {
	if next.Has(id) {
		return
	}
	if a.left == nil {
		a.left = make(map[int]time.Time)
	}
	a.left[id] = now
}

// missingFrom is the first reading that missed the guest.
func (a *absence) missingFrom(id int) time.Time {
	if t, ok := a.left[id]; ok {
		return t
	}
	return a.since
}

// Absent reports whether a guest does not exist. True only with quorum, if two readings of .vmlist at least 1 s apart
// miss it (the watcher's own count; Absent waits for the second one if need be) and no node's directory has a config of
// that number. False without an error: it exists. An error: nobody knows.
func (w *Watcher) Absent(ctx context.Context, vmid int) (bool, error) {
	listed, err := w.missedTwice(ctx, vmid)
	if err != nil || listed {
		return false, doubt(vmid, err)
	}
	found, err := fetch(ctx, &w.reads, w.cfg.Tree.path("nodes")+fmt.Sprintf("/*/%d.conf", vmid), false, func() (bool, error) {
		return w.cfg.Tree.anyConf(vmid)
	})
	if err != nil || found {
		return false, doubt(vmid, err)
	}
	members, err := fetch(ctx, &w.reads, w.cfg.Tree.path(".members"), false, w.cfg.Tree.Members)
	if err == nil && !members.Quorate {
		err = fmt.Errorf("%s: %w", w.cfg.Tree.path(".members"), ErrNoQuorum)
	}
	return err == nil, doubt(vmid, err)
}

func doubt(vmid int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("whether guest %d exists: %w", vmid, err)
}

// missedTwice reads until .vmlist was read twice, far enough apart, without the guest; or until it is there.
func (w *Watcher) missedTwice(ctx context.Context, vmid int) (listed bool, err error) {
	for {
		if err := w.Refresh(ctx); err != nil {
			return false, err
		}
		world := w.world.Load()
		from, err := w.missingFrom(ctx, vmid)
		switch {
		case err != nil:
			return false, err
		case world.Has(vmid):
			return true, nil
		case !world.Quorate || from.IsZero():
			return false, fmt.Errorf("%s: %w", w.cfg.Tree.path(".members"), ErrNoQuorum)
		}
		apart := world.ReadAt.Sub(from)
		if apart >= absentApart {
			return false, nil
		}
		if err := sleep(ctx, absentApart-apart); err != nil {
			return false, err
		}
	}
}

func (w *Watcher) missingFrom(ctx context.Context, vmid int) (time.Time, error) {
	if err := w.lock(ctx); err != nil {
		return time.Time{}, err
	}
	defer w.unlock()
	return w.gaps.missingFrom(vmid), nil
}

// anyConf opens the config of a guest in every node's directory.
func (t *Tree) anyConf(vmid int) (bool, error) {
	nodes, err := t.nodes()
	if err != nil {
		return false, err
	}
	for _, node := range nodes {
		for _, typ := range []string{TypeQEMU, TypeLXC} {
			err := t.prove(typ, node, vmid)
			if err == nil || !missing(err) {
				return err == nil, err
			}
		}
	}
	return false, nil
}

// nodes lists the nodes that have a directory.
func (t *Tree) nodes() ([]string, error) {
	dir, err := os.Open(t.path("nodes"))
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("%s: %w", t.root, ErrNotMounted)
	}
	return names, err
}
