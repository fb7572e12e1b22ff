package pvesim

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// errSkip says that a change has to wait until the VM is stopped.
var errSkip = errors.New("skip")

// plugging applies changes to a running VM, as vmconfig_hotplug_pending of
// PVE::QemuServer does.
type plugging struct {
	c        *Cluster
	m        *machine
	conf     *vmconf.Conf
	features map[string]bool // of the option "hotplug"
}

// inOrder are the chosen pending options; the cloud-init drive is the last,
// because the others decide what is on it.
func (p *plugging) inOrder(chosen map[string]bool) []string {
	var first, last []string
	for _, key := range sortedKeys(p.conf.Pending) {
		switch {
		case key == "delete" || !chosen[key]:
		case vmconf.IsDrive(key) && vmconf.ParseDrive(key, p.conf.Pending[key]).CloudInit():
			last = append(last, key)
		default:
			first = append(first, key)
		}
	}
	return append(first, last...)
}

// notPluggable are buses that have to wait for the next start.
var notPluggable = regexp.MustCompile(`^(efidisk|ide|sata|tpmstate)\d+$`)

// unplug removes an option.
func (p *plugging) unplug(ctx context.Context, key string, force bool) error {
	now := p.conf.Main
	switch {
	case fastPlug.MatchString(key), key == "cpuunits", key == "cpulimit":
		return nil
	case key == "hotplug":
		return skipIf(strings.Contains(now[key], "cpu") || strings.Contains(now[key], "memory"))
	case key == "tablet":
		return skipIf(!p.features["usb"])
	case key == "vcpus" && p.features["cpu"]:
		return p.c.plugCPUs(ctx, p.m, now, "")
	case key == "balloon" && now[key] != "0":
		return p.balloon(ctx, now.MemoryMiB())
	case key == "memory" && p.features["memory"]:
		return p.plugMemory(ctx, "")
	case vmconf.IsNIC(key) && p.features["network"]:
		return p.device(func(proc kvm.Process) error { return kvm.UnplugNIC(ctx, proc, key) })
	case vmconf.IsDrive(key):
		return p.unplugDisk(ctx, key, force)
	}
	return errSkip
}

func (p *plugging) unplugDisk(ctx context.Context, key string, force bool) error {
	if !p.features["disk"] || notPluggable.MatchString(key) {
		return errSkip
	}
	if err := p.device(func(proc kvm.Process) error { return kvm.UnplugDisk(ctx, proc, key) }); err != nil {
		return err
	}
	p.c.detach(p.m.node, p.m.vmid, p.conf, key, force)
	return nil
}

func skipIf(skip bool) error {
	if skip {
		return errSkip
	}
	return nil
}

// device changes a device of a real machine. Stand-ins have none.
func (p *plugging) device(do func(kvm.Process) error) error {
	if !p.m.real {
		return nil
	}
	return do(p.m.proc)
}

// plug applies an option's new value.
func (p *plugging) plug(ctx context.Context, key, v string) error {
	now := p.conf.Main
	switch {
	case fastPlug.MatchString(key), key == "cpuunits", key == "cpulimit":
		return nil
	case key == "hotplug":
		both := v + now[key]
		return skipIf(strings.Contains(both, "memory") || strings.Contains(both, "cpu"))
	case key == "tablet":
		return skipIf(!p.features["usb"])
	case key == "vcpus" && p.features["cpu"]:
		return p.c.plugCPUs(ctx, p.m, now, v)
	case key == "memory" && p.features["memory"]:
		return p.plugMemory(ctx, v)
	case key == "balloon":
		return p.plugBalloon(ctx, v)
	case key == "agent":
		return skipIf(now[key] == "" || !sameProps(now[key], v, "enabled", "fstrim_cloned_disks"))
	case vmconf.IsNIC(key):
		return p.plugNIC(ctx, vmconf.ParseNIC(key, v))
	case vmconf.IsDrive(key):
		return p.plugDrive(ctx, vmconf.ParseDrive(key, v))
	}
	return errSkip
}

// sameProps compares property strings but for the keys that do not matter.
func sameProps(a, b, defaultKey string, but ...string) bool {
	x, y := vmconf.Props(a, defaultKey), vmconf.Props(b, defaultKey)
	for _, key := range slices.Concat(sortedKeys(x), sortedKeys(y)) {
		if x[key] != y[key] && !slices.Contains(but, key) {
			return false
		}
	}
	return true
}

