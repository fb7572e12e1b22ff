package pvesim

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// shown is what .vmlist and .version are made of.
type shown struct {
	vmlist  int
	counter int // pmxcfs gives every changed guest the next number
	guests  map[int]guest
	files   map[string]int // tracked files' versions
}

func (s *shown) clone() *shown {
	return &shown{vmlist: s.vmlist, counter: s.counter, guests: maps.Clone(s.guests), files: maps.Clone(s.files)}
}

// since is what a pmxcfs shows that was started when the counters stood at
// base: it counts anew, and only the changes it saw itself.
func (s *shown) since(base *shown) *shown {
	out := &shown{vmlist: s.vmlist - base.vmlist + 1, guests: make(map[int]guest, len(s.guests)), files: make(map[string]int, len(s.files))}
	for id, g := range s.guests {
		g.version = max(g.version-base.counter, 0) + 1
		out.guests[id] = g
	}
	for name, v := range s.files {
		out.files[name] = v - base.files[name] + 1
	}
	return out
}

// nodeView is what one node sees of the tree. The zero value sees all of it
// at once.
type nodeView struct {
	standing
	frozen *shown // with its copy of the files: not part of the quorate cluster
	copy   string // directory of that copy
	copies int
	old    []string // copies to remove

	lag    time.Duration
	behind *shown // shown while changes wait in queue
	queue  []late

	start  int64  // of its pmxcfs
	base   *shown // counters at that start; nil: those of the cluster's start
	moving bool   // sees the copy still, for a moment
	own    bool   // has .vmlist and .version of its own
}

type late struct {
	due time.Time
	is  *shown
}

// sees is what a node's pmxcfs shows now.
func (t *tree) lockedSees(node string) *shown {
	v := t.views[node]
	switch {
	case v.frozen != nil:
		return v.frozen
	case v.behind != nil:
		return v.behind
	}
	return &t.shown
}

// source is the directory behind a node's /etc/pve.
func (t *tree) source(node string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lockedSource(node)
}

func (t *tree) lockedSource(node string) string {
	if v := t.views[node]; v.frozen != nil {
		return v.copy
	}
	return t.root
}

// settle gives the nodes their standings: who is not part of the quorate
// cluster any more keeps what it saw last, who is again sees what is.
func (t *tree) settle(now map[string]standing) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	changed := false
	for _, node := range t.nodes {
		v, s := t.views[node], now[node]
		if v.quorate != s.quorate || !slices.Equal(v.members, s.members) {
			changed = true
		}
		v.standing = s
		switch {
		case !s.live && v.frozen == nil:
			errs = append(errs, t.lockedFreeze(node))
		case s.live && v.frozen != nil:
			t.lockedThaw(node)
		}
	}
	if changed {
		t.clinfo++
		errs = append(errs, t.lockedMembers())
	}
	return errors.Join(append(errs, t.lockedPublish())...)
}

// lockedFreeze copies the files for a node that is cut off. Links would not
// do: an agent may write a file in place.
func (t *tree) lockedFreeze(node string) error {
	v := t.views[node]
	if err := v.sweep(); err != nil {
		return err
	}
	v.copies++
	copied := filepath.Join(filepath.Dir(t.own[node]), fmt.Sprintf("cut-%d", v.copies))
	if err := copyTree(t.root, copied); err != nil {
		return fmt.Errorf("tree of %s: %w", node, err)
	}
	v.frozen, v.copy, v.behind, v.queue = t.lockedSees(node).clone(), copied, nil, nil
	return nil
}

func (t *tree) lockedThaw(node string) {
	v := t.views[node]
	v.old = append(v.old, v.copy)
	v.frozen, v.copy, v.moving = nil, "", true
}

// sweep removes the copies that nobody looks at any more. The last one stays
// for a while: a reader may be on its way through it.
func (v *nodeView) sweep() error {
	var errs []error
	for _, dir := range v.old {
		errs = append(errs, os.RemoveAll(dir))
	}
	v.old = nil
	return errors.Join(errs...)
}

// statusFiles are made for each node and not part of the tree.
var statusFiles = []string{".vmlist", ".version", ".members"}

