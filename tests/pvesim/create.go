package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// createOnly are parameters of POST /nodes/{node}/qemu that are no options of
// the VM.
var createOnly = []string{"start", "storage", "pool", "unique", "force", "bwlimit", "live-restore", "ha-managed", "import-working-storage"}

// create is POST /nodes/{node}/qemu. Restoring an archive is not simulated.
func (c *Cluster) create(_ context.Context, rq *request) (any, error) {
	vmid, n := rq.number("vmid", 0), rq.node
	if vmid < 100 {
		return nil, paramError("vmid", "invalid format - value does not look like a valid VM ID\n")
	}
	if rq.has("archive") {
		return nil, dief("restoring archives is not simulated")
	}
	rq.vars["vmid"] = itoa(vmid)
	start := rq.flag("start")
	if err := c.mayAllocate(rq, start); err != nil {
		return nil, err
	}
	delete(rq.params, "vmid")
	for _, key := range createOnly {
		delete(rq.params, key)
	}
	ch, err := c.parseChange(rq)
	if err != nil && err.Error() != "no options specified" {
		return nil, err
	}
	if ch == nil {
		ch = &change{set: map[string]string{}}
	}
	if owner, ok := c.tree.ownerFor(n.Name, vmid); ok {
		return nil, dief("unable to create VM %d - VM %d already exists on node '%s'", vmid, vmid, owner)
	}
	if err := c.needQuorum(n); err != nil {
		return nil, err
	}
	// The number is taken before the task starts.
	if err := c.tree.writeConf(n.Name, vmid, []byte("lock: create\n")); err != nil {
		return nil, err
	}
	return c.fork(n.Name, "qmcreate", itoa(vmid), rq.who, c.createWork(rq, ch, start)), nil
}

// mayAllocate says whether a VM may be made, in its pool if one is named.
func (c *Cluster) mayAllocate(rq *request, start bool) error {
	rq.pool = rq.param("pool")
	if rq.pool != "" && !c.pools.exists(rq.pool) {
		return dief("pool '%s' does not exist", rq.pool)
	}
	if start {
		if err := rq.vmCheck("VM.PowerMgmt"); err != nil {
			return err
		}
	}
	if rq.vmCheck("VM.Allocate") != nil {
		return denied("")
	}
	return nil
}

func (c *Cluster) createWork(rq *request, ch *change, start bool) work {
	n, vmid := rq.node, rq.vmid()
	return work{slow: true, run: func(ctx context.Context, t *Task) error {
		err := c.lockConf(ctx, n, vmid, t, func() error { return c.createVM(ctx, rq, ch, t) })
		if err != nil && abandoned(ctx, err) {
			return err
		}
		if err != nil {
			return errors.Join(fmt.Errorf("unable to create VM %d - %w", vmid, err), c.tree.removeConf(n.Name, vmid))
		}
		if start {
			t.logf("Execute autostart")
			c.fork(n.Name, "qmstart", itoa(vmid), rq.who, c.startWork(n, vmid))
		}
		return nil
	}}
}

func (c *Cluster) createVM(ctx context.Context, rq *request, ch *change, t *Task) error {
	n, vmid := rq.node, rq.vmid()
	conf := vmconf.New()
	for key, v := range ch.set {
		if !vmconf.IsDrive(key) {
			conf.Main[key] = v
		}
	}
	made, err := c.makeAll(ctx, driveJob{n, vmid, conf, rq.who, t}, ch)
	if err == nil {
		err = c.slowPoint(ctx, t)
	}
	if err != nil && abandoned(ctx, err) {
		return err
	}
	if err == nil {
		c.completeVM(conf)
		err = c.saveConf(n, vmid, conf)
	}
	if err != nil {
		for _, volid := range made {
			_ = c.pool.free(n.Name, volid) // best effort, as in PVE
		}
		return err
	}
	if rq.pool == "" {
		return nil
	}
	return c.pools.addVM(vmid, rq.pool)
}

// makeAll makes the drives of a new VM and says which volumes were made, also
// when it fails.
func (c *Cluster) makeAll(ctx context.Context, job driveJob, ch *change) (made []string, err error) {
	for _, key := range sortedKeys(ch.set) {
		if !vmconf.IsDrive(key) {
			continue
		}
		v, volid, err := c.makeDrive(ctx, job, vmconf.ParseDrive(key, ch.set[key]))
		if err != nil {
			return made, err
		}
		if volid != "" {
			made = append(made, volid)
		}
		job.conf.Main[key] = v
	}
	return made, nil
}

