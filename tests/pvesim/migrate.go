package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// MigrateOptions say how a VM is migrated. The zero value does it as an admin
// would who clicks through: online if the VM runs, local disks included.
type MigrateOptions struct {
	// Gap is how long .vmlist does not have the VM while its config goes from
	// one node to the other; the file is at the old node for half of it. Real
	// gaps are short, and never none.
	Gap time.Duration
}

// migration is a VM on its way.
type migration struct {
	vmid       int
	from, to   *Node
	online     bool
	localDisks bool
	gap        time.Duration

	conf    *vmconf.Conf
	machine *machine // nil: the VM does not run
	next    *machine
	volumes map[string]string // local ones: file here, file there
	made    []string          // of those there
	ended   bool              // machine is
}

// Migrate migrates a VM, and returns when it is done. A running one gets a new
// process on the target before the old one ends; its guest boots again,
// because nothing is carried over. As in PVE the config has "lock: migrate"
// meanwhile if the VM runs.
func (c *Cluster) Migrate(vmid int, node string, o MigrateOptions) error {
	owner, ok := c.tree.owner(vmid)
	if !ok {
		return errNoVM(vmid)
	}
	if err := c.known(node); err != nil {
		return err
	}
	if owner == node {
		return fmt.Errorf("pvesim: migrate VM %d: it is on %s", vmid, node)
	}
	m := &migration{
		vmid: vmid, from: c.byName[owner], to: c.byName[node], gap: o.Gap, localDisks: true,
		online: c.machines.on(owner, vmid) != nil,
	}
	upid := c.fork(owner, "qmigrate", itoa(vmid), rootPrincipal, c.migrateWork(m))
	task, _ := c.workers.find(upid)
	<-task.Done()
	if exit := task.Exit(); exit != "OK" {
		return fmt.Errorf("pvesim: migrate VM %d to %s: %s: %s", vmid, node, exit, strings.Join(task.tail(2), "; "))
	}
	return nil
}

// SetMigrateGap is MigrateOptions.Gap for the migrations that the API is asked
// for and that HA makes.
func (c *Cluster) SetMigrateGap(gap time.Duration) { c.gap.Store(int64(gap)) }

// migrateVM is POST .../migrate.
func (c *Cluster) migrateVM(_ context.Context, rq *request) (any, error) {
	n, vmid := rq.node, rq.vmid()
	target := rq.param("target")
	if target == n.Name {
		return nil, paramError("target", "target is local node.")
	}
	if err := c.needQuorum(n); err != nil {
		return nil, err
	}
	to := c.byName[target]
	if to == nil {
		return nil, dief("no such cluster node '%s'", target)
	}
	if err := rq.rootOnly("force", "migration_type", "migration_network"); err != nil {
		return nil, err
	}
	m := &migration{
		vmid: vmid, from: n, to: to, online: rq.flag("online"), localDisks: rq.flag("with-local-disks"), gap: time.Duration(c.gap.Load()),
	}
	if err := c.mayMigrate(m); err != nil {
		return nil, err
	}
	if c.haManaged(vmid) {
		return c.fork(n.Name, "hamigrate", itoa(vmid), rq.who, work{run: func(_ context.Context, t *Task) error {
			t.logf("Requesting HA migration for VM %d to node %s", vmid, target)
			c.wg.Go(func() { c.haMigrate(m) })
			return nil
		}}), nil
	}
	return c.fork(n.Name, "qmigrate", itoa(vmid), rq.who, c.migrateWork(m)), nil
}

// haMigrate is the local resource manager's part.
func (c *Cluster) haMigrate(m *migration) {
	if c.pause(c.ctx, c.cfg.HADelay); c.ctx.Err() != nil {
		return
	}
	m.online, m.localDisks = c.machines.on(m.from.Name, m.vmid) != nil, true // as PVE::HA::Resources::PVEVM asks for it
	c.fork(m.from.Name, "qmigrate", itoa(m.vmid), rootPrincipal, c.migrateWork(m))
}