// copyTree copies directories and files with their modes and times.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || slices.Contains(statusFiles, rel) {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), info.Mode().Perm())
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		return errors.Join(os.WriteFile(dst, b, info.Mode().Perm()), os.Chtimes(dst, time.Time{}, info.ModTime()))
	})
}

// lockedShow writes a node's own .vmlist and .version, or takes them away if
// the common ones are what it shows.
func (t *tree) lockedShow(node string) error {
	v := t.views[node]
	if v.moving {
		return nil
	}
	if v.frozen == nil && v.behind == nil && v.base == nil {
		if !v.own {
			return nil
		}
		v.own = false
		return t.lockedCommon(node)
	}
	v.own = true
	is := t.lockedSees(node)
	if v.base != nil {
		is = is.since(v.base)
	}
	dir := t.own[node]
	return errors.Join(
		t.lockedStatus(filepath.Join(dir, ".vmlist"), vmlistText(is)),
		t.lockedStatus(filepath.Join(dir, ".version"), t.versionText(is, v.start)))
}

// show is lockedShow for a view that was made anew or has changed sides.
func (t *tree) show(node string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.views[node].moving = false
	return t.lockedShow(node)
}

// forget takes nothing for granted of what a node's status files say: they
// were made anew.
func (t *tree) forget(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range statusFiles {
		delete(t.status, filepath.Join(t.own[node], name))
	}
}

// lockedCommon lets a node see the common .vmlist and .version again.
func (t *tree) lockedCommon(node string) error {
	var errs []error
	for _, name := range []string{".version", ".vmlist"} {
		path := filepath.Join(t.own[node], name)
		delete(t.status, path)
		if !t.linked {
			errs = append(errs, os.Remove(path))
			continue
		}
		t.tmpCount++
		tmp := fmt.Sprintf("%s.tmp.%d", path, t.tmpCount)
		errs = append(errs, os.Symlink(filepath.Join("..", "..", "etc", "pve", name), tmp), os.Rename(tmp, path))
	}
	return errors.Join(errs...)
}

// setLag lets a node's .vmlist and .version show changes only later.
func (t *tree) setLag(node string, d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[node]
	v.lag = d
	if d <= 0 {
		v.behind, v.queue = nil, nil
		return t.lockedShow(node)
	}
	if v.frozen == nil && v.behind == nil {
		v.behind = t.clone()
	}
	return t.lockedShow(node)
}

// lockedLate notes the current state for a node that lags.
func (t *tree) lockedLate(node string) {
	v := t.views[node]
	v.queue = append(v.queue, late{due: time.Now().Add(v.lag), is: t.clone()})
	t.later(v.lag, func() { t.catchUp(node) })
}

// catchUp shows what is due.
func (t *tree) catchUp(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, now := t.views[node], time.Now()
	for len(v.queue) > 0 && !v.queue[0].due.After(now) {
		v.behind = v.queue[0].is
		v.queue = v.queue[1:]
	}
	if err := t.lockedShow(node); err != nil {
		t.warn(err)
	}
}

// restart is a new pmxcfs on a node: its counters begin again.
func (t *tree) restart(node string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[node]
	v.base = t.lockedSees(node).clone()
	v.start = max(time.Now().Unix(), v.start+1)
	return t.lockedShow(node)
}

// ownerFor is the node that has a VM, as a node sees it.
func (t *tree) ownerFor(node string, vmid int) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.lockedSees(node).guests[vmid]
	return g.node, ok
}

// idsFor is ids as a node sees them.
func (t *tree) idsFor(node string) ([]int, map[int]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	guests := t.lockedSees(node).guests
	nodes := make(map[int]string, len(guests))
	for id, g := range guests {
		nodes[id] = g.node
	}
	return slices.Sorted(maps.Keys(nodes)), nodes
}

// isOnline says whether a node is online for another one.
func (t *tree) isOnline(viewer, node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.views[viewer].members, node)
}

// isWritable says whether a node can change the tree.
func (t *tree) isWritable(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.views[node].writable
}

func (t *tree) isQuorate(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.views[node].quorate && t.views[node].live
}
