package guest

import (
	"context"
	"errors"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// unlockClone drops the `lock: clone` that a clone has left which died, with its node or for want of quorum: PVE removes
// no VM that has it, and unlocks one only for root's own command line. It is done as that command does it, under PVE's
// lock of the VM. The caller knows that the VM is half made by us and that its clone has ended.
func (g *Guests) unlockClone(ctx context.Context, t target) (err error) {
	unlock, err := pmxcfs.LockConf(ctx, g.cfg.LockDir, t.id.VMID)
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
