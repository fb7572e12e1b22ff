package pmxcfs

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve2", 101, "name: b\n")
	c.write(confName(TypeLXC, "pve1", 200), "hostname: ct\n")
	c.register("pve1", TypeLXC, 200)
	c.sync()
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		for id, node := range map[int]string{100: "pve1", 101: "pve2", 200: "pve1"} {
			if vm, err := w.Locate(t.Context(), id); err != nil || vm.ID != id || vm.Node != node {
				t.Errorf("%d, before Run: got %+v, %v", id, vm, err)
			}
		}
		run(t, w)
		for _, id := range []int{99, 102, -1, 0} {
			start := time.Now()
			vm, err := w.Locate(t.Context(), id)
			if !errors.Is(err, ErrNotFound) || vm != nil || time.Since(start) != 0 {
				t.Errorf("%d: got %+v, %v after %v, want ErrNotFound at once", id, vm, err, time.Since(start))
			}
		}
	})
}

// The proof is an open, at most once per second.
func TestLocateProof(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher(func(cfg *WatchConfig) { cfg.Interval = time.Hour })
		run(t, w)
		opens := func(after time.Duration) uint64 {
			t.Helper()
			pass(after)
			before := readCount(w)
			if _, err := w.Locate(t.Context(), 100); err != nil {
				t.Error(err)
			}
			return readCount(w) - before
		}
		for _, step := range []struct {
			after time.Duration
			want  uint64
		}{{0, 0}, {999 * time.Millisecond, 0}, {time.Millisecond, 1}, {time.Millisecond, 0}, {time.Second, 1}, {5 * time.Second, 1}} {
			if got := opens(step.after); got != step.want {
				t.Errorf("%v later: %d opens, want %d", step.after, got, step.want)
			}
		}
	})
}

// A VM that moved is found on its new node by the next Locate that proves: no poll is needed.
func TestLocateMoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher(func(cfg *WatchConfig) { cfg.Interval = time.Hour })
		run(t, w)
		pass(time.Second)
		c.move(100, "pve3")
		before := readCount(w)
		if vm, err := w.Locate(t.Context(), 100); err != nil || vm.Node != "pve3" {
			t.Errorf("got %+v, %v", vm, err)
		}
		// The open that fails, .version, .members, .vmlist, and the config, whose reading is the proof.
		if got := readCount(w) - before; got != 5 {
			t.Errorf("%d reads, want 5", got)
		}
	})
}

// In the middle of a migration a VM is nowhere: Locate waits a little, and never says more than "not found".
func TestLocateMoving(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve1", 101, "name: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher(func(cfg *WatchConfig) { cfg.Interval = time.Hour })
		run(t, w)
		pass(time.Second)
		c.remove(100)
		c.remove(101)
		go func() {
			time.Sleep(60 * time.Millisecond)
			c.put("pve2", 100, "name: a\n")
		}()
		if vm, err := w.Locate(t.Context(), 100); err != nil || vm.Node != "pve2" {
			t.Errorf("moving: got %+v, %v", vm, err)
		}
		if _, err := w.Locate(t.Context(), 101); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "guest 101") {
			t.Errorf("deleted: got %v", err)
		}
		c.register("pve2", TypeQEMU, 103) // listed, but there is no file
		c.sync()
		_, err := w.Locate(t.Context(), 103)
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "nodes/pve2/qemu-server/103.conf") {
			t.Errorf("listed without a file: got %v, want ErrNotFound with the path", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := w.Locate(ctx, 103); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotFound) {
			t.Errorf("no time: got %v", err)
		}
	})
}

func TestLocateUnmounted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		c.check(os.RemoveAll(c.root))
		c.check(os.Mkdir(c.root, 0o755))
		pass(time.Second)
		for _, id := range []int{100, 101} {
			if _, err := w.Locate(t.Context(), id); !errors.Is(err, ErrNotMounted) || errors.Is(err, ErrNotFound) {
				t.Errorf("%d: got %v, want ErrNotMounted", id, err)
			}
			if absent, err := w.Absent(t.Context(), id); absent || !errors.Is(err, ErrNotMounted) {
				t.Errorf("%d: absent is %v, %v", id, absent, err)
			}
		}
	})
}

// Concurrent calls for one VM share one open.
func TestLocateCoalesced(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	w := c.watcher(func(cfg *WatchConfig) { cfg.ReadTimeout = time.Minute })
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.world.Load().VMs[100].provenAt.Store(0)
	release := c.hang(confName(TypeQEMU, "pve1", 100))
	before := readCount(w)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if vm, err := w.Locate(t.Context(), 100); err != nil || vm.ID != 100 {
				t.Errorf("got %+v, %v", vm, err)
			}
		})
	}
	eventually(t, "all calls wait", func() bool { return waiting("[select", "TestLocateCoalesced.func", "fetch[") == 20 })
	release("name: a\n")
	wg.Wait()
	if got := readCount(w) - before; got != 1 {
		t.Errorf("20 calls made %d opens, want 1", got)
	}
}

// waiting counts the goroutines that have all these words in their stacks.
func waiting(words ...string) int {
	buf := make([]byte, 1<<20)
	n := 0
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(stack, word) }) {
			n++
		}
	}
	return n
}

func BenchmarkLocate(b *testing.B) {
	c := newCluster(b)
	for id := 100; id < 1100; id++ {
		c.write(confName(TypeQEMU, "pve1", id), "name: a\n")
		c.register("pve1", TypeQEMU, id)
	}
	c.sync()
	w := c.watcher()
	if err := w.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("proven", func(b *testing.B) {
		b.ReportAllocs()
		w.world.Load().VMs[500].provenAt.Store(w.now() + int64(time.Hour))
		for b.Loop() {
			if _, err := w.Locate(b.Context(), 500); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.world.Load().VMs[501].provenAt.Store(0)
			if _, err := w.Locate(b.Context(), 501); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("refresh", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := w.Refresh(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("refresh one change", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.put("pve1", 502, "name: b\n")
			if err := w.Refresh(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The hot path allocates nothing.
func TestLocateAllocs(t *testing.T) {
	c := newCluster(t)
	c.put("pve1", 1000, "name: a\n")
	w := c.watcher()
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.world.Load().VMs[1000].provenAt.Store(w.now() + int64(time.Hour))
	ctx := t.Context()
	allocs := testing.AllocsPerRun(1000, func() {
		if _, err := w.Locate(ctx, 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := w.World(); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per Locate", allocs)
	}
}
