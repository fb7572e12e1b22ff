package pmxfuse

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a name in the view. What is behind the name is looked up for each
// call, since other nodes change the source all the time.
type node struct {
	fusefs.Inode
	fs *FS
}

var (
	_ fusefs.NodeLookuper   = (*node)(nil)
	_ fusefs.NodeGetattrer  = (*node)(nil)
	_ fusefs.NodeSetattrer  = (*node)(nil)
	_ fusefs.NodeOpener     = (*node)(nil)
	_ fusefs.NodeCreater    = (*node)(nil)
	_ fusefs.NodeMkdirer    = (*node)(nil)
	_ fusefs.NodeRmdirer    = (*node)(nil)
	_ fusefs.NodeUnlinker   = (*node)(nil)
	_ fusefs.NodeRenamer    = (*node)(nil)
	_ fusefs.NodeReadlinker = (*node)(nil)
	_ fusefs.NodeReaddirer  = (*node)(nil)
	_ fusefs.NodeStatfser   = (*node)(nil)
)

// rel is the node's place below the top of the view, "" for the top.
func (n *node) rel() string { return n.Path(n.Root()) }

func (n *node) child(name string) string { return filepath.Join(n.rel(), name) }

// private reports whether a place is one of pmxcfs's private directories.
func private(rel string) bool {
	parts := strings.Split(rel, "/")
	return parts[0] == "priv" || len(parts) > 2 && parts[0] == "nodes" && parts[2] == "priv"
}

// wwwData is the group of everything in /etc/pve, by its number on Debian.
const wwwData = 33

// fill writes attributes as pmxcfs gives them.
func fill(out *fuse.Attr, rel string, st *syscall.Stat_t) {
	out.FromStat(st)
	fix(out, rel)
}

// fix sets what pmxcfs fixes: owner and modes.
func fix(out *fuse.Attr, rel string) {
	out.Uid, out.Gid, out.Ino = 0, wwwData, 0
	kind, mode := out.Mode&unix.S_IFMT, uint32(0o755)
	if kind == unix.S_IFREG {
		mode = 0o640
	}
	if private(rel) {
		mode &= 0o700
	}
	out.Mode = kind | mode
}

// inode is the known or a new inode for a name. A name keeps its inode, as in
// pmxcfs, also when what is behind it was replaced from elsewhere.
func (n *node) inode(ctx context.Context, name string, st *syscall.Stat_t) *fusefs.Inode {
	kind := st.Mode & unix.S_IFMT
	if known := n.GetChild(name); known != nil && known.Mode() == kind {
		return known
	}
	return n.NewInode(ctx, &node{fs: n.fs}, fusefs.StableAttr{Mode: kind})
}

// entry answers with what is at a name of this directory now.
func (n *node) entry(ctx context.Context, at *side, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Lstat(at.real(n.child(name)), &st); err != nil {
		return nil, fusefs.ToErrno(err)
	}
	fill(&out.Attr, n.child(name), &st)
	return n.inode(ctx, name, &st), fusefs.OK
}

// writable refuses changes while there is no quorum.
func (n *node) writable() (*side, syscall.Errno) {
	at := n.fs.side.Load()
	if at.frozen {
		return nil, syscall.EACCES
	}
	return at, fusefs.OK
}

// Lookup implements [fusefs.NodeLookuper].
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	var inode *fusefs.Inode
	errno := n.fs.look(func(at *side) (errno syscall.Errno) {
		inode, errno = n.entry(ctx, at, name, out)
		return errno
	})
	return inode, errno
}

// Getattr implements [fusefs.NodeGetattrer]. A file held open may have no name
// any more.
func (n *node) Getattr(ctx context.Context, h fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if open, ok := h.(fusefs.FileGetattrer); ok {
		errno := open.Getattr(ctx, out)
		fix(&out.Attr, n.rel())
		return errno
	}
	return n.fs.look(func(at *side) syscall.Errno {
		var st syscall.Stat_t
		if err := syscall.Lstat(at.real(n.rel()), &st); err != nil {
			return fusefs.ToErrno(err)
		}
		fill(&out.Attr, n.rel(), &st)
		return fusefs.OK
	})
}

