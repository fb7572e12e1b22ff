package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

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
	if !rq.who.may(rq.vmPath(), "VM.Allocate") {
		return nil, denied("")
	}
	delete(rq.params, "vmid")
	start := rq.flag("start")
	for _, key := range []string{"start", "storage", "pool", "unique", "force", "bwlimit", "live-restore", "ha-managed"} {
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
	return c.fork(n.Name, "qmcreate", itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
		err := c.lockConf(ctx, n, vmid, t, func() error { return c.createVM(ctx, n, vmid, ch, t) })
		if err != nil && abandoned(ctx, err) {
			return err
		}
		if err != nil {
			return errors.Join(fmt.Errorf("unable to create VM %d - %w", vmid, err), c.tree.removeConf(n.Name, vmid))
		}
		if start {
			c.fork(n.Name, "qmstart", itoa(vmid), rq.who, c.startWork(n, vmid))
		}
		return nil
	}}), nil
}

func (c *Cluster) createVM(ctx context.Context, n *Node, vmid int, ch *change, t *Task) error {
	conf := vmconf.New()
	var made []string
	for _, key := range sortedKeys(ch.set) {
		v := ch.set[key]
		if vmconf.IsDrive(key) {
			var err error
			if v, err = c.makeDrive(ctx, n, vmid, vmconf.ParseDrive(key, v), t); err != nil {
				for _, volid := range made {
					_ = c.pool.free(n.Name, volid) // best effort, as in PVE
				}
				return err
			}
			if vol, err := parseVolume(vmconf.ParseDrive(key, v).File); err == nil && vol.owner == vmid {
				made = append(made, vol.String())
			}
		}
		conf.Main[key] = v
	}
	if conf.Main["smbios1"] == "" {
		conf.Main["smbios1"] = "uuid=" + newUUID()
	}
	if conf.Main["vmgenid"] == "" {
		conf.Main["vmgenid"] = newUUID()
	}
	if conf.Main["boot"] == "" {
		if d, ok := conf.Main.BootDisk(); ok {
			conf.Main["boot"] = "order=" + d.Key
		}
	}
	conf.Main["meta"] = fmt.Sprintf("creation-qemu=10.0.13,ctime=%d", time.Now().Unix())
	return c.saveConf(n, vmid, conf)
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
		v.name = "base-" + strings.TrimPrefix(v.name, "vm-")
		if err := os.Rename(old, filepath.Join(filepath.Dir(old), v.name)); err != nil {
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
	has, shared := true, true
	for _, d := range conf.Main.Drives() {
		v, err := parseVolume(d.File)
		if err != nil || d.CDROM() {
			continue
		}
		if s, err := c.pool.get(v.storage); err == nil {
			shared = shared && s.Shared
		}
		switch rq.param("feature") {
		case "clone":
			has = has && v.isBase
		case "snapshot":
			has = has && v.format == "qcow2" && !v.isBase
		}
	}
	nodes := []string{rq.node.Name}
	if shared {
		nodes = c.tree.nodes
	}
	return map[string]any{"hasFeature": bit(has), "nodes": nodes}, nil
}
