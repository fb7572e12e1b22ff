package pmxcfs

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// absentNow calls Absent and returns how long it took, too.
func absentNow(t *testing.T, w *Watcher, id int) (bool, time.Duration, error) {
	t.Helper()
	start := time.Now()
	absent, err := w.Absent(t.Context(), id)
	return absent, time.Since(start), err
}

func TestAbsent(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	c.put("pve2", 101, "name: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		check := func(id int, want bool, wait time.Duration) {
			t.Helper()
			absent, took, err := absentNow(t, w, id)
			if err != nil || absent != want || took != wait {
				t.Errorf("%d: absent is %v after %v, %v; want %v after %v", id, absent, took, err, want, wait)
			}
		}
		check(102, true, time.Second) // nothing was read before: two readings, 1 s apart
		run(t, w)
		check(100, false, 0)
		check(101, false, 0)
		pass(2500 * time.Millisecond)
		check(102, true, 0) // the watcher's own polls count
		c.remove(100)
		check(100, true, time.Second)
		check(100, true, 0)
		c.put("pve2", 100, "name: a\n")
		check(100, false, 0)
		c.remove(100)
		poll()
		c.put("pve3", 100, "name: a\n")
		poll()
		c.remove(100)
		check(100, true, time.Second) // it was back in between: the time starts again
	})
}

// A VM in the middle of a migration is never absent, though reads of .vmlist miss it.
func TestAbsentMigration(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		c.remove(100)
		go func() {
			time.Sleep(900 * time.Millisecond)
			c.put("pve2", 100, "name: a\n")
		}()
		if absent, _, err := absentNow(t, w, 100); absent || err != nil {
			t.Errorf("moving: absent is %v, %v", absent, err)
		}
	})
}

// A file in any node's directory, listed or not, and of a container too, means that it exists.
func TestAbsentFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.write(confName(TypeQEMU, "pve3", 100), "name: a\n")
	c.write(confName(TypeLXC, "pve2", 101), "hostname: b\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		pass(3 * time.Second)
		for _, id := range []int{100, 101} {
			if absent, _, err := absentNow(t, w, id); absent || err != nil {
				t.Errorf("%d: absent is %v, %v", id, absent, err)
			}
		}
	})
}

func TestAbsentDoubt(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		spoil func(c *cluster)
		want  error
	}{
		"no quorum":       {func(c *cluster) { c.quorate = false; c.sync() }, ErrNoQuorum},
		"no node's files": {func(c *cluster) { c.check(os.RemoveAll(c.path("nodes"))) }, os.ErrNotExist},
		"empty nodes": {func(c *cluster) {
			c.check(os.RemoveAll(c.path("nodes")))
			c.check(os.Mkdir(c.path("nodes"), 0o755))
		}, ErrNotMounted},
		"garbage": {func(c *cluster) { c.counter++; c.sync(); c.write(".vmlist", "{") }, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			synctest.Test(t, func(t *testing.T) {
				w := c.watcher()
				run(t, w)
				pass(3 * time.Second)
				tt.spoil(c)
				absent, _, err := absentNow(t, w, 100)
				if absent || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("absent is %v, %v; want an error", absent, err)
				}
			})
		})
	}
}

// Readings without quorum do not count, also if quorum is back when Absent is asked.
func TestAbsentQuorumGap(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		pass(3 * time.Second)
		c.quorate = false
		c.sync()
		poll()
		c.quorate = true
		c.sync()
		absent, took, err := absentNow(t, w, 100)
		if !absent || err != nil || took != time.Second {
			t.Errorf("absent is %v after %v, %v; want two readings with quorum, 1 s apart", absent, took, err)
		}
	})
}

// Quorum that is lost while Absent looks around counts as well.
func TestAbsentQuorumLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := c.watcher(func(cfg *WatchConfig) { cfg.ReadTimeout = time.Minute })
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.gaps.since = time.Now().Add(-time.Minute)
	quorate, err := os.ReadFile(c.path(".members"))
	c.check(err)
	c.hang(".members")
	done := make(chan error, 1)
	before := readCount(w)
	go func() {
		absent, err := w.Absent(t.Context(), 100)
		if absent {
			t.Error("absent, without quorum")
		}
		done <- err
	}()
	eventually(t, "the first reading of .members", func() bool { return readCount(w) == before+2 })
	hung := c.path(".hung")
	c.check(os.Link(c.path(".members"), hung))
	c.quorate = false
	c.sync() // for the second one
	c.check(os.WriteFile(hung, quorate, 0o600))
	if err := <-done; !errors.Is(err, ErrNoQuorum) {
		t.Errorf("got %v, want ErrNoQuorum", err)
	}
}

func TestAbsentContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "name: a\n")
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		c.remove(100)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if absent, err := w.Absent(ctx, 100); absent || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no time for a second reading: absent is %v, %v", absent, err)
		}
	})
}