// mayMigrate is what PVE checks early, and again in the task.
func (c *Cluster) mayMigrate(m *migration) error {
	conf, err := c.loadConf(m.from, m.vmid)
	if err != nil {
		return err
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	m.conf, m.machine = conf, c.machines.on(m.from.Name, m.vmid)
	if m.machine != nil && !m.online {
		return dief("can't migrate running VM without --online")
	}
	for _, d := range conf.Main.Drives() {
		if d.Storage() == "" {
			continue
		}
		for _, n := range []*Node{m.from, m.to} {
			if _, err := c.pool.enabled(d.Storage(), n.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) migrateWork(m *migration) work {
	return work{slow: true, run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, m.from, m.vmid, t, func() error {
			err := c.runMigration(ctx, m, t)
			if err == nil || abandoned(ctx, err) {
				if err == nil {
					t.logf("migration finished successfully (duration 00:00:01)")
				}
				return err
			}
			t.logf("ERROR: migration aborted (duration 00:00:01): %s", strings.TrimSpace(err.Error()))
			return dief("migration aborted")
		})
	}}
}

// runMigration does it. The caller holds the VM's lock on the source.
func (c *Cluster) runMigration(ctx context.Context, m *migration, t *Task) error {
	t.logf("starting migration of VM %d to node '%s' (%s)", m.vmid, m.to.Name, m.to.IP)
	if err := c.reach(ctx, m.from.Name, m.to.Name); err != nil {
		return dief("Can't connect to destination address using public key")
	}
	if err := c.mayMigrate(m); err != nil {
		return err
	}
	if devices := localDevices(m.conf.Main); len(devices) > 0 {
		return dief("can't migrate VM which uses local devices: %s", strings.Join(devices, ", "))
	}
	if err := c.findLocal(m); err != nil {
		return err
	}
	if m.machine == nil {
		return c.migrateOffline(ctx, m, t)
	}
	return c.migrateOnline(ctx, m, t)
}

// localDevices are the options that PVE's check_local_resources objects to.
func localDevices(conf vmconf.Section) []string {
	var out []string
	for _, key := range sortedKeys(conf) {
		kind := strings.TrimRight(key, "0123456789")
		switch {
		case kind == key && key != "ivshmem", kind == "serial" && conf[key] == "socket", kind == "usb" && strings.HasPrefix(conf[key], "spice"):
		case key == "ivshmem", kind == "usb", kind == "hostpci", kind == "serial", kind == "parallel":
			out = append(out, key)
		}
	}
	return out
}

// boundDrives complains of drives that cannot be carried over at all.
func (c *Cluster) boundDrives(m *migration) error {
	for _, d := range m.conf.Main.Drives() {
		if d.File == "cdrom" {
			return dief("Problem found while scanning volumes - can't migrate VM - check log")
		}
		if d.Storage() == "" || !d.CDROM() || strings.Contains(d.File, "cloudinit") {
			continue
		}
		if s, err := c.pool.get(d.Storage()); err == nil && !s.Shared { // local cdrom image
			return dief("Problem found while scanning volumes - can't migrate VM - check log")
		}
	}
	if m.machine == nil {
		return nil
	}
	for _, snap := range m.conf.Snapshots {
		for _, d := range snap.Drives() {
			if s, err := c.pool.get(d.Storage()); err == nil && !s.Shared && !d.CDROM() {
				return dief("Problem found while scanning volumes - can't migrate VM - check log")
			}
		}
	}
	return nil
}

// findLocal finds the volumes that have to be carried over.
func (c *Cluster) findLocal(m *migration) error {
	if err := c.boundDrives(m); err != nil {
		return err
	}
	m.volumes = map[string]string{}
	for _, volid := range ownVolumes(m.conf, m.vmid) {
		v, err := parseVolume(volid)
		if err != nil {
			return err
		}
		s, err := c.pool.get(v.storage)
		if err != nil {
			return err
		}
		if s.Shared {
			continue
		}
		if v.base != "" {
			return dief("Problem found while scanning volumes - can't migrate '%s' as it's a clone of '%s'", volid, path.Base(v.base))
		}
		if m.machine != nil && !m.localDisks && !strings.Contains(v.name, "cloudinit") {
			return dief("Problem found while scanning volumes - can't migrate VM - check log")
		}
		here, err := c.pool.path(m.from.Name, volid)
		if err != nil {
			return err
		}
		if m.volumes[here], err = c.pool.path(m.to.Name, volid); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) migrateOffline(ctx context.Context, m *migration, t *Task) error {
	err := c.slowPoint(ctx, t)
	if err == nil {
		err = c.stillThere(m)
	}
	if err != nil {
		return err
	}
	if err := m.copyVolumes(t); err != nil {
		return errors.Join(err, m.removeVolumes(true))
	}
	if err := c.handOver(ctx, m); err != nil {
		return errors.Join(err, m.removeVolumes(true))
	}
	return m.removeVolumes(false)
}

// migrateOnline starts the VM on the target, hands it over and ends it here.
func (c *Cluster) migrateOnline(ctx context.Context, m *migration, t *Task) error {
	m.conf.Main["lock"] = "migrate"
	if err := c.saveConf(m.from, m.vmid, m.conf); err != nil {
		return err
	}
	delete(m.conf.Main, "lock")
	err := c.slowPoint(ctx, t)
	if err == nil {
		err = c.stillThere(m)
	}
	if err == nil {
		err = m.copyVolumes(t)
	}
	if err == nil && m.machine.real {
		err = m.endEarly(ctx)
	}
	if err == nil {
		t.logf("starting VM %d on remote node '%s'", m.vmid, m.to.Name)
		m.next, err = c.launch(ctx, m.to, m.vmid, m.conf.Main)
	}
	if err == nil {
		err = c.stillThere(m)
	}
	if err == nil {
		err = c.handOver(ctx, m)
	}
	if err != nil {
		return c.backOut(ctx, m, err)
	}
	if err := m.machine.proc.Quit(ctx); err != nil && !errors.Is(err, kvm.ErrGone) {
		t.warnf("stopping vm failed - %s", err)
	}
	return errors.Join(c.saveConf(m.to, m.vmid, m.conf), m.removeVolumes(false))
}

// endEarly ends the process on the source before that on the target starts: here both would open the same file, of which
// real QEMU lets only one process write. With PVE the one on the target waits for what the other one sends it.
func (m *migration) endEarly(ctx context.Context) error {
	if err := m.machine.proc.Quit(ctx); err != nil && !errors.Is(err, kvm.ErrGone) {
		return err
	}
	m.ended = true
	return nil
}

// stillThere fails once the target has died: the VM goes on where it is.
func (c *Cluster) stillThere(m *migration) error {
	if m.to.alive().Err() != nil || !c.ring.linked(m.from.Name, m.to.Name) {
		return dief("online migrate failure - unable to reach the target node '%s'", m.to.Name)
	}
	return nil
}

// backOut undoes what an online migration did so far; a node without power
// does nothing any more.
func (c *Cluster) backOut(ctx context.Context, m *migration, err error) error {
	if abandoned(ctx, err) {
		return err
	}
	if m.next != nil {
		err = errors.Join(err, killMachine(m.next))
	}
	if m.ended {
		_, again := c.launch(ctx, m.from, m.vmid, m.conf.Main)
		err = errors.Join(err, again)
	}
	return errors.Join(err, m.removeVolumes(true), c.saveConf(m.from, m.vmid, m.conf))
}

// handOver moves the config.
func (c *Cluster) handOver(ctx context.Context, m *migration) error {
	if !c.tree.isWritable(m.from.Name) {
		return dief("Failed to move config to node '%s' - rename failed: Permission denied", m.to.Name)
	}
	return c.tree.moveConf(m.vmid, m.from.Name, m.to.Name, func() { c.pause(ctx, m.gap/2) })
}

// copyVolumes makes the volumes on the target. Both directories are in one
// file system here, so a link is a copy that costs nothing; the source goes at
// the end.
func (m *migration) copyVolumes(t *Task) error {
	for _, here := range sortedKeys(m.volumes) {
		there := m.volumes[here]
		t.logf("copying local disk image %s", filepath.Base(here))
		if err := os.MkdirAll(filepath.Dir(there), 0o755); err != nil {
			return fmt.Errorf("copy %s: %w", here, err)
		}
		if err := os.Link(here, there); err != nil {
			return fmt.Errorf("storage migration of %s failed - %w", filepath.Base(here), err)
		}
		m.made = append(m.made, there)
	}
	return nil
}

// removeVolumes removes the volumes on the source, or on the target.
func (m *migration) removeVolumes(there bool) error {
	paths := m.made
	if !there {
		paths = sortedKeys(m.volumes)
	}
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		_ = os.Remove(filepath.Dir(path)) // fails unless it is empty
	}
	return errors.Join(errs...)
}

// tail is the end of the log.
func (t *Task) tail(n int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.log[max(len(t.log)-n, 0):]
}
