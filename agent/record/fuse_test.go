package record

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// mountTwice mounts the directory above dir as two nodes would have it, and returns dir in each. The kernel caches names
// for a second, per mount, as it does for pmxcfs: what one node removed, another may still take for there.
func mountTwice(t *testing.T, dir string) [2]string {
	t.Helper()
	var dirs [2]string
	second := time.Second
	for i := range dirs {
		root, err := fs.NewLoopbackRoot(filepath.Dir(dir))
		check(t, err)
		at := t.TempDir()
		server, err := fs.Mount(at, root, &fs.Options{
			EntryTimeout: &second, AttrTimeout: &second, MountOptions: fuse.MountOptions{DirectMount: true, FsName: "record-test"},
		})
		if err != nil {
			t.Skipf("skipped: needs the right to mount FUSE (%v); enable with: sudo make test", err)
		}
		t.Cleanup(func() { check(t, server.Unmount()) })
		dirs[i] = filepath.Join(at, filepath.Base(dir))
	}
	return dirs
}

// A name goes back and forth between two nodes: made, updated, taken over, released, made again.
func TestFUSELife(t *testing.T) {
	t.Parallel()
	dirs := mountTwice(t, newDir(t))
	a, b := New(Config{Dir: dirs[0]}), New(Config{Dir: dirs[1]})
	for round := range 4 {
		c := take(t, a, web1())
		_, err := b.Take(web1())
		_ = wantErr[*ExistsError](t, err)
		check(t, c.Update(func(r *Record) { r.VMID++ }))
		r, found, err := b.Find(web1().Owner, "web-1")
		if !found || err != nil || r.VMID != web1().VMID+1 {
			t.Fatalf("the other node finds %+v, %v, %v", r, found, err)
		}
		over, err := b.TakeOver(r, web1())
		check(t, err)
		if err := c.Check(); !errors.Is(err, ErrLost) {
			t.Errorf("the old holder: got %v", err)
		}
		check(t, over.Release())
		if _, found, err := a.Find(web1().Owner, "web-1"); found || err != nil {
			t.Errorf("released: got %v, %v", found, err)
		}
		if round%2 == 0 { // else the same node at once, whose kernel may take the removed name for there
			a, b = b, a
		}
	}
}

func TestFUSERace(t *testing.T) {
	t.Parallel()
	dirs := mountTwice(t, newDir(t))
	stores := []*Store{New(Config{Dir: dirs[0]}), New(Config{Dir: dirs[1]})}
	for i := range 10 {
		r := web1()
		r.Name += string(rune('a' + i))
		var wins atomic.Int64
		var wg sync.WaitGroup
		for j := range 10 {
			wg.Go(func() {
				if _, err := stores[j%2].Take(r); err == nil {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Errorf("%s: %d winners", r.Name, wins.Load())
		}
	}
}

func TestFUSEAllocate(t *testing.T) {
	t.Parallel()
	dirs := mountTwice(t, newDir(t))
	checkSpans(t, allocateMany(t, dirs[0], dirs[1], func() files { return disk{} }))
}
