package pmxcfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// run starts a watcher inside a synctest bubble and waits for its first reading.
func run(t *testing.T, w *Watcher) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	<-w.Ready()
	synctest.Wait()
}

func world(t *testing.T, w *Watcher) *World {
	t.Helper()
	world, err := w.World()
	if err != nil {
		t.Fatal(err)
	}
	return world
}

// poll lets the watcher look once more.
func poll() { pass(time.Second) }

// pass lets time go by, and whatever is due then be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// readCount is how many reads were started.
func readCount(w *Watcher) uint64 {
	w.reads.mu.Lock()
	defer w.reads.mu.Unlock()
	return w.reads.seq
}

func ids(vms []*VM) []int {
	var list []int
	for _, vm := range vms {
		list = append(list, vm.ID)
	}
	return list
}

func TestWatcherWorld(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 120, string(testdata(t, "120.conf")))
	c.put("pve2", 900, string(testdata(t, "900.conf")))
	c.put("pve1", 101, "name: tmpl900\n")
	c.put("pve1", 100, "lock: clone\n")
	c.register("pve1", TypeLXC, 200)
	c.sync()
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		if _, err := w.World(); !errors.Is(err, errUnread) || !strings.Contains(err.Error(), c.root+": last good reading: never") {
			t.Errorf("before the first reading: got %v", err)
		}
		run(t, w)
		wd := world(t, w)
		if !wd.Quorate || wd.Members.Node != "pve1" || len(wd.VMs) != 5 || len(wd.Unread) != 0 || len(wd.Storages) != 2 || wd.StorageErr != nil {
			t.Fatalf("got %+v", wd)
		}
		if got := ids(wd.ByName("tmpl900")); !slices.Equal(got, []int{101, 900}) {
			t.Errorf("two of one name, on two nodes: got %v", got)
		}
		if got := ids(wd.Local()); !slices.Equal(got, []int{100, 101, 120}) {
			t.Errorf("local VMs: got %v", got)
		}
		if ct := wd.VMs[200]; ct.Type != TypeLXC || ct.Conf != nil || ct.Node != "pve1" {
			t.Errorf("container: got %+v", ct)
		}
		if !wd.Has(200) || wd.Has(201) || len(wd.ByName("")) != 0 {
			t.Error("Has or ByName")
		}
	})
}

// Only what changed is read again: a guest whose version did not change keeps its very Conf, also across polls.
func TestWatcherReadsOnlyChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve2", 101, "name: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		first := world(t, w)
		before := readCount(w)
		poll()
		second := world(t, w)
		if got := readCount(w) - before; got != 2 {
			t.Errorf("a poll without changes made %d reads, want 2: .version and .members", got)
		}
		if !second.ReadAt.After(first.ReadAt) || second.index != first.index {
			t.Error("the second World is not a newer one of the same guests")
		}
		c.put("pve1", 100, "name: c\n")
		before = readCount(w)
		poll()
		third := world(t, w)
		if got := readCount(w) - before; got != 4 {
			t.Errorf("a poll with one changed config made %d reads, want 4", got)
		}
		if third.VMs[101] != first.VMs[101] || third.VMs[100].Conf.Name() != "c" || first.VMs[100].Conf.Name() != "a" {
			t.Error("not exactly 100 was read again, or an old World changed")
		}
		if len(third.ByName("a")) != 0 || len(third.ByName("c")) != 1 {
			t.Error("ByName does not follow")
		}
	})
}

func TestWatcherSubscribe(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve1", 101, "name: b\n")
	c.put("pve1", 102, "name: c\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		sub, changed := w.Subscribe(), w.Changed()
		poll()
		select {
		case <-sub.C():
			t.Error("told without a change")
		case <-changed:
			t.Error("changed without a change")
		default:
		}
		c.put("pve1", 101, "name: b\n") // written, but the same
		c.move(102, "pve2")
		c.put("pve1", 103, "name: d\n")
		poll()
		c.remove(100)
		poll()
		<-sub.C()
		got := sub.Take()
		slices.Sort(got)
		if !slices.Equal(got, []int{100, 102, 103}) {
			t.Errorf("got %v", got)
		}
		<-changed
		sub.Close()
		c.put("pve1", 101, "name: e\n")
		poll()
		if got := sub.Take(); len(got) != 0 {
			t.Errorf("after Close: got %v", got)
		}
	})
}

// Losing quorum moves no counter in .version, and is still seen at the next poll.
func TestWatcherQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		changed := w.Changed()
		c.quorate = false
		c.sync()
		poll()
		if world(t, w).Quorate {
			t.Error("quorum is gone, and nobody saw it")
		}
		<-changed
	})
}

func TestWatcherGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		gone := func(want bool, when string) {
			t.Helper()
			if got := world(t, w).Gone("pve2", time.Now()); got != want {
				t.Errorf("%s: pve2 gone is %v", when, got)
			}
		}
		gone(false, "online")
		c.online["pve2"] = false
		c.sync()
		poll()
		pass(119 * time.Second)
		gone(false, "after 119 s")
		pass(2 * time.Second)
		gone(true, "after 121 s")
		if !world(t, w).Gone("pve9", time.Now()) || world(t, w).Gone("pve1", time.Now()) {
			t.Error("a node that was removed from the cluster is gone, and ours is not")
		}
		if since, off := world(t, w).OfflineSince("pve2"); !off || time.Since(since).Round(time.Second) != 121*time.Second {
			t.Errorf("pve2 is offline since %s, %v", since, off)
		}
		c.quorate = false
		c.sync()
		poll()
		gone(false, "without quorum")
		c.quorate = true
		c.sync()
		poll()
		gone(false, "quorum just came back: the time starts again")
		if world(t, w).Gone("pve9", time.Now()) {
			t.Error("nobody knows yet for how long there was no such node")
		}
		pass(125 * time.Second)
		gone(true, "with quorum for 125 s")
		c.online["pve2"] = true
		c.sync()
		poll()
		gone(false, "back online")
	})
}

// A restarted pmxcfs counts from the beginning: the same numbers mean something else.
func TestWatcherRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.counter = 0
	c.put("pve1", 100, "name: a\n")
	c.put("pve1", 101, "name: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		old := world(t, w)
		for id, name := range map[int]string{100: "x", 101: "b"} {
			c.write(confName(TypeQEMU, "pve1", id), "name: "+name+"\n")
		}
		c.write("storage.cfg", "nfs: new\n")
		c.restart()
		for c.guests[100].Version != old.VMs[100].key.version { // map order decides
			c.restart()
		}
		poll()
		wd := world(t, w)
		if got := wd.VMs[100].Conf.Name(); got != "x" {
			t.Errorf("same version, other start: the config is still %q", got)
		}
		if wd.VMs[101].Conf != old.VMs[101].Conf {
			t.Error("an unchanged config should be shared with the old World")
		}
		if _, ok := wd.Storages.Get("new"); !ok {
			t.Error("same counter, other start: storage.cfg was not read")
		}
	})
}

// An unmounted /etc/pve is an error that says so, and one mounted again is picked up: another directory with other counters.
func TestWatcherRemount(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := c.watcher(func(cfg *WatchConfig) { cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		run(t, w)
		away := c.root + "-away"
		c.check(os.Rename(c.root, away))
		c.check(os.Mkdir(c.root, 0o755))
		poll()
		if _, err := w.World(); err != nil {
			t.Errorf("1 s after: %v, want the last good World", err)
		}
		pass(5 * time.Second)
		_, err := w.World()
		var stale *StaleError
		if !errors.As(err, &stale) || !errors.Is(err, ErrNotMounted) ||
			!strings.Contains(err.Error(), c.root+": pmxcfs not mounted? .version missing") {
			t.Errorf("unmounted for 6 s: got %v", err)
		}
		c.check(os.Remove(c.root))
		c.check(os.Rename(away, c.root))
		c.write(confName(TypeQEMU, "pve1", 100), "name: z\n")
		c.restart()
		poll()
		if got := world(t, w).VMs[100].Conf.Name(); got != "z" {
			t.Errorf("mounted again: got %q", got)
		}
		if n := strings.Count(log.String(), "not readable"); n != 1 || !strings.Contains(log.String(), "readable again") {
			t.Errorf("want one warning and the end of it in the log:\n%s", log.String())
		}
	})
}

// Not mounted at the start is not an end: Run waits for it.
func TestWatcherMountedLate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	version, err := os.ReadFile(c.path(".version"))
	c.check(err)
	c.check(os.Remove(c.path(".version")))
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		go func() {
			time.Sleep(10 * time.Second)
			c.write(".version", string(version))
		}()
		start := time.Now()
		run(t, w)
		if waited := time.Since(start); waited < 10*time.Second || waited > 12*time.Second {
			t.Errorf("ready after %v", waited)
		}
	})
}