// Setattr implements [fusefs.NodeSetattrer]: chmod and chown only to what is
// so already, truncation, times.
func (n *node) Setattr(ctx context.Context, h fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	at, errno := n.writable()
	if errno != fusefs.OK {
		return errno
	}
	defer n.fs.changed()
	if errno := n.refuseOwnerAndMode(in); errno != fusefs.OK {
		return errno
	}
	path := at.real(n.rel())
	if size, ok := in.GetSize(); ok {
		if err := os.Truncate(path, int64(size)); err != nil {
			return fusefs.ToErrno(err)
		}
	}
	if errno := setTimes(path, in); errno != fusefs.OK {
		return errno
	}
	return n.Getattr(ctx, h, out)
}

func (n *node) refuseOwnerAndMode(in *fuse.SetAttrIn) syscall.Errno {
	if mode, ok := in.GetMode(); ok {
		allowed := uint32(0o640)
		if private(n.rel()) {
			allowed = 0o600
		}
		if mode&0o7777 != allowed {
			return syscall.EPERM
		}
	}
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if hasUID && uid != 0 || hasGID && gid != wwwData {
		return syscall.EPERM
	}
	return fusefs.OK
}

func setTimes(path string, in *fuse.SetAttrIn) syscall.Errno {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if t, ok := in.GetATime(); ok {
		times[0] = unix.NsecToTimespec(t.UnixNano())
	}
	if t, ok := in.GetMTime(); ok {
		times[1] = unix.NsecToTimespec(t.UnixNano())
	}
	return fusefs.ToErrno(unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
}

// Open implements [fusefs.NodeOpener]. It always looks at the source, and what
// is read through it is never cached (direct I/O, as pmxcfs has it).
func (n *node) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	open := n.fs.look
	if flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		at, errno := n.writable()
		if errno != fusefs.OK {
			return nil, 0, errno
		}
		defer n.fs.changed()
		open = func(try func(*side) syscall.Errno) syscall.Errno { return try(at) }
	}
	if err := n.fs.pause(ctx); err != nil {
		return nil, 0, fusefs.ToErrno(err)
	}
	fd := -1
	errno := open(func(at *side) syscall.Errno {
		var err error
		fd, err = unix.Open(at.real(n.rel()), int(flags)&^(unix.O_APPEND|fuse.FMODE_EXEC)|unix.O_CLOEXEC, 0)
		return fusefs.ToErrno(err)
	})
	if errno != fusefs.OK {
		return nil, 0, errno
	}
	return n.newFile(fd), fuse.FOPEN_DIRECT_IO, fusefs.OK
}

// Create implements [fusefs.NodeCreater]. With O_EXCL one of all nodes wins.
func (n *node) Create(ctx context.Context, name string, flags, _ uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	at, errno := n.writable()
	if errno != fusefs.OK {
		return nil, nil, 0, errno
	}
	defer n.fs.changed()
	mode := uint32(0o640)
	if private(n.child(name)) {
		mode = 0o600
	}
	fd, err := unix.Open(at.real(n.child(name)), int(flags)&^unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, nil, 0, fusefs.ToErrno(err)
	}
	inode, errno := n.entry(ctx, at, name, out)
	if errno != fusefs.OK { // removed again already
		_ = unix.Close(fd)
		return nil, nil, 0, errno
	}
	return inode, n.newFile(fd), fuse.FOPEN_DIRECT_IO, fusefs.OK
}

// file is an open file. The kernel must not read past us (FUSE passthrough):
// then nothing would be as it is on pmxcfs.
type file struct {
	*fusefs.LoopbackFile
	fs *FS
}

func (n *node) newFile(fd int) file {
	return file{fusefs.NewLoopbackFileFromOS(os.NewFile(uintptr(fd), "")), n.fs}
}

