package pmxcfs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// statusDir is a mount of a cluster's directory in which the status files behave as in pmxcfs: their content is made when
// somebody asks for their attributes, and a read gets what was made last. Attributes are cached for a second.
type statusDir struct {
	fs.LoopbackNode

	mu      sync.Mutex // guards content
	content map[string]string
}

// statusFile is .version, .vmlist or .members.
type statusFile struct {
	fs.Inode
	dir  *statusDir
	name string
}

var (
	_ fs.NodeLookuper  = (*statusDir)(nil)
	_ fs.NodeGetattrer = (*statusFile)(nil)
	_ fs.NodeOpener    = (*statusFile)(nil)
	_ fs.NodeReader    = (*statusFile)(nil)
)

func (d *statusDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if !strings.HasPrefix(name, ".") {
		return d.LoopbackNode.Lookup(ctx, name, out)
	}
	if errno := d.attributes(name, &out.Attr); errno != 0 {
		return nil, errno
	}
	if known := d.GetChild(name); known != nil {
		return known, 0
	}
	return d.NewInode(ctx, &statusFile{dir: d, name: name}, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

// attributes makes the content anew.
func (d *statusDir) attributes(name string, out *fuse.Attr) syscall.Errno {
	raw, err := os.ReadFile(filepath.Join(d.RootData.Path, name))
	if err != nil {
		return fs.ToErrno(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.content[name] = string(raw)
	out.Mode, out.Size = syscall.S_IFREG|0o444, uint64(len(raw))
	return 0
}

func (f *statusFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return f.dir.attributes(f.name, &out.Attr)
}

func (f *statusFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *statusFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	content := f.dir.content[f.name]
	off = min(off, int64(len(content)))
	end := min(off+int64(len(dest)), int64(len(content)))
	return fuse.ReadResultData([]byte(content[off:end])), 0
}

// mount mounts a cluster's directory as FUSE, and returns where.
func (c *cluster) mount() string {
	c.t.Helper()
	dir := c.t.TempDir()
	second := time.Second
	root := &statusDir{content: map[string]string{}}
	root.RootData = &fs.LoopbackRoot{Path: c.root, RootNode: root}
	server, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second, MountOptions: fuse.MountOptions{DirectMount: true, FsName: "pmxcfs-test"},
	})
	if err != nil {
		c.t.Skipf("skipped: needs the right to mount FUSE (%v); enable with: sudo make test", err)
	}
	c.t.Cleanup(func() { c.check(server.Unmount()) })
	return dir
}

// What was changed before Refresh is seen, although the status files are made up only now and then.
func TestFUSEFresh(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := NewWatcher(WatchConfig{Tree: Open(c.mount()), Node: "pve1"})
	for id := 100; id < 110; id++ {
		c.put("pve1", id, "name: a\n")
		if err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if wd := world(t, w); wd.VMs[id] == nil {
			t.Fatalf("vm %d was made before Refresh, and Refresh does not see it", id)
		}
	}
	c.quorate = false
	c.sync()
	if err := w.Refresh(t.Context()); err != nil || world(t, w).Quorate {
		t.Errorf("Refresh does not see that quorum was lost: %v", err)
	}
}

// A guest that moves, and a file system that goes away and comes back, over FUSE.
func TestFUSEMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dir := c.mount()
	w := NewWatcher(WatchConfig{Tree: Open(dir), Node: "pve1"})
	c.put("pve1", 100, "name: a\n")
	for _, node := range []string{"pve2", "pve1", "pve3"} {
		if _, err := w.Locate(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
		w.world.Load().VMs[100].provenAt.Store(0)
		c.move(100, node)
		if vm, err := w.Locate(t.Context(), 100); err != nil || vm.Node != node {
			t.Errorf("moved to %s: got %+v, %v", node, vm, err)
		}
	}
	c.remove(100)
	if absent, err := w.Absent(t.Context(), 100); !absent || err != nil {
		t.Errorf("removed: absent is %v, %v", absent, err)
	}
}

// A .vmlist of several reads is whole, however often others have it made anew meanwhile.
func TestFUSELargeList(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for id := 100; id < 3100; id++ {
		c.register("pve1", TypeLXC, id)
	}
	c.sync()
	dir := c.mount()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for id := range 50 {
				c.register("pve1", TypeLXC, 100+id)
			}
			c.sync()
			f, err := os.Open(filepath.Join(dir, ".vmlist"))
			c.check(err)
			c.check(askAttributes(f))
			c.check(f.Close())
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for range 8 {
		list, err := Open(dir).VMList()
		if err != nil || len(list.Guests) != 3000 {
			t.Errorf("got %d guests, %v", len(list.Guests), err)
		}
	}
	cancel()
	<-done
}
