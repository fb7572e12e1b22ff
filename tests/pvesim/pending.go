package pvesim

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// applyPending makes the pending values current: of a VM that does not run.
// The caller holds the VM's lock. errs may be nil.
func (c *Cluster) applyPending(ctx context.Context, n *Node, vmid int, conf *vmconf.Conf, errs map[string]string) error {
	if len(conf.Pending) == 0 {
		return nil
	}
	for key, force := range conf.PendingDelete() {
		if vmconf.IsDrive(key) {
			c.detach(n, vmid, conf, key, force)
		}
		delete(conf.Main, key)
	}
	newCloudInit := false
	for _, key := range sortedKeys(conf.Pending) {
		if key == "delete" {
			continue
		}
		v := conf.Pending[key]
		if vmconf.IsDrive(key) {
			if old, ok := conf.Main[key]; ok && vmconf.ParseDrive(key, old).File != vmconf.ParseDrive(key, v).File {
				c.detach(n, vmid, conf, key, false)
			}
			newCloudInit = newCloudInit || vmconf.ParseDrive(key, v).CloudInit()
		}
		conf.Main[key] = v
	}
	conf.Pending = vmconf.Section{}
	if err := c.saveConf(n, vmid, conf); err != nil {
		return err
	}
	if newCloudInit {
		if err := c.generateCloudInit(ctx, n, vmid, conf, nil); err != nil && errs != nil {
			errs["ide2"] = "unable to apply pending change ide2 : " + err.Error() + "\n"
		}
	}
	return nil
}

// detach takes a drive out of the config; its volume becomes an unused one, or
// is freed.
func (c *Cluster) detach(n *Node, vmid int, conf *vmconf.Conf, key string, force bool) {
	v, ok := conf.Main[key]
	if !ok {
		return
	}
	d := vmconf.ParseDrive(key, v)
	delete(conf.Main, key)
	vol, err := parseVolume(d.File)
	if err != nil || vol.kind != "images" {
		return
	}
	if force && !d.CDROM() && vol.owner == vmid && !usedElsewhere(conf, d.File) {
		if err := c.pool.free(n.Name, d.File); err != nil {
			c.log.Warn("free detached volume", "volume", d.File, "err", err)
		}
		return
	}
	c.registerUnused(n, vmid, conf, d)
}

// registerUnused notes the volume of a drive that is no more: the VM's own
// under "unused", a cloud-init drive's is freed.
func (c *Cluster) registerUnused(n *Node, vmid int, conf *vmconf.Conf, d vmconf.Drive) {
	vol, err := parseVolume(d.File)
	switch {
	case err != nil || vol.kind != "images":
		return
	case d.CloudInit():
		if err := c.pool.free(n.Name, d.File); err != nil {
			c.log.Warn("free cloud-init volume", "volume", d.File, "err", err)
		}
		delete(conf.Special, "cloudinit")
		return
	case d.CDROM() || vol.owner != vmid:
		return
	}
	for key, v := range conf.Main {
		if isUnused(key) && v == d.File {
			return
		}
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("unused%d", i)
		if _, taken := conf.Main[name]; !taken {
			conf.Main[name] = d.File
			return
		}
	}
}

// dropUsed removes "unused" entries of volumes that are in use again.
func dropUsed(s, pending vmconf.Section) {
	used := map[string]bool{}
	for _, d := range append(s.Drives(), pending.Drives()...) {
		used[d.File] = true
	}
	for key, v := range s {
		if strings.HasPrefix(key, "unused") && used[v] {
			delete(s, key)
		}
	}
}

// fastPlug are the options without any effect on a running VM: always applied.
var fastPlug = regexp.MustCompile(`^(description|hookscript|lock|migrate_downtime|migrate_speed|name|onboot|protection|` +
	`shares|startup|tags|vmstatestorage|cicustom|cipassword|citype|ciuser|ciupgrade|nameserver|searchdomain|sshkeys|ipconfig\d+)$`)

// hotplug applies to a running VM what can be applied; the rest stays pending
// until it is stopped. What goes wrong with an option is in errs.
func (c *Cluster) hotplug(ctx context.Context, m *machine, conf *vmconf.Conf, ch *change, errs map[string]string) error {
	for _, key := range sortedKeys(conf.Pending) {
		if fastPlug.MatchString(key) {
			settle(conf, key)
		}
	}
	if err := c.saveConf(m.node, m.vmid, conf); err != nil {
		return err
	}
	chosen := map[string]bool{}
	for _, key := range slices.Concat(sortedKeys(ch.set), ch.del, ch.also) {
		chosen[key] = true
	}
	p := &plugging{c: c, m: m, conf: conf, features: conf.Main.Hotplug()}
	note := func(key string, err error) {
		if !errors.Is(err, errSkip) {
			errs[key] = "hotplug problem - " + err.Error() + "\n"
		}
	}
	for _, key := range sortedKeys(conf.PendingDelete()) {
		if !chosen[key] {
			continue
		}
		if err := p.unplug(ctx, key, conf.PendingDelete()[key]); err != nil {
			note(key, err)
			continue
		}
		recordCloudInit(conf, key, "")
		delete(conf.Main, key)
		gone := conf.PendingDelete()
		delete(gone, key)
		conf.SetPendingDelete(gone)
	}
	for _, key := range p.inOrder(chosen) {
		if err := p.plug(ctx, key, conf.Pending[key]); err != nil {
			note(key, err)
			continue
		}
		settle(conf, key)
	}
	if err := c.saveConf(m.node, m.vmid, conf); err != nil {
		return err
	}
	if p.features["cloudinit"] && len(conf.Special["cloudinit"]) > 0 {
		return c.generateCloudInit(ctx, m.node, m.vmid, conf, nil)
	}
	return nil
}

// settle makes a pending value current.
func settle(conf *vmconf.Conf, key string) {
	recordCloudInit(conf, key, conf.Pending[key])
	conf.Main[key] = conf.Pending[key]
	delete(conf.Pending, key)
}

// recordCloudInit keeps the value that the cloud-init drive still has.
func recordCloudInit(conf *vmconf.Conf, key, v string) {
	if !strings.HasPrefix(key, "ci") && !strings.HasPrefix(key, "ipconfig") && key != "name" &&
		key != "nameserver" && key != "searchdomain" && key != "sshkeys" {
		return
	}
	if cloudInitDrive(conf.Main) == nil {
		return
	}
	section := conf.Special["cloudinit"]
	if section == nil {
		section = vmconf.Section{}
		conf.Special["cloudinit"] = section
	}
	old, had := conf.Main[key]
	if _, recorded := section[key]; v == "" && had && !recorded {
		section[key] = old
		return
	}
	if !had {
		added := append(vmconf.SplitList(section["added"]), key)
		section["added"] = strings.Join(added, ",")
	} else if _, recorded := section[key]; !recorded && old != v {
		section[key] = old
	}
}
