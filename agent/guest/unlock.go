package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
)

// unlockClone drops the `lock: clone` that a clone has left which died, with its node or for want of quorum: PVE removes
// no VM that has it, and unlocks one only for root's own command line. It is done as that command does it, under PVE's
// lock of the VM. The caller knows that the VM is half made by us and that its clone has ended.
func (g *Guests) unlockClone(ctx context.Context, t target) (err error) {
	unlock, err := g.lockConfig(ctx, t.id.VMID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	conf, err := g.confHere(ctx, t.id.VMID)
	if err != nil || conf == nil || !t.is(conf) || conf.Lock() != "clone" {
		return err
	}
	g.log.WarnContext(ctx, "dropping the lock that a dead clone has left", "vm", t.id.VMID)
	return g.cfg.Tree.Replace(g.cfg.Node, t.id.VMID, conf.Delete("lock"))
}

// lockConfig takes the lock under which PVE changes a VM's config (flock on lock-<vmid>.conf), waiting until ctx ends.
func (g *Guests) lockConfig(ctx context.Context, vmid int) (unlock func() error, err error) {
	path := filepath.Join(g.cfg.LockDir, fmt.Sprintf("lock-%d.conf", vmid))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	held := func(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) }
	err = ops.Retry(ctx, held, func(context.Context) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil // closing releases it
}
