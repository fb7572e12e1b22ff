package pmxcfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The times between two looks at a lock that somebody holds. A flock that waits in the kernel could not be given up.
const (
	lockPauseFirst = 2 * time.Millisecond
	lockPauseLast  = 200 * time.Millisecond
)

// LockConf takes the lock under which PVE changes a VM's config, flock on <dir>/lock-<vmid>.conf, waiting until ctx ends;
// dir is /var/lock/qemu-server. An error that is EWOULDBLOCK says that somebody else has it.
func LockConf(ctx context.Context, dir string, vmid int) (unlock func() error, err error) {
	path := filepath.Join(dir, fmt.Sprintf("lock-%d.conf", vmid))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil // closing releases it
}

func flock(ctx context.Context, f *os.File) error {
	for pause := lockPauseFirst; ; pause = min(2*pause, lockPauseLast) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (gave up: %w)", err, context.Cause(ctx))
		}
	}
}
