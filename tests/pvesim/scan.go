package pvesim

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

var confName = regexp.MustCompile(`^([1-9]\d{2,8})\.conf$`)

// watch looks for what others wrote into the tree: an agent may change a
// config or a priv file as it may on a real node.
func (t *tree) watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := t.tick(); err != nil && ctx.Err() == nil {
				t.warn(err)
			}
		}
	}
}

// scanned is a directory of configs as it was seen last.
type scanned struct {
	stamp stamp
	ids   []int
}

// everyScan is how often each config is looked at even though its directory
// did not change: a file can be written in place.
const everyScan = 5

// idleScans is how often the tree is looked over where FUSE says that nothing
// came through it: there is another way in, behind it.
const idleScans = 50

// tick is scan, if there is a reason.
func (t *tree) tick() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scans++
	foreign := t.foreign.Load()
	news := foreign != t.scanned
	if !t.linked && !news && t.scans%idleScans != 0 {
		return nil
	}
	t.scanned = foreign
	return t.lockedScan(news || t.scans%everyScan == 0)
}

// scan registers foreign writes: configs that came, went or changed, and
// tracked files.
func (t *tree) scan() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lockedScan(true)
}

// lockedScan is scan; unless it is full, it trusts a directory that did not
// change.
func (t *tree) lockedScan(full bool) error {
	changed := t.lockedScanFiles()
	found := map[int]string{}
	for _, node := range t.nodes {
		for kind, sub := range map[string]string{"qemu": "qemu-server", "lxc": "lxc"} {
			if t.lockedScanNode(node, kind, sub, full, found) {
				changed = true
			}
		}
	}
	for id := range maps.Clone(t.guests) {
		if _, ok := found[id]; !ok {
			delete(t.guests, id)
			t.vmlist++
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return t.lockedPublish()
}

// lockedScanNode adds a node's guests of one kind to found.
func (t *tree) lockedScanNode(node, kind, sub string, full bool, found map[int]string) (changed bool) {
	dir := filepath.Join(t.root, "nodes", node, sub)
	now, err := statStamp(dir)
	if err != nil {
		return false
	}
	if was, ok := t.dirs[dir]; ok && was.stamp == now && !full {
		for _, id := range was.ids {
			found[id] = node
		}
		return false
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	seen := scanned{stamp: now}
	for _, e := range entries {
		m := confName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		id := atoi(m[1])
		seen.ids = append(seen.ids, id)
		found[id] = node
		path := filepath.Join(dir, e.Name())
		s, err := statStamp(path)
		if err != nil {
			continue
		}
		if t.moving[id] {
			continue
		}
		if g, ok := t.guests[id]; !ok || g.node != node || t.stamps[path] != s {
			t.stamps[path] = s
			t.lockedGuest(node, id, kind)
			changed = true
		}
	}
	t.dirs[dir] = seen
	return changed
}

func (t *tree) lockedScanFiles() (changed bool) {
	for _, rel := range slices.Sorted(maps.Keys(t.files)) {
		path := filepath.Join(t.root, rel)
		s, err := statStamp(path)
		if err != nil {
			continue
		}
		if t.stamps[path] != s {
			t.stamps[path] = s
			t.files[rel]++
			changed = true
		}
	}
	return changed
}