// Write implements [fusefs.FileWriter]: each write of a file needs quorum, not
// its opening alone.
func (f file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if f.fs.side.Load().frozen {
		return 0, syscall.EACCES
	}
	defer f.fs.changed()
	return f.LoopbackFile.Write(ctx, data, off)
}

// PassthroughFd implements [fusefs.FilePassthroughFder]: no.
func (file) PassthroughFd() (int, bool) { return 0, false }

// Mkdir implements [fusefs.NodeMkdirer]: the lock of the cluster.
func (n *node) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	at, errno := n.writable()
	if errno != fusefs.OK {
		return nil, errno
	}
	defer n.fs.changed()
	if err := os.Mkdir(at.real(n.child(name)), 0o755); err != nil {
		return nil, fusefs.ToErrno(err)
	}
	return n.entry(ctx, at, name, out)
}

// Rmdir implements [fusefs.NodeRmdirer].
func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	at, errno := n.writable()
	if errno != fusefs.OK {
		return errno
	}
	defer n.fs.changed()
	return fusefs.ToErrno(unix.Rmdir(at.real(n.child(name))))
}

// Unlink implements [fusefs.NodeUnlinker].
func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	at, errno := n.writable()
	if errno != fusefs.OK {
		return errno
	}
	defer n.fs.changed()
	return fusefs.ToErrno(unix.Unlink(at.real(n.child(name))))
}

// Rename implements [fusefs.NodeRenamer]; pmxcfs knows no flags.
func (n *node) Rename(_ context.Context, name string, newParent fusefs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to, ok := newParent.(*node)
	if !ok || flags != 0 {
		return syscall.EINVAL
	}
	at, errno := n.writable()
	if errno != fusefs.OK {
		return errno
	}
	defer n.fs.changed()
	return fusefs.ToErrno(os.Rename(at.real(n.child(name)), at.real(to.child(newName))))
}

// Readlink implements [fusefs.NodeReadlinker].
func (n *node) Readlink(context.Context) ([]byte, syscall.Errno) {
	var target string
	errno := n.fs.look(func(at *side) syscall.Errno {
		var err error
		target, err = os.Readlink(at.real(n.rel()))
		return fusefs.ToErrno(err)
	})
	return []byte(target), errno
}

// Readdir implements [fusefs.NodeReaddirer].
func (n *node) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	if err := n.fs.pause(ctx); err != nil {
		return nil, fusefs.ToErrno(err)
	}
	var list []fuse.DirEntry
	errno := n.fs.look(func(at *side) syscall.Errno {
		list = nil
		dirs := []string{filepath.Join(at.source, n.rel())}
		if n.IsRoot() && at.view != "" {
			dirs = append(dirs, at.view)
		}
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return fusefs.ToErrno(err)
			}
			for _, e := range entries {
				list = append(list, fuse.DirEntry{Name: e.Name(), Mode: fileType(e.Type())})
			}
		}
		return fusefs.OK
	})
	if errno != fusefs.OK {
		return nil, errno
	}
	slices.SortStableFunc(list, func(a, b fuse.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	list = slices.CompactFunc(list, func(a, b fuse.DirEntry) bool { return a.Name == b.Name })
	return fusefs.NewListDirStream(list), fusefs.OK
}

func fileType(mode os.FileMode) uint32 {
	switch {
	case mode.IsDir():
		return unix.S_IFDIR
	case mode&os.ModeSymlink != 0:
		return unix.S_IFLNK
	}
	return unix.S_IFREG
}

// Statfs implements [fusefs.NodeStatfser]: 128 MiB is all that pmxcfs holds.
func (*node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const block = 4096
	out.Bsize, out.Frsize, out.NameLen = block, block, 256
	out.Blocks, out.Files = 128<<20/block, 256<<10
	out.Bfree, out.Bavail, out.Ffree = out.Blocks, out.Blocks, out.Files
	return fusefs.OK
}
