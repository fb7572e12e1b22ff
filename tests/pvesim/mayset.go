package pvesim

import (
	"regexp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// optionPrivileges says which privilege on the VM an option wants.
var optionPrivileges = []struct {
	options *regexp.Regexp
	privs   []string // one of them is enough
}{
	{regexp.MustCompile(`^(cores|cpu|cpulimit|cpuunits|numa\d*|smp|sockets|vcpus)$`), []string{"VM.Config.CPU"}},
	{regexp.MustCompile(`^(memory|balloon|shares|allow-ksm)$`), []string{"VM.Config.Memory"}},
	{regexp.MustCompile(`^(acpi|hotplug|kvm|machine|scsihw|smbios1|tablet|vga|watchdog|audio0|rng0|serial\d+|usb\d+)$`), []string{"VM.Config.HWType"}},
	{regexp.MustCompile(`^(agent|autostart|bios|description|keyboard|localtime|migrate_downtime|migrate_speed|name|onboot|` +
		`ostype|protection|reboot|startdate|startup|tdf|template|tags|vmgenid)$`), []string{"VM.Config.Options"}},
	{regexp.MustCompile(`^freeze$`), []string{"VM.PowerMgmt"}},
	{regexp.MustCompile(`^(boot|bootdisk|vmstatestorage|unused\d+)$`), []string{"VM.Config.Disk"}},
	{regexp.MustCompile(`^net\d+$`), []string{"VM.Config.Network"}},
	{
		regexp.MustCompile(`^(cicustom|cipassword|citype|ciuser|ciupgrade|nameserver|searchdomain|sshkeys|ipconfig\d+)$`),
		[]string{"VM.Config.Cloudinit", "VM.Config.Network"},
	},
}

// mayChange wants the privilege that each option needs.
func (c *Cluster) mayChange(rq *request, keys []string) error {
	if rq.who.root() {
		return nil
	}
	for _, key := range keys {
		if err := rq.mayChangeOne(key); err != nil {
			return err
		}
	}
	return nil
}

func (rq *request) mayChangeOne(key string) error {
	if vmconf.IsDrive(key) || key == "cdrom" {
		return rq.mayChangeDrive(key)
	}
	for _, o := range optionPrivileges {
		if o.options.MatchString(key) {
			return rq.who.checkAny(rq.vmPath(), o.privs...)
		}
	}
	// args, lock, hookscript, hostpci, affinity, ...
	return dief("only root can set '%s' config", key)
}

func (rq *request) mayChangeDrive(key string) error {
	d := vmconf.ParseDrive(key, rq.param(key))
	switch {
	case d.CloudInit():
		return rq.who.check(rq.vmPath(), "VM.Config.Cloudinit", "VM.Config.CDROM")
	case d.CDROM():
		return rq.who.check(rq.vmPath(), "VM.Config.CDROM")
	}
	return rq.who.check(rq.vmPath(), "VM.Config.Disk")
}