// plugBalloon changes the balloon's target. PVE sends the command only when
// "shares" is 0; otherwise pvestatd would, in its own time.
func (p *plugging) plugBalloon(ctx context.Context, want string) error {
	old, had := p.conf.Main["balloon"]
	if (had && old == "0") != (want == "0") {
		return errSkip // the device comes and goes with a restart
	}
	if p.conf.Main["shares"] != "0" {
		return nil
	}
	mib := atoi(want)
	def(&mib, p.conf.Main.MemoryMiB())
	return p.balloon(ctx, mib)
}

func (p *plugging) balloon(ctx context.Context, mib int) error {
	_, err := p.m.proc.Execute(ctx, "balloon", map[string]any{"value": int64(mib) << 20})
	return err
}

// plugNIC changes a network device. Only where it is connected to can be
// changed without taking the device out.
func (p *plugging) plugNIC(ctx context.Context, nic vmconf.NIC) error {
	nic.Key = strings.TrimSpace(nic.Key)
	if text, ok := p.conf.Main[nic.Key]; ok {
		old := vmconf.ParseNIC(nic.Key, text)
		same := old.Model == nic.Model && strings.EqualFold(old.MAC, nic.MAC) && old.Opts["queues"] == nic.Opts["queues"] &&
			old.Opts["mtu"] == nic.Opts["mtu"] && (old.Opts["bridge"] != "") && (nic.Opts["bridge"] != "")
		if same {
			return p.bridgeThere(nic)
		}
		if !p.features["network"] {
			return errSkip
		}
		if err := p.device(func(proc kvm.Process) error { return kvm.UnplugNIC(ctx, proc, nic.Key) }); err != nil {
			return err
		}
	}
	if !p.features["network"] {
		return errSkip
	}
	if err := p.bridgeThere(nic); err != nil {
		return err
	}
	return p.device(func(proc kvm.Process) error {
		return kvm.PlugNIC(ctx, proc, kvm.NIC{Key: nic.Key, Model: nic.Model, MAC: nic.MAC})
	})
}

func (p *plugging) bridgeThere(nic vmconf.NIC) error {
	if b := nic.Opts["bridge"]; b != "" && !slices.Contains(p.m.node.bridges, b) {
		return dief("bridge '%s' does not exist", b)
	}
	return nil
}

// fixedOpts are a drive's options that a running VM cannot change.
var fixedOpts = strings.Fields("aio discard iothread queues product cache ssd vendor ro")

// plugDrive changes a drive, or plugs one.
func (p *plugging) plugDrive(ctx context.Context, d vmconf.Drive) error {
	if d.Key == "efidisk0" || d.Key == "tpmstate0" {
		return errSkip
	}
	text, had := p.conf.Main[d.Key]
	if !had {
		return p.plugDisk(ctx, d)
	}
	old := vmconf.ParseDrive(d.Key, text)
	switch {
	case old.CDROM() != d.CDROM():
		return errors.New("unable to change media type")
	case old.CDROM():
		if old.CloudInit() && d.File == "none" {
			p.c.registerUnused(p.m.node, p.m.vmid, p.conf, old)
		}
		return p.changeMedium(ctx, d)
	case old.File != d.File:
		if !p.features["disk"] {
			return errSkip
		}
		if err := p.device(func(proc kvm.Process) error { return kvm.UnplugDisk(ctx, proc, d.Key) }); err != nil {
			return err
		}
		p.c.detach(p.m.node, p.m.vmid, p.conf, d.Key, false)
		return p.plugDisk(ctx, d)
	}
	for _, opt := range fixedOpts {
		if old.Opts[opt] != d.Opts[opt] {
			return errSkip
		}
	}
	return nil // throttling, backup, replication: nothing that is simulated
}

func (p *plugging) plugDisk(ctx context.Context, d vmconf.Drive) error {
	if !p.features["disk"] || notPluggable.MatchString(d.Key) {
		return errSkip
	}
	disk, err := p.c.disk(p.m.node, d)
	if err != nil {
		return err
	}
	return p.device(func(proc kvm.Process) error { return kvm.PlugDisk(ctx, proc, disk) })
}

// changeMedium puts another CD into a drive. A cloud-init drive has been
// written anew before.
func (p *plugging) changeMedium(ctx context.Context, d vmconf.Drive) error {
	if d.CloudInit() {
		next := vmconf.New()
		next.Main = p.conf.Main.Clone()
		next.Main[d.Key] = d.String()
		if err := p.c.generateCloudInit(ctx, p.m.node, p.m.vmid, next, nil); err != nil {
			return err
		}
	}
	disk, err := p.c.disk(p.m.node, d)
	if err != nil {
		return err
	}
	return p.device(func(proc kvm.Process) error { return kvm.ChangeMedium(ctx, proc, disk) })
}
