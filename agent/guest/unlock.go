package guest

import (
	"context"
	"errors"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// madeUnder reports whether a lock is one under which PVE makes a VM.
func madeUnder(lock string) bool { return lock == "clone" || lock == "create" }

// unlockClone drops the `lock: clone`, or `lock: create`, that the making of a VM has left which died, with its node or for want of quorum: PVE removes
// no VM that has it, and unlocks one only for root's own command line. It is done as that command does it, under PVE's
// lock of the VM. The caller knows that the VM is half made by us and that its clone has ended.
func (g *Guests) unlockClone(ctx context.Context, t target) (err error) {
	unlock, err := pmxcfs.LockConf(ctx, g.cfg.LockDir, t.id.VMID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	conf, err := g.confHere(ctx, t.id.VMID)
	if err != nil || conf == nil || !t.is(conf) || !madeUnder(conf.Lock()) {
		return err
	}
	g.log.WarnContext(ctx, "dropping the lock that a dead clone has left", "vm", t.id.VMID)
	return g.cfg.Tree.Replace(g.cfg.Node, t.id.VMID, conf.Delete("lock"))
}
