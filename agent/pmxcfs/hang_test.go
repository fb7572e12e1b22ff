package pmxcfs

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hang replaces a file by one whose open blocks; the returned function gives it content again and ends that.
func (c *cluster) hang(name string) (release func(content string)) {
	c.t.Helper()
	path := c.path(name)
	_ = os.Remove(path)
	c.check(syscall.Mkfifo(path, 0o600))
	return func(content string) {
		c.t.Helper()
		c.check(os.Link(path, path+".hung"))
		c.write(name, content)
		// Whoever waits for a writer gets one, and an end of file.
		f, err := os.OpenFile(path+".hung", os.O_RDWR, 0)
		c.check(err)
		c.check(f.Close())
	}
}

// A read that does not come back blocks nobody for longer than he allows, and costs one goroutine, not one per call.
func TestWatcherHang(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	w := c.watcher(func(cfg *WatchConfig) {
		cfg.Interval, cfg.ReadTimeout, cfg.MaxAge = 10*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	<-w.Ready()
	version, err := os.ReadFile(c.path(".version"))
	c.check(err)
	release := c.hang(".version")
	eventually(t, "the World is stale because of the hang", func() bool {
		_, err := w.World()
		var hang *HangError
		return errors.As(err, &hang) && hang.Path == c.path(".version")
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			var hang *HangError
			if _, err := w.Locate(short, 101); !errors.As(err, &hang) {
				t.Errorf("Locate: got %v", err)
			}
			if _, err := w.Absent(short, 101); !errors.As(err, &hang) {
				t.Errorf("Absent: got %v", err)
			}
		})
	}
	wg.Wait()
	w.reads.mu.Lock()
	if n := len(w.reads.running); n != 1 {
		t.Errorf("%d reads are stuck, want 1", n)
	}
	w.reads.mu.Unlock()
	release(string(version))
	eventually(t, "the World is good again", func() bool { _, err := w.World(); return err == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.reads.drain(time.Minute)
}

// A reading that its caller gave up says nothing about the tree.
func TestWatcherGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := c.watcher(func(cfg *WatchConfig) { cfg.ReadTimeout = time.Minute })
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	version, err := os.ReadFile(c.path(".version"))
	c.check(err)
	release := c.hang(".version")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	var hang *HangError
	if err := w.Refresh(ctx); !errors.As(err, &hang) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if p := w.failure.Load(); p != nil {
		t.Errorf("recorded as a failure: %v", *p)
	}
	release(string(version))
	if err := w.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	w.reads.drain(time.Minute)
}

// A VM that moves between the reading of .vmlist and that of its config is looked for once more in the same reading.
func TestWatcherMovingConf(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for id := 100; id <= 100+parallel; id++ {
		c.put("pve1", id, "name: a\n")
	}
	last := 100 + parallel
	var releases []func(string)
	for id := 100; id < last; id++ {
		releases = append(releases, c.hang(confName(TypeQEMU, "pve1", id)))
	}
	w := c.watcher(func(cfg *WatchConfig) { cfg.ReadTimeout = time.Minute })
	done := make(chan error, 1)
	go func() { done <- w.Refresh(t.Context()) }()
	eventually(t, "the configs before the last are being read", func() bool { return readCount(w) == 3+parallel })
	c.move(last, "pve2")
	for _, release := range releases {
		release("name: a\n")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wd := world(t, w)
	if wd.VMs[last] == nil || wd.VMs[last].Node != "pve2" || len(wd.Unread) != 0 {
		t.Errorf("got %+v, %v", wd.VMs[last], wd.Unread)
	}
}
