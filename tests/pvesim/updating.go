package pvesim

import (
	"context"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// updating is a change on its way into the pending section.
type updating struct {
	driveJob

	c     *Cluster
	ch    *change
	order []string // of booting, as it will be
}

func bootOrder(s vmconf.Section) []string {
	return vmconf.SplitList(vmconf.Props(s["boot"], "legacy")["order"])
}

// setOrder changes the boot order along with a device of it.
func (u *updating) setOrder(order []string) {
	u.order = order
	u.conf.Pending["boot"] = "order=" + strings.Join(order, ";")
	u.ch.also = append(u.ch.also, "boot")
}

// revert drops pending values. A volume made for one becomes an unused one.
func (u *updating) revert() {
	gone := u.conf.PendingDelete()
	for key := range u.ch.revert {
		if v, ok := u.conf.Pending[key]; ok && vmconf.IsDrive(key) {
			u.c.registerUnused(u.node, u.vmid, u.conf, vmconf.ParseDrive(key, v))
		}
		delete(u.conf.Pending, key)
		delete(gone, key)
	}
	u.conf.SetPendingDelete(gone)
	dropUsed(u.conf.Main, u.conf.Pending)
}

// remove notes that an option is to go.
func (u *updating) remove(key string) error {
	conf := u.conf
	pending, isPending := conf.Pending[key]
	v, ok := conf.Main[key]
	if !ok {
		v, ok = pending, isPending
	}
	if !ok {
		if u.t != nil {
			u.t.warnf("cannot delete '%s' - not set in current configuration!", key)
		}
		return nil
	}
	delete(conf.Pending, key)
	if i := slices.Index(u.order, key); i >= 0 {
		u.setOrder(slices.Delete(slices.Clone(u.order), i, i+1))
	}
	switch {
	case isUnused(key):
		if err := u.freeUnused(key, v); err != nil {
			return err
		}
		return u.c.saveConf(u.node, u.vmid, conf)
	case vmconf.IsDrive(key):
		if err := checkProtection(conf, "can't remove drive '"+key+"'"); err != nil {
			return err
		}
		if err := u.mayDrive(vmconf.ParseDrive(key, v)); err != nil {
			return err
		}
		if isPending {
			u.c.registerUnused(u.node, u.vmid, conf, vmconf.ParseDrive(key, pending))
		}
	case key == "tags":
		delete(conf.Main, key)
		return u.c.saveConf(u.node, u.vmid, conf)
	case specialDevice.MatchString(key):
		if err := u.mayDevice(key, v, "delete"); err != nil {
			return err
		}
	}
	gone := conf.PendingDelete()
	gone[key] = u.ch.force
	conf.SetPendingDelete(gone)
	return u.c.saveConf(u.node, u.vmid, conf)
}

// freeUnused removes an unused volume for good.
func (u *updating) freeUnused(key, v string) error {
	volid := vmconf.ParseDrive(key, v).File
	if err := checkProtection(u.conf, "can't remove unused disk '"+volid+"'"); err != nil {
		return err
	}
	if err := u.who.check("/vms/"+itoa(u.vmid), "VM.Config.Disk"); err != nil {
		return err
	}
	if vol, err := parseVolume(volid); err == nil && vol.owner == u.vmid {
		if err := u.who.check("/storage/"+vol.storage, "Datastore.AllocateSpace"); err != nil {
			return err
		}
		if usedElsewhere(u.conf, volid) {
			return dief("unable to delete '%s' - volume is still in use (snapshot?)", volid)
		}
		if err := u.c.pool.free(u.node.Name, volid); err != nil {
			return err
		}
	}
	delete(u.conf.Main, key)
	return nil
}

func usedElsewhere(conf *vmconf.Conf, volid string) bool {
	sections := []vmconf.Section{conf.Main}
	for _, s := range conf.Snapshots {
		sections = append(sections, s)
	}
	for _, s := range sections {
		for _, d := range s.Drives() {
			if d.File == volid && !d.CDROM() {
				return true
			}
		}
	}
	return false
}

// put notes an option's new value, after making the volume it asks for.
func (u *updating) put(ctx context.Context, key, v string) error {
	conf := u.conf
	if old, ok := conf.Pending[key]; ok && old == v {
		return nil
	}
	var err error
	switch {
	case vmconf.IsDrive(key):
		if v, err = u.putDrive(ctx, vmconf.ParseDrive(key, v)); err != nil {
			return err
		}
	case key == "cipassword":
		if !strings.HasPrefix(v, "$") {
			v = "$5$pvesim$" + randomHex(21)
		}
		conf.Main[key] = v // at once, unlike all others
		return u.c.saveConf(u.node, u.vmid, conf)
	case key == "tags":
		if err := u.who.check("/vms/"+itoa(u.vmid), "VM.Config.Options"); err != nil {
			return err
		}
		v = cleanTags(v)
	case key == "boot":
		if err := checkBoot(conf, u.ch, v); err != nil {
			return err
		}
	case specialDevice.MatchString(key):
		if err := u.mayDevice(key, v, "modify"); err != nil {
			return err
		}
	}
	gone := conf.PendingDelete()
	if key == Description && v == "" {
		gone[key] = false
	} else {
		conf.Pending[key] = v
		delete(gone, key)
	}
	conf.SetPendingDelete(gone)
	return u.c.saveConf(u.node, u.vmid, conf)
}

func (u *updating) putDrive(ctx context.Context, d vmconf.Drive) (string, error) {
	if old, ok := u.conf.Main[d.Key]; ok {
		if err := u.mayDrive(vmconf.ParseDrive(d.Key, old)); err != nil {
			return "", err
		}
		if err := keepsTPMVersion(vmconf.ParseDrive(d.Key, old), d); err != nil {
			return "", err
		}
	}
	if err := u.mayDrive(d); err != nil {
		return "", err
	}
	if old, ok := u.conf.Pending[d.Key]; ok {
		u.c.registerUnused(u.node, u.vmid, u.conf, vmconf.ParseDrive(d.Key, old))
	}
	v, _, err := u.c.makeDrive(ctx, u.driveJob, d)
	if err != nil {
		return "", err
	}
	// A new CD can be booted from.
	if d.CDROM() && len(u.order) > 0 && !slices.Contains(u.order, d.Key) {
		u.setOrder(append(slices.Clone(u.order), d.Key))
	}
	return v, nil
}

func keepsTPMVersion(old, next vmconf.Drive) error {
	if old.Key != "tpmstate0" || old.File != next.File {
		return nil
	}
	version := func(d vmconf.Drive) string {
		v := d.Opts["version"]
		def(&v, "v1.2")
		return v
	}
	if version(old) != version(next) {
		return dief("cannot change TPM state version after creation")
	}
	return nil
}
