package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// withLock runs fn holding the lock file of a VM, as every change of a config
// does on a real node: flock on lock-<vmid>.conf, so that an agent that takes
// it keeps PVE out, and the other way round.
func (c *Cluster) withLock(ctx context.Context, n *Node, vmid int, wait time.Duration, shared bool, t *Task, fn func() error) error {
	name := fmt.Sprintf("lock-%d.conf", vmid)
	f, err := os.OpenFile(filepath.Join(n.Lock, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return dief("can't open lock file '/var/lock/qemu-server/%s' - %s", name, err)
	}
	defer func() { _ = f.Close() }() // closing drops the lock
	if err := flock(ctx, f, wait, shared, t); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return dief("can't lock file '/var/lock/qemu-server/%s' - got timeout", name)
		}
		return err
	}
	return fn()
}

// HoldLock takes the lock file of a VM, as a long task of PVE or an agent
// does, until release is called (again: does nothing).
func (c *Cluster) HoldLock(vmid int) (release func(), err error) {
	node, ok := c.tree.owner(vmid)
	if !ok {
		return nil, errNoVM(vmid)
	}
	held, done, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	failed := make(chan error, 1)
	c.wg.Go(func() {
		defer close(over)
		failed <- c.withLock(c.ctx, c.byName[node], vmid, c.cfg.LockTimeout, false, nil, func() error {
			close(held)
			select {
			case <-done:
			case <-c.ctx.Done():
			}
			return nil
		})
	})
	select {
	case <-held:
		return sync.OnceFunc(func() {
			close(done)
			<-over
		}), nil
	case err := <-failed:
		return nil, err
	}
}

// flock polls for the lock: a blocking flock could not be given up.
func flock(ctx context.Context, f *os.File, wait time.Duration, shared bool, t *Task) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("flock %s: %w", f.Name(), err)
		}
		if first && t != nil {
			t.logf("trying to acquire lock...")
		}
		if time.Now().After(deadline) {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("flock %s: %w", f.Name(), ctx.Err())
		}
	}
}

// lockConf is withLock as most tasks use it: exclusive, 10 s.
func (c *Cluster) lockConf(ctx context.Context, n *Node, vmid int, t *Task, fn func() error) error {
	return c.withLock(ctx, n, vmid, c.cfg.LockTimeout, false, t, fn)
}
