package pvesim

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// rollback is POST .../snapshot/{snapname}/rollback.
func (c *Cluster) rollback(_ context.Context, rq *request) (any, error) {
	if rq.flag("start") {
		if err := rq.who.check(rq.vmPath(), "VM.PowerMgmt"); err != nil {
			return nil, err
		}
	}
	n, vmid, name := rq.node, rq.vmid(), rq.vars["snapname"]
	return c.fork(n.Name, "qmrollback", itoa(vmid), rq.who, work{slow: true, run: func(ctx context.Context, t *Task) error {
		if err := c.rollbackVM(ctx, n, vmid, name, t); err != nil {
			return err
		}
		if rq.flag("start") && c.machines.on(n.Name, vmid) == nil {
			c.fork(n.Name, "qmstart", itoa(vmid), rq.who, c.startWork(n, vmid))
		}
		return nil
	}}), nil
}

func (c *Cluster) rollbackVM(ctx context.Context, n *Node, vmid int, name string, t *Task) error {
	err := c.lockConf(ctx, n, vmid, t, func() error { return c.prepareRollback(ctx, n, vmid, name, t) })
	if err != nil {
		return err
	}
	if err := c.slowPoint(ctx, t); err != nil {
		return err
	}
	withState := false
	err = c.editConf(ctx, n, vmid, t, func(conf *vmconf.Conf) error {
		snap := conf.Snapshots[name]
		withState = snap["vmstate"] != ""
		if err := c.revertDisks(ctx, n, snap, name); err != nil {
			return err
		}
		applySnapshot(conf, snap, name)
		return nil
	})
	if err != nil || !withState {
		return err
	}
	return c.lockConf(ctx, n, vmid, t, func() error { return c.startFrom(ctx, n, vmid, name, t) })
}

func (c *Cluster) prepareRollback(ctx context.Context, n *Node, vmid int, name string, t *Task) error {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	if conf.Main.Bool("template", false) {
		return dief("you can't rollback if vm is a template")
	}
	snap, ok := conf.Snapshots[name]
	if !ok {
		return dief("snapshot '%s' does not exist", name)
	}
	if snap["snapstate"] != "" {
		return dief("unable to rollback to incomplete snapshot (snapstate = %s)", snap["snapstate"])
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	if err := c.stopVM(ctx, n, vmid, stopRequest{timeout: 5, force: true}, t); err != nil {
		return err
	}
	if conf, err = c.loadConf(n, vmid); err != nil {
		return err
	}
	conf.Main["lock"] = "rollback"
	return c.saveConf(n, vmid, conf)
}

func (c *Cluster) revertDisks(ctx context.Context, n *Node, snap vmconf.Section, name string) error {
	for _, d := range snap.Drives() {
		if d.Storage() == "" || d.CDROM() {
			continue
		}
		path, err := c.pool.exists(n.Name, d.File)
		if err != nil {
			return err
		}
		if err := c.disks.Revert(ctx, path, name); err != nil {
			return dief("%s", err)
		}
	}
	return nil
}

// applySnapshot makes the snapshot's options current. Disks that only the
// present config has become unused; the generation id is a new one.
func applySnapshot(conf *vmconf.Conf, snap vmconf.Section, name string) {
	next := snap.Clone()
	for _, key := range []string{"snaptime", "snapstate", "vmstate", "runningmachine", "runningcpu", Description} {
		delete(next, key)
	}
	used := map[string]bool{}
	for _, d := range next.Drives() {
		used[d.File] = true
	}
	for key, v := range conf.Main {
		if isUnused(key) || key == Description {
			next[key] = v
		}
	}
	n := 0
	for _, d := range conf.Main.Drives() {
		if used[d.File] || d.CDROM() {
			continue
		}
		for next["unused"+itoa(n)] != "" {
			n++
		}
		next["unused"+itoa(n)] = d.File
	}
	if next["vmgenid"] != "" {
		next["vmgenid"] = newUUID()
	}
	next["parent"] = name
	conf.Main = next
	conf.Pending = vmconf.Section{}
}
