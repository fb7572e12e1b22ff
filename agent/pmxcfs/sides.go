package pmxcfs

import (
	"context"
	"errors"
	"slices"
)

// side is what a tracked file beside the guests' configs holds.
type side struct {
	raw []byte // of the last good reading; nil if there is no such file
	err error  // why raw is not current
}

// sideFiles are those that the World has something of.
var sideFiles = []string{haResources, haGroups, haRules, haStatus, userConfig}

// userConfig has the pools, among users and their rights.
const userConfig = "user.cfg"

// sideFile reads one of sideFiles.
func (t *Tree) sideFile(name string) ([]byte, error) {
	raw, err := t.read(name)
	if missing(err) {
		return nil, nil
	}
	return raw, err
}

// lockedSides sets what next has from the files beside the guests' configs. One that is unreadable does not stop the
// rest.
func (w *Watcher) lockedSides(ctx context.Context, old, next *World, version Version) error {
	next.sides = make(map[string]side, len(sideFiles))
	if old == nil {
		old = &World{}
	}
	for _, name := range sideFiles {
		was, known := old.sides[name]
		n, counted := version.Files[name]
		if known && was.err == nil && counted && version.StartTime == w.last.StartTime && n == w.last.Files[name] {
			next.sides[name] = was
			continue
		}
		raw, err := fetch(ctx, &w.reads, w.cfg.Tree.path(name), false, func() ([]byte, error) { return w.cfg.Tree.sideFile(name) })
		if hang, ok := errors.AsType[*HangError](err); ok {
			return hang
		}
		if err != nil {
			raw = was.raw
		}
		next.sides[name] = side{raw: raw, err: err}
	}
	next.fromSides(old)
	return nil
}

// fromSides sets HA and pools, anew only where a file differs from that of old.
func (w *World) fromSides(old *World) {
	ha := sideFiles[:4]
	if w.HA, w.HAErr = old.HA, w.sideErrors(ha...); old.HA == nil || w.differs(old, ha...) {
		w.HA = ParseHA(HAFiles{
			Resources: w.sides[haResources].raw, Groups: w.sides[haGroups].raw, Rules: w.sides[haRules].raw, ManagerStatus: w.sides[haStatus].raw,
		})
	}
	if w.Pools, w.PoolErr = old.Pools, w.sideErrors(userConfig); old.Pools.Of == nil || w.differs(old, userConfig) {
		w.Pools = ParsePools(w.sides[userConfig].raw)
	}
}

func (w *World) differs(old *World, names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return string(w.sides[name].raw) != string(old.sides[name].raw) })
}

func (w *World) sideErrors(names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, w.sides[name].err)
	}
	return errors.Join(errs...)
}
