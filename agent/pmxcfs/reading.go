package pmxcfs

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// lockedRead makes one reading: .version and .members, and what .version says has changed.
func (w *Watcher) lockedRead(ctx context.Context) error {
	begun := time.Now()
	version, err := fetch(ctx, &w.reads, w.cfg.Tree.path(".version"), false, w.cfg.Tree.Version)
	if err != nil {
		return err
	}
	// Every time: gaining or losing quorum moves no counter (pve-cluster status.c, cfs_set_quorate).
	members, err := fetch(ctx, &w.reads, w.cfg.Tree.path(".members"), false, w.cfg.Tree.Members)
	if err != nil {
		return err
	}
	old := w.world.Load()
	next := &World{ReadAt: begun, Node: w.cfg.Node, Quorate: members.Quorate, Members: members}
	if err := w.lockedGuests(ctx, old, next, version); err != nil {
		return err
	}
	if err := w.lockedStorages(ctx, old, next, version); err != nil {
		return err
	}
	if err := w.lockedSides(ctx, old, next, version); err != nil {
		return err
	}
	w.lockedPublish(old, next, version)
	return nil
}

// lockedPublish makes next the World.
func (w *Watcher) lockedPublish(old, next *World, version Version) {
	now := time.Now()
	changed := true
	var ids []int
	if old != nil {
		next.offline, next.quorum = offlineSince(old.offline, next.Members, now), quorumSince(old.quorum, next.Members, now)
		ids = differing(old.VMs, next.VMs)
		changed = len(ids) > 0 || next.Quorate != old.Quorate || !reflect.DeepEqual(next.Members, old.Members) ||
			!reflect.DeepEqual(next.Storages, old.Storages) || !reflect.DeepEqual(next.HA, old.HA) || !reflect.DeepEqual(next.Pools, old.Pools)
	} else {
		next.offline, next.quorum = offlineSince(nil, next.Members, now), quorumSince(time.Time{}, next.Members, now)
		ids = slices.Collect(maps.Keys(next.VMs))
	}
	w.gaps.update(old, next, w.last.StartTime != version.StartTime, now)
	w.last = version
	w.world.Store(next)
	if old == nil {
		close(w.ready)
	}
	if changed {
		w.subs.tell(ids)
	}
}

// differing lists the guests that are new, gone, moved or have another config.
func differing(old, next map[int]*VM) []int {
	var ids []int
	for id, vm := range next {
		if o := old[id]; o != vm && (o == nil || o.Node != vm.Node || o.Type != vm.Type || o.Conf != vm.Conf || vm.Conf == nil) {
			ids = append(ids, id)
		}
	}
	for id := range old {
		if next[id] == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// lockedStorages sets the storages of next. An unreadable storage.cfg does not stop the rest.
func (w *Watcher) lockedStorages(ctx context.Context, old, next *World, version Version) error {
	n, counted := version.Files["storage.cfg"]
	if old != nil && old.StorageErr == nil && counted && version.StartTime == w.last.StartTime && n == w.last.Files["storage.cfg"] {
		next.Storages = old.Storages
		return nil
	}
	next.Storages, next.StorageErr = fetch(ctx, &w.reads, w.cfg.Tree.path("storage.cfg"), false, w.cfg.Tree.Storages)
	var hang *HangError
	if errors.As(next.StorageErr, &hang) {
		return next.StorageErr
	}
	if next.StorageErr != nil && old != nil {
		next.Storages = old.Storages
	}
	return nil
}

// lockedGuests sets the guests of next.
func (w *Watcher) lockedGuests(ctx context.Context, old, next *World, version Version) error {
	known := map[int]*VM{}
	if old != nil {
		if len(old.Unread) == 0 && version.StartTime == w.last.StartTime && version.VMList == w.last.VMList {
			next.VMs, next.Unread, next.index = old.VMs, old.Unread, old.index
			return nil
		}
		known = old.VMs
	}
	// A config that is not where .vmlist had it may have been moved in between: look where it is now, once.
	for pass := range 2 {
		list, err := fetch(ctx, &w.reads, w.cfg.Tree.path(".vmlist"), false, w.cfg.Tree.VMList)
		if err != nil {
			return err
		}
		b := &batch{w: w, start: version.StartTime, known: known, vms: make(map[int]*VM, len(list.Guests))}
		if err := b.read(ctx, list); err != nil {
			return err
		}
		next.VMs, next.Unread, next.index = b.vms, b.unread, &index{}
		if pass > 0 || !b.misses() {
			break
		}
		known = b.vms
	}
	return nil
}

// batch reads the configs of one .vmlist that are not known yet, several at once.
type batch struct {
	w     *Watcher
	start int64
	known map[int]*VM

	mu     sync.Mutex // guards what follows
	vms    map[int]*VM
	unread map[int]error
}

func (b *batch) read(ctx context.Context, list VMList) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, id := range slices.Sorted(maps.Keys(list.Guests)) {
		g := list.Guests[id]
		key := cacheKey{start: b.start, version: g.Version}
		old := b.known[id]
		switch {
		case old != nil && old.key == key && old.Node == g.Node && old.Type == g.Type:
			b.keep(id, old)
		case g.Type != TypeQEMU:
			b.keep(id, &VM{ID: id, Node: g.Node, Type: g.Type, key: key})
		default:
			group.Go(func() error { return b.readOne(ctx, id, g, old) })
		}
		if ctx.Err() != nil {
			break
		}
	}
	return group.Wait()
}

func (b *batch) keep(id int, vm *VM) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.vms[id] = vm
}

// readOne reads one config. Only a hung tree ends the reading; anything else is this guest's trouble, which keeps its
// last good config if it has one.
func (b *batch) readOne(ctx context.Context, id int, g Guest, old *VM) error {
	proven := b.w.now()
	tree := b.w.cfg.Tree
	conf, err := fetch(ctx, &b.w.reads, tree.path(confName(TypeQEMU, g.Node, id)), false, func() (*Conf, error) {
		return tree.Conf(g.Node, id)
	})
	var hang *HangError
	if errors.As(err, &hang) {
		return err
	}
	if err != nil {
		b.fail(id, err, old)
		return nil
	}
	if old != nil && old.Conf != nil && old.Conf.raw == conf.raw {
		conf = old.Conf
	}
	vm := &VM{ID: id, Node: g.Node, Type: g.Type, Conf: conf, key: cacheKey{start: b.start, version: g.Version}}
	vm.provenAt.Store(proven)
	b.keep(id, vm)
	return nil
}

func (b *batch) fail(id int, err error, old *VM) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old != nil && old.Type == TypeQEMU {
		b.vms[id] = old
	}
	if b.unread == nil {
		b.unread = make(map[int]error)
	}
	b.unread[id] = err
}

// misses reports whether a config was not where .vmlist had it.
func (b *batch) misses() bool {
	for _, err := range b.unread {
		if missing(err) {
			return true
		}
	}
	return false
}
