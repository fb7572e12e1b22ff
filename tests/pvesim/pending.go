package pvesim

import (
	"context"
	"fmt"
	"regexp"
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
			c.detach(n, conf, key, force)
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
				c.detach(n, conf, key, false)
			}
			newCloudInit = newCloudInit || vmconf.ParseDrive(key, v).CloudInit()
		}
		conf.Main[key] = v
	}
	conf.Pending = vmconf.Section{}
	dropUsed(conf.Main)
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

// detach turns a drive into an unused volume, or frees it.
func (c *Cluster) detach(n *Node, conf *vmconf.Conf, key string, force bool) {
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
	if force || d.CloudInit() {
		if err := c.pool.free(n.Name, d.File); err != nil {
			c.log.Warn("free detached volume", "volume", d.File, "err", err)
		}
		return
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
func dropUsed(s vmconf.Section) {
	used := map[string]bool{}
	for _, d := range s.Drives() {
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
// until it is stopped.
func (c *Cluster) hotplug(ctx context.Context, m *machine, conf *vmconf.Conf, ch *change, errs map[string]string) error {
	chosen := map[string]bool{}
	for key := range ch.set {
		chosen[key] = true
	}
	for _, key := range ch.del {
		chosen[key] = true
	}
	gone := conf.PendingDelete()
	for _, key := range sortedKeys(gone) {
		if !fastPlug.MatchString(key) && !chosen[key] {
			continue
		}
		if done, err := c.plug(ctx, m, conf, key, "", gone[key]); err != nil {
			errs[key] = "hotplug problem - " + err.Error() + "\n"
		} else if done {
			delete(conf.Main, key)
			delete(gone, key)
		}
	}
	conf.SetPendingDelete(gone)
	for _, key := range sortedKeys(conf.Pending) {
		if key == "delete" || (!fastPlug.MatchString(key) && !chosen[key]) {
			continue
		}
		if done, err := c.plug(ctx, m, conf, key, conf.Pending[key], false); err != nil {
			errs[key] = "hotplug problem - " + err.Error() + "\n"
		} else if done {
			recordCloudInit(conf, key, conf.Pending[key])
			conf.Main[key] = conf.Pending[key]
			delete(conf.Pending, key)
		}
	}
	dropUsed(conf.Main)
	return c.saveConf(m.node, m.vmid, conf)
}

// plug applies one value ("" = removed) to a running VM. It says false when
// that has to wait for the next start.
func (c *Cluster) plug(ctx context.Context, m *machine, conf *vmconf.Conf, key, v string, force bool) (bool, error) {
	features := conf.Main.Hotplug()
	switch {
	case fastPlug.MatchString(key), key == "cpuunits", key == "cpulimit", key == "agent":
		return true, nil
	case key == "hotplug":
		risky := strings.Contains(v+conf.Main["hotplug"], "memory") || strings.Contains(v+conf.Main["hotplug"], "cpu")
		return !risky, nil
	case key == "tablet":
		return features["usb"], nil
	case key == "vcpus":
		if !features["cpu"] {
			return false, nil
		}
		return true, c.plugCPUs(ctx, m, conf.Main, v)
	case key == "memory":
		return features["memory"] && v != "", nil
	case key == "balloon":
		return c.plugBalloon(ctx, m, conf.Main, v)
	case vmconf.IsNIC(key):
		return features["network"], nil
	case vmconf.IsDrive(key):
		return c.plugDrive(m.node, conf, key, v, force), nil
	}
	return false, nil
}

func (c *Cluster) plugDrive(n *Node, conf *vmconf.Conf, key, v string, force bool) bool {
	old, had := conf.Main[key]
	if v != "" && had && vmconf.ParseDrive(key, old).File == vmconf.ParseDrive(key, v).File {
		return true
	}
	pluggable := strings.HasPrefix(key, "scsi") || strings.HasPrefix(key, "virtio")
	if !pluggable || !conf.Main.Hotplug()["disk"] {
		return had && v != "" && vmconf.ParseDrive(key, v).CDROM()
	}
	if had {
		c.detach(n, conf, key, force)
	}
	return true
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
	if !had {
		added := append(vmconf.SplitList(section["added"]), key)
		section["added"] = strings.Join(added, ",")
	} else if _, recorded := section[key]; !recorded && old != v {
		section[key] = old
	}
}