// Garbage in a file that everything depends on makes the World stale, not empty; with the path.
func TestWatcherGarbage(t *testing.T) {
	t.Parallel()
	for _, file := range []string{".version", ".vmlist", ".members"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.put("pve1", 100, "name: a\n")
			synctest.Test(t, func(t *testing.T) {
				w := c.watcher()
				run(t, w)
				c.counter++
				c.sync()
				c.write(file, `{"version": 1`)
				pass(3 * time.Second)
				if wd := world(t, w); len(wd.VMs) != 1 {
					t.Errorf("after 3 s: got %d VMs, want the old World", len(wd.VMs))
				}
				pass(4 * time.Second)
				_, err := w.World()
				if err == nil || !strings.Contains(err.Error(), c.path(file)+": not a valid file") {
					t.Errorf("after 7 s: got %v, want the path", err)
				}
				if err := w.Refresh(t.Context()); err == nil {
					t.Error("Refresh: no error")
				}
			})
		})
	}
}

// A bad storage.cfg or a bad config is its own trouble, not the World's.
func TestWatcherPartialGarbage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve1", 101, "name: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		c.write("storage.cfg", "garbage\n")
		c.storage++
		c.put("pve1", 100, "\x00\x00")
		c.put("pve1", 102, "\x00\x00")
		poll()
		wd := world(t, w)
		if wd.StorageErr == nil || !strings.Contains(wd.StorageErr.Error(), "storage.cfg") || len(wd.Storages) != 2 {
			t.Errorf("storages: got %v, %v; want the error and the last good ones", wd.StorageErr, wd.Storages)
		}
		if wd.VMs[100].Conf.Name() != "a" || wd.VMs[102] != nil || wd.Unread[100] == nil || wd.Unread[102] == nil || wd.Unread[101] != nil || !wd.Has(102) {
			t.Errorf("guests: got %v, %v", wd.VMs, wd.Unread)
		}
		var format *FormatError
		if _, err := w.Locate(t.Context(), 102); !errors.As(err, &format) || errors.Is(err, ErrNotFound) {
			t.Errorf("locate a VM with garbage: got %v", err)
		}
		c.write("storage.cfg", "")
		c.write(confName(TypeQEMU, "pve1", 102), "name: c\n") // no counter moves: tried again all the same
		c.write(confName(TypeQEMU, "pve1", 100), "name: d\n")
		poll()
		wd = world(t, w)
		if wd.StorageErr != nil || len(wd.Storages) != 1 || len(wd.Unread) != 0 || wd.VMs[102].Conf.Name() != "c" || wd.VMs[100].Conf.Name() != "d" {
			t.Errorf("repaired: got %+v", wd)
		}
	})
}

// A config that is gone when it is opened is a miss: a migration in between, or the VM is deleted.
func TestWatcherVanishingConf(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve1", 101, "name: b\n")
	c.register("pve2", TypeQEMU, 102) // listed, no file
	c.sync()
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		wd := world(t, w)
		if len(wd.VMs) != 2 || !errors.Is(wd.Unread[102], os.ErrNotExist) || !wd.Has(102) {
			t.Fatalf("got %v, %v", wd.VMs, wd.Unread)
		}
		// 101 is renamed, and .vmlist tells it only afterwards: the old config stays known meanwhile.
		c.check(os.Rename(c.path(confName(TypeQEMU, "pve1", 101)), c.path(confName(TypeQEMU, "pve3", 101))))
		c.register("pve1", TypeQEMU, 101)
		c.put("pve2", 102, "name: c\n")
		poll()
		wd = world(t, w)
		if wd.VMs[101].Conf.Name() != "b" || wd.Unread[101] == nil || wd.VMs[102].Conf.Name() != "c" {
			t.Errorf("in the middle: got %v, %v", wd.VMs, wd.Unread)
		}
		c.register("pve3", TypeQEMU, 101)
		c.sync()
		poll()
		wd = world(t, w)
		if wd.VMs[101].Node != "pve3" || len(wd.Unread) != 0 {
			t.Errorf("arrived: got %+v, %v", wd.VMs[101], wd.Unread)
		}
	})
}

// Refresh sees what was there before it was called, and calls share a reading.
func TestWatcherRefresh(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := c.watcher()
	for id := 100; id < 120; id++ {
		c.put("pve1", id, fmt.Sprintf("name: vm-%d\n", id))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := w.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				if wd, err := w.World(); err != nil || wd.VMs[id] == nil {
					t.Errorf("vm %d is not there after Refresh: %v", id, err)
				}
			})
		}
		wg.Wait()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Refresh(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	w.reads.drain(time.Minute)
}

func TestWatcherLargeCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for id := 100; id < 1100; id++ {
		c.write(confName(TypeQEMU, "pve1", id), fmt.Sprintf("name: vm-%d\n", id))
		c.register("pve1", TypeQEMU, id)
	}
	c.sync()
	w := c.watcher()
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	wd := world(t, w)
	if len(wd.VMs) != 1000 || len(wd.Local()) != 1000 || len(wd.ByName("vm-777")) != 1 {
		t.Errorf("got %d VMs", len(wd.VMs))
	}
}