// completeVM adds what PVE makes up for a new VM.
func (c *Cluster) completeVM(conf *vmconf.Conf) {
	if conf.Main["boot"] == "" {
		conf.Main["boot"] = "order=" + strings.Join(defaultBoot(conf.Main), ";")
	}
	if conf.Main["smbios1"] == "" {
		conf.Main["smbios1"] = "uuid=" + newUUID()
	}
	if v := conf.Main["vmgenid"]; v == "" || v == "1" {
		conf.Main["vmgenid"] = newUUID()
	}
	if tags, ok := conf.Main["tags"]; ok {
		conf.Main["tags"] = cleanTags(tags)
	}
	if kind := conf.Main["machine"]; strings.HasPrefix(conf.Main["ostype"], "w") && !strings.Contains(kind, "-") {
		conf.Main["machine"] = c.newestMachine(map[bool]string{true: "q35", false: "i440fx"}[strings.HasPrefix(kind, "q35")])
	}
	conf.Main["meta"] = fmt.Sprintf("creation-qemu=%s,ctime=%d", map[int]string{7: "7.2.0", 8: "9.2.0", 9: "10.0.13"}[c.cfg.major()], time.Now().Unix())
}

// defaultBoot is PVE's order for a VM without one: the first disk, the first
// CD, the first NIC.
func defaultBoot(s vmconf.Section) []string {
	var disk, cd, nic string
	for _, bus := range []string{"ide", "scsi", "virtio", "sata"} {
		for i := range 31 {
			key := bus + itoa(i)
			v, ok := s[key]
			if !ok || !vmconf.IsDrive(key) {
				continue
			}
			if vmconf.ParseDrive(key, v).CDROM() {
				def(&cd, key)
			} else {
				def(&disk, key)
			}
		}
	}
	for i := range 32 {
		if key := "net" + itoa(i); s[key] != "" {
			def(&nic, key)
		}
	}
	return slices.DeleteFunc([]string{disk, cd, nic}, func(key string) bool { return key == "" })
}

// template is POST .../template.
func (c *Cluster) template(_ context.Context, rq *request) (any, error) {
	n, vmid, only := rq.node, rq.vmid(), rq.param("disk")
	check := func() (*vmconf.Conf, error) {
		conf, err := c.loadConf(n, vmid)
		if err != nil {
			return nil, err
		}
		if err := checkLock(conf); err != nil {
			return nil, err
		}
		switch {
		case len(conf.Snapshots) > 0:
			return nil, dief("unable to create template, because VM contains snapshots")
		case conf.Main.Bool("template", false) && only == "":
			return nil, dief("you can't convert a template to a template")
		case c.machines.on(n.Name, vmid) != nil:
			return nil, dief("you can't convert a VM to template if VM is running")
		}
		return conf, nil
	}
	if _, err := check(); err != nil {
		return nil, err
	}
	return c.fork(n.Name, "qmtemplate", itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error {
			conf, err := check()
			if err != nil {
				return err
			}
			return c.makeTemplate(n, vmid, conf, only)
		})
	}}), nil
}

func (c *Cluster) makeTemplate(n *Node, vmid int, conf *vmconf.Conf, only string) error {
	conf.Main["template"] = "1"
	for _, d := range conf.Main.Drives() {
		if d.CDROM() || (only != "" && d.Key != only) {
			continue
		}
		v, err := parseVolume(d.File)
		if err != nil || v.isBase {
			continue
		}
		old, err := c.pool.exists(n.Name, d.File)
		if err != nil {
			return err
		}
		if !c.pool.hasFeature("template", d.File, false) {
			continue
		}
		v.name = "base-" + strings.TrimPrefix(v.name, "vm-")
		if err := os.Rename(old, filepath.Join(filepath.Dir(old), filepath.Base(v.file()))); err != nil {
			return dief("rename '%s' failed - %s", old, err)
		}
		d.File = v.String()
		conf.Main[d.Key] = d.String()
	}
	return c.saveConf(n, vmid, conf)
}

// feature is GET .../feature.
func (c *Cluster) feature(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	section, snap := conf.Main, rq.param("snapname")
	if snap != "" {
		var ok bool
		if section, ok = conf.Snapshots[snap]; !ok {
			return nil, dief("snapshot '%s' does not exist", snap)
		}
	}
	has, shared := true, true
	for _, d := range section.Drives() {
		v, err := parseVolume(d.File)
		if err != nil {
			continue
		}
		if s, err := c.pool.get(v.storage); err == nil {
			shared = shared && s.Shared
		}
		has = has && (d.CDROM() || c.pool.hasFeature(rq.param("feature"), d.File, snap != ""))
	}
	nodes := []string{rq.node.Name}
	if shared {
		nodes = c.tree.nodes
	}
	return map[string]any{"hasFeature": bit(has), "nodes": nodes}, nil
}
