package snippet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// diskTime is how long work in one directory may take: a file of an NFS server that is gone hangs for ever.
const diskTime = 10 * time.Second

// errSlow is why work in a directory was given up.
var errSlow = fmt.Errorf("the storage did not answer within %s", diskTime)

// in does work in the directory of snippets of a storage. One piece of work is done there at a time; one that hangs is
// given up, and holds up what comes after it on that storage alone.
func in[T any](ctx context.Context, s *Store, st pmxcfs.Storage, work func(dir *os.Root) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeoutCause(ctx, diskTime, errSlow)
	defer cancel()
	turn := s.turn(st.ID)
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("storage %s: %w", st.ID, context.Cause(ctx))
	}
	type result struct {
		val T
		err error
	}
	done := make(chan result, 1)
	go func() { // drain waits for it
		defer func() { <-turn }()
		var r result
		r.val, r.err = visit(s.cfg.MountInfo, st, work)
		done <- r
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return none, fmt.Errorf("storage %s: %w", st.ID, r.err)
		}
		return r.val, nil
	case <-ctx.Done():
		return none, fmt.Errorf("storage %s: %w", st.ID, context.Cause(ctx))
	}
}

// turn is what who works on a storage holds.
func (s *Store) turn(storage string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turns[storage] == nil {
		s.turns[storage] = make(chan struct{}, 1)
	}
	return s.turns[storage]
}

// drain waits until no work is under way, but at most a second: nothing can end one that hangs.
func (s *Store) drain() {
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	s.mu.Lock()
	var turns []chan struct{}
	for _, turn := range s.turns {
		turns = append(turns, turn)
	}
	s.mu.Unlock()
	for _, turn := range turns {
		select {
		case turn <- struct{}{}:
			<-turn
		case <-limit.C:
			return
		}
	}
}

func visit[T any](mountInfo string, st pmxcfs.Storage, work func(dir *os.Root) (T, error)) (T, error) {
	dir, err := open(mountInfo, st)
	if err != nil {
		var none T
		return none, err
	}
	val, err := work(dir)
	return val, errors.Join(err, dir.Close())
}

// open opens the directory of snippets of a storage, and makes it where PVE would. Nothing is made of the way to the
// storage itself: below the mount point of a storage that is not mounted a file would be lost as soon as it is.
func open(mountInfo string, st pmxcfs.Storage) (*os.Root, error) {
	path, err := st.SnippetPath(prefix)
	if err != nil {
		return nil, err
	}
	if err := mounted(mountInfo, st); err != nil {
		return nil, err
	}
	path = filepath.Dir(path)
	dir, err := os.OpenRoot(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	base, err := os.OpenRoot(st.Path)
	if err != nil {
		return nil, err
	}
	below, err := filepath.Rel(st.Path, path)
	if err == nil {
		err = base.MkdirAll(below, 0o755)
	}
	if err = errors.Join(err, base.Close()); err != nil {
		return nil, err
	}
	return os.OpenRoot(path)
}

// networkTypes are the kinds of file systems that stand for a type of storage in the kernel's list of mounts, as PVE's
// storage plugins look for them.
var networkTypes = map[string][]string{
	"nfs": {"nfs"}, "cifs": {"cifs", "smb"}, "cephfs": {"ceph", "fuse.ceph"}, "glusterfs": {"fuse.glusterfs"},
}

// mounted fails when a storage has to be a mount point and nothing is mounted there. PVE mounts those of the network
// when it first needs them; of a directory its option is_mountpoint says so.
func mounted(mountInfo string, st pmxcfs.Storage) error {
	point, kinds := st.Path, networkTypes[st.Type]
	if kinds == nil {
		if point = mountPoint(st); point == "" {
			return nil
		}
	}
	raw, err := os.ReadFile(mountInfo)
	if err != nil {
		return err
	}
	kind, ok := mountAt(string(raw), point)
	if !ok && kinds == nil { // PVE resolves symbolic links of a directory
		if real, err := filepath.EvalSymlinks(point); err == nil {
			kind, ok = mountAt(string(raw), real)
		}
	}
	if ok && (kinds == nil || slices.ContainsFunc(kinds, func(k string) bool { return strings.HasPrefix(kind, k) })) {
		return nil
	}
	return fmt.Errorf("%s is not mounted (pvesm status --storage %s)", point, st.ID)
}

// mountPoint is what the option is_mountpoint of a directory names, "" if nothing.
func mountPoint(st pmxcfs.Storage) string {
	switch v := st.Options["is_mountpoint"]; strings.ToLower(v) {
	case "", "0", "no", "off", "false":
		return ""
	case "1", "yes", "on", "true":
		return st.Path
	default:
		return v
	}
}

// mountAt returns the kind of file system that is mounted at a path: the topmost. The list is /proc/<pid>/mountinfo.
func mountAt(list, path string) (kind string, ok bool) {
	path = filepath.Clean(path)
	for line := range strings.Lines(list) {
		mount, rest, _ := strings.Cut(line, " - ")
		fields, after := strings.Fields(mount), strings.Fields(rest)
		if len(fields) > 4 && len(after) > 0 && escapes.Replace(fields[4]) == path {
			kind, ok = after[0], true
		}
	}
	return kind, ok
}

// escapes are those of the kernel in its list of mounts.
var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// keep puts content where its name says: complete or not at all, for root's eyes alone, and young from now on.
func keep(dir *os.Root, draft string, data []byte, now time.Time) error {
	file := fileOf(data)
	if old, err := dir.ReadFile(file); err == nil && bytes.Equal(old, data) {
		return errors.Join(dir.Chmod(file, 0o600), dir.Chtimes(file, now, now))
	}
	err := write(dir, draft, data)
	if err == nil {
		err = dir.Chtimes(draft, now, now)
	}
	if err == nil {
		err = dir.Rename(draft, file)
	}
	if err != nil {
		return errors.Join(err, gone(dir.Remove(draft)))
	}
	return settle(dir)
}

func write(dir *os.Root, name string, data []byte) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// settle makes new names of a directory outlast a power failure, where its file system can.
func settle(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// load reads a snippet. One whose content is not what its name says is as good as none.
func load(dir *os.Root, file string) ([]byte, error) {
	data, err := dir.ReadFile(file)
	if err == nil && fileOf(data) != file {
		err = fmt.Errorf("%s: its content is not what its name says: %w", file, fs.ErrNotExist)
	}
	return data, err
}

// gone is the error of a removal: that there was nothing is none.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// list returns what is in a directory.
func list(dir *os.Root) ([]fs.DirEntry, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	entries, err := d.ReadDir(-1)
	return entries, errors.Join(err, d.Close())
}
