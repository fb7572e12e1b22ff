package pvesim

import (
	"regexp"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// optionPrivileges says which privilege on the VM an option wants. Those of
// drives and of specialDevice depend on the value.
var optionPrivileges = []struct {
	options *regexp.Regexp
	privs   []string // one of them is enough
}{
	{regexp.MustCompile(`^(cores|cpu|runningcpu|cpulimit|cpuunits|numa\d*|smp|sockets|vcpus)$`), []string{"VM.Config.CPU"}},
	{regexp.MustCompile(`^(memory|balloon|shares|allow-ksm)$`), []string{"VM.Config.Memory"}},
	{
		regexp.MustCompile(`^(acpi|hotplug|kvm|machine|runningmachine|scsihw|smbios1|tablet|vga|watchdog|audio0|rng0)$`),
		[]string{"VM.Config.HWType"},
	},
	{regexp.MustCompile(`^(agent|autostart|bios|description|keyboard|localtime|migrate_downtime|migrate_speed|name|onboot|` +
		`ostype|protection|reboot|startdate|startup|tdf|template)$`), []string{"VM.Config.Options"}},
	{regexp.MustCompile(`^freeze$`), []string{"VM.PowerMgmt"}},
	{regexp.MustCompile(`^(boot|bootdisk|vmstatestorage)$`), []string{"VM.Config.Disk"}},
	{regexp.MustCompile(`^net\d+$`), []string{"VM.Config.Network"}},
	{
		regexp.MustCompile(`^(cicustom|cipassword|citype|ciuser|ciupgrade|nameserver|searchdomain|sshkeys|ipconfig\d+)$`),
		[]string{"VM.Config.Cloudinit", "VM.Config.Network"},
	},
}

// specialDevice are options whose privilege depends on their value.
var specialDevice = regexp.MustCompile(`^(serial|usb|hostpci|virtiofs)\d+$`)

// mayChange wants the privilege that each option needs.
func (c *Cluster) mayChange(rq *request, ch *change) error {
	if rq.who.root() {
		return nil
	}
	for _, key := range append(append([]string{}, ch.del...), sortedKeys(ch.set)...) {
		if err := rq.mayChangeOne(key); err != nil {
			return err
		}
	}
	if rq.vmid() != 0 && rq.route.method == post && strings.HasSuffix(rq.route.tmpl, "/qemu") {
		return c.mayCreate(rq, ch)
	}
	return nil
}

func (rq *request) mayChangeOne(key string) error {
	if vmconf.IsDrive(key) || key == "tags" || isUnused(key) || specialDevice.MatchString(key) {
		return nil // looked at with its value
	}
	for _, o := range optionPrivileges {
		if !o.options.MatchString(key) {
			continue
		}
		if err := rq.vmCheckAny(o.privs...); err != nil {
			return err
		}
		if key == "startup" { // it is about the whole node
			return rq.who.check("/", "Sys.Modify")
		}
		return nil
	}
	// args, lock, hookscript, affinity, vmgenid, ...
	return dief("only root can set '%s' config", key)
}

// mayCreate looks at the values that a new VM's special devices have.
func (c *Cluster) mayCreate(rq *request, ch *change) error {
	for _, key := range sortedKeys(ch.set) {
		if specialDevice.MatchString(key) {
			if err := mayDevice(rq.who, rq.vmCheck, key, ch.set[key], "set"); err != nil {
				return err
			}
		}
	}
	if _, ok := ch.set["tags"]; ok {
		return rq.vmCheck("VM.Config.Options")
	}
	return nil
}

// mayDevice wants what a device needs; act is for the message.
func (u *updating) mayDevice(key, v, act string) error {
	check := func(privs ...string) error { return u.who.check("/vms/"+itoa(u.vmid), privs...) }
	if err := mayDevice(u.who, check, key, v, act); err != nil {
		return err
	}
	if old, ok := u.conf.Main[key]; ok {
		return mayDevice(u.who, check, key, old, act)
	}
	return nil
}

func mayDevice(who principal, check func(...string) error, key, v, act string) error {
	if who.root() {
		return nil
	}
	p := vmconf.Props(v, "host")
	switch kind := strings.TrimRight(key, "0123456789"); {
	case kind == "serial" && v == "socket", kind == "usb" && strings.EqualFold(p["host"], "spice"):
		return check("VM.Config.HWType")
	case kind == "serial":
		return dief("only root can %s '%s' config for real devices", act, key)
	case kind == "virtiofs":
		if err := check("VM.Config.Disk"); err != nil {
			return err
		}
		return who.check("/mapping/dir/"+vmconf.Props(v, "dirid")["dirid"], "Mapping.Use")
	case p["mapping"] != "":
		if err := check("VM.Config.HWType"); err != nil {
			return err
		}
		return who.check("/mapping/"+strings.TrimPrefix(kind, "host")+"/"+p["mapping"], "Mapping.Use")
	case kind == "hostpci":
		return dief("only root can set '%s' config for non-mapped devices", key)
	}
	return dief("only root can set '%s' config for real devices", key)
}

// mayDrive wants what a drive needs, the old one and the new one.
func (u *updating) mayDrive(d vmconf.Drive) error {
	path := "/vms/" + itoa(u.vmid)
	switch {
	case d.CloudInit():
		return u.who.check(path, "VM.Config.Cloudinit", "VM.Config.CDROM")
	case d.CDROM():
		return u.who.check(path, "VM.Config.CDROM")
	}
	return u.who.check(path, "VM.Config.Disk")
}
