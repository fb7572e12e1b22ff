package pvesim

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// destroy is DELETE .../qemu/{vmid}.
func (c *Cluster) destroy(_ context.Context, rq *request) (any, error) {
	if err := rq.rootOnly("skiplock"); err != nil {
		return nil, err
	}
	n, vmid, purge := rq.node, rq.vmid(), rq.flag("purge")
	early := func() (*vmconf.Conf, error) { return c.mayDestroy(n, vmid, purge) }
	if _, err := early(); err != nil {
		return nil, err
	}
	unreferenced := rq.flag("destroy-unreferenced-disks")
	return c.fork(n.Name, "qmdestroy", itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error {
			conf, err := early()
			if err != nil {
				return err
			}
			return c.destroyVM(ctx, n, vmid, conf, purge, unreferenced, t)
		})
	}}), nil
}

func (c *Cluster) mayDestroy(n *Node, vmid int, purge bool) (*vmconf.Conf, error) {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return nil, err
	}
	if err := checkProtection(conf, "can't remove VM "+itoa(vmid)); err != nil {
		return nil, err
	}
	if !purge && c.haConfigured(vmid) {
		return nil, dief("unable to remove VM %d - used in HA resources and purge parameter not set.", vmid)
	}
	if c.machines.on(n.Name, vmid) != nil {
		return nil, dief("VM %d is running - destroy failed", vmid)
	}
	return conf, nil
}

// destroyVM removes the volumes and then the config. The caller holds the lock.
func (c *Cluster) destroyVM(ctx context.Context, n *Node, vmid int, conf *vmconf.Conf, purge, unreferenced bool, t *Task) error {
	if lock := conf.Main["lock"]; lock != "" && lock != "suspended" {
		return checkLock(conf)
	}
	volumes := ownVolumes(conf, vmid)
	if conf.Main.Bool("template", false) {
		for _, volid := range volumes {
			if v, err := parseVolume(volid); err == nil && c.pool.inUse(ctx, n.Name, v) {
				return dief("base volume '%s' is still in use by linked cloned", volid)
			}
		}
	}
	if unreferenced {
		volumes = append(volumes, c.strayVolumes(ctx, n, vmid)...)
		slices.Sort(volumes)
		volumes = slices.Compact(volumes)
	}
	for _, volid := range volumes {
		if err := c.pool.free(n.Name, volid); err != nil {
			t.warnf("Could not remove disk '%s', check manually: %s", volid, err)
		}
	}
	// The zombie keeps the number taken until all else is gone.
	if err := c.tree.writeConf(n.Name, vmid, []byte("lock: destroyed\n")); err != nil {
		return err
	}
	if purge {
		t.logf("purging VM %d from related configurations..", vmid)
		if c.haConfigured(vmid) {
			if err := c.haRemove(vmid); err != nil {
				return err
			}
			t.logf("NOTE: removed VM %d from HA resource configuration.", vmid)
		}
	}
	return errors.Join(c.pools.removeVM(vmid), c.tree.removeConf(n.Name, vmid))
}

// ownVolumes are the volumes that the config names and the VM owns, also in
// pending values and snapshots. The cloud-init drive is one of them.
func ownVolumes(conf *vmconf.Conf, vmid int) []string {
	out := map[string]bool{}
	add := func(volid string) {
		if v, err := parseVolume(volid); err == nil && v.kind == "images" && v.owner == vmid {
			out[volid] = true
		}
	}
	for _, s := range []vmconf.Section{conf.Main, conf.Pending} {
		for key, v := range s {
			if vmconf.IsDrive(key) || isUnused(key) || key == "vmstate" {
				add(vmconf.ParseDrive(key, v).File)
			}
		}
	}
	for _, s := range conf.Snapshots {
		add(s["vmstate"])
	}
	return slices.Sorted(maps.Keys(out))
}

func isUnused(key string) bool { return len(key) > 6 && key[:6] == "unused" }

// strayVolumes are all images of the number, on every enabled storage.
func (c *Cluster) strayVolumes(ctx context.Context, n *Node, vmid int) []string {
	var out []string
	for _, s := range c.pool.all() {
		vols, err := c.pool.volumes(ctx, n.Name, s.Name)
		if err != nil {
			continue // disabled or not on this node
		}
		for _, v := range vols {
			if v.vol.owner == vmid {
				out = append(out, v.vol.String())
			}
		}
	}
	return out
}

// resize is PUT .../resize: a task since PVE 8, done at once before.
func (c *Cluster) resize(ctx context.Context, rq *request) (any, error) {
	if err := rq.rootOnly("skiplock"); err != nil {
		return nil, err
	}
	n, vmid := rq.node, rq.vmid()
	run := func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error { return c.resizeDisk(ctx, rq) })
	}
	if c.cfg.major() < 8 {
		return nil, run(ctx, nil)
	}
	return c.fork(n.Name, "resize", itoa(vmid), rq.who, work{run: run}), nil
}

func (c *Cluster) resizeDisk(ctx context.Context, rq *request) error {
	n, vmid, key := rq.node, rq.vmid(), rq.param("disk")
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	if digest := rq.param("digest"); digest != "" && digest != conf.Digest {
		return dief("checksum mismatch (file change by other user?)")
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	v, ok := conf.Main[key]
	if !ok {
		return dief("disk '%s' does not exist", key)
	}
	d := vmconf.ParseDrive(key, v)
	if d.CDROM() {
		return dief("you can't resize a cdrom")
	}
	if err := rq.who.check("/storage/"+d.Storage(), "Datastore.AllocateSpace"); err != nil {
		return err
	}
	path, err := c.pool.exists(n.Name, d.File)
	if err != nil {
		return err
	}
	info, err := c.disks.Info(ctx, path)
	if err != nil {
		return dief("Could not determine current size of volume '%s'", d.File)
	}
	size, err := newSize(rq.param("size"), info.Virtual)
	if err != nil || size == info.Virtual {
		return err
	}
	if s, err := c.pool.get(d.Storage()); err == nil {
		size = s.roundSize(size)
	}
	if err := c.growImage(ctx, n, vmid, d, path, size, info.Virtual); err != nil {
		return err
	}
	d.Opts["size"] = vmconf.FormatSize(size)
	conf.Main[key] = d.String()
	return c.saveConf(n, vmid, conf)
}

// newSize reads "+5G" (more) or "20G" (in all).
func newSize(text string, now int64) (int64, error) {
	more := len(text) > 0 && text[0] == '+'
	if more {
		text = text[1:]
	}
	size, err := vmconf.ParseSize(text)
	if err != nil {
		return 0, paramError("size", "value does not match the regex pattern")
	}
	if more {
		size += now
	}
	if size < now {
		return 0, dief("shrinking disks is not supported")
	}
	return size, nil
}

// growImage grows the file, or has QEMU do it, which holds it open.
func (c *Cluster) growImage(ctx context.Context, n *Node, vmid int, d vmconf.Drive, path string, size, now int64) error {
	if err := c.pool.room(d.File, path, size-now); err != nil {
		return err
	}
	m := c.machines.on(n.Name, vmid)
	if m == nil {
		return c.disks.Resize(ctx, path, filepath.Ext(path)[1:], size)
	}
	return c.growRunning(ctx, m, d, path, size)
}
