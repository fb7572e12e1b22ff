package snippet

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// keepTime is how long a snippet stays that nothing refers to.
const keepTime = 7 * 24 * time.Hour

// clean removes snippets of ours from this node that nothing has referred to for keepTime. How long that is, their time
// of modification tells: each pass makes those that are needed young again. On a shared storage all nodes do it; that is
// what keeps files of one cluster safe from another's agents. Nothing is removed unless all is known that may need one.
func (s *Store) clean(ctx context.Context) {
	err := s.cfg.Watcher.Refresh(ctx)
	world, werr := s.cfg.Watcher.World()
	if err = errors.Join(err, werr); err != nil {
		s.cfg.Log.InfoContext(ctx, "old cloud-init snippets stay: /etc/pve cannot be read", "err", err)
		return
	}
	needs, err := s.referred(world)
	if err != nil {
		s.cfg.Log.InfoContext(ctx, "old cloud-init snippets stay: what needs them is not known", "err", err)
	}
	needed := map[string]bool{} // a file of one storage may be that of another
	for volume := range needs {
		if _, file, serr := split(volume); serr == nil {
			needed[file] = true
		}
	}
	for _, st := range world.Storages {
		if st.Path != "" && s.holds(st) {
			s.cleanStorage(ctx, st, needed, err == nil)
		}
	}
}

// cleanStorage makes needed files of a storage young, and if may is set removes others.
func (s *Store) cleanStorage(ctx context.Context, st pmxcfs.Storage, needed map[string]bool, may bool) {
	removed, err := in(ctx, s, st, func(dir *os.Root) (removed []string, err error) {
		entries, err := list(dir)
		for _, e := range entries {
			name := e.Name()
			switch {
			case !ours(name):
			case needed[name]:
				err = errors.Join(err, gone(dir.Chtimes(name, s.cfg.Now(), s.cfg.Now())))
			case may:
				old, rerr := s.removeOld(dir, name)
				if err = errors.Join(err, rerr); old {
					removed = append(removed, name)
				}
			}
		}
		return removed, err
	})
	if len(removed) > 0 {
		s.cfg.Log.InfoContext(ctx, "old cloud-init snippets removed: nothing refers to them", "storage", st.ID, "files", removed)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.WarnContext(ctx, "cloud-init snippets cannot be cleaned up", "storage", st.ID, "err", err)
	}
}

// sweep removes what crashes of this node's agent have left half-written. Whoever writes now holds the turn of the
// storage, so that no draft is in use.
func (s *Store) sweep(ctx context.Context) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return // the next start does it
	}
	for _, st := range world.Storages {
		if st.Path == "" || !s.holds(st) {
			continue
		}
		_, err := in(ctx, s, st, func(dir *os.Root) (none struct{}, err error) {
			entries, err := list(dir)
			for _, e := range entries {
				if s.isDraft(e.Name()) {
					err = errors.Join(err, gone(dir.Remove(e.Name())))
				}
			}
			return none, err
		})
		if err != nil {
			s.cfg.Log.DebugContext(ctx, "half-written cloud-init snippets are not looked for", "err", err)
		}
	}
}

// isDraft reports whether a file is what this node left half-written.
func (s *Store) isDraft(name string) bool {
	file := strings.TrimPrefix(strings.TrimSuffix(name, "."+s.cfg.Node), ".")
	return ours(file) && name == s.draft(file)
}

// removeOld removes a file if it is old. One from the future, as after a jump of the clock, is so young from now on.
func (s *Store) removeOld(dir *os.Root, name string) (removed bool, err error) {
	info, err := dir.Stat(name)
	if err != nil {
		return false, gone(err)
	}
	now := s.cfg.Now()
	switch age := now.Sub(info.ModTime()); {
	case age < 0:
		return false, gone(dir.Chtimes(name, now, now))
	case age <= keepTime:
		return false, nil
	}
	return true, gone(dir.Remove(name))
}
