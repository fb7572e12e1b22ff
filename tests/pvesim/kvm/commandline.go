package kvm

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// eventFD is where QEMU finds its end of the private monitor. Proxmox VE lets
// QEMU dial qmeventd's socket instead; a passed descriptor needs no file.
const eventFD = 3

// withDefaults fills in what a VM's config may leave out.
func (s Spec) withDefaults() Spec {
	s.Sockets, s.Cores = max(s.Sockets, 1), max(s.Cores, 1)
	if s.VCPUs == 0 {
		s.VCPUs = s.Sockets * s.Cores
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 512
	}
	if !slices.Contains([]string{"kvm64", "qemu32", "kvm32", "max"}, s.CPUType) {
		s.CPUType = "qemu64"
	}
	return s
}

// path of a file in RunDir, "pid", "qmp", "qga", "serial0" or "vnc".
func (s Spec) path(kind string) string {
	return filepath.Join(s.RunDir, strconv.Itoa(s.VMID)+"."+kind)
}

func (s Spec) hotplug(feature string) bool { return slices.Contains(s.Hotplug, feature) }

// words collects a command line.
type words []string

func (w *words) add(more ...string) { *w = append(*w, more...) }

// device adds "-device" with its options; empty ones are left out.
func (w *words) device(options ...string) {
	options = slices.DeleteFunc(options, func(o string) bool { return o == "" })
	w.add("-device", strings.Join(options, ","))
}

// socket adds a chardev on a server socket in RunDir.
func (w *words) socket(id, path string, more ...string) {
	options := append([]string{"socket", "id=" + id, "path=" + quote(path), "server=on", "wait=off"}, more...)
	w.add("-chardev", strings.Join(options, ","))
}

// quote doubles the commas of an option's value, as QEMU wants it.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// commandLine returns the arguments of qemu-system-x86_64 for a machine, in
// Proxmox VE's order. It differs where stock QEMU, TCG or a test ask for it:
// no -id (a patch of Proxmox VE's), no -daemonize (machines are to die with
// the program that simulates the node), no boot menu (it waits 3 s), no
// display and USB adapters, user networks instead of tap devices.
func commandLine(s Spec, consoleLog string) ([]string, error) {
	var w words
	w.add("-name", quote(s.Name)+",debug-threads=on", "-no-shutdown")
	w.socket("qmp", s.path("qmp"))
	w.add("-mon", "chardev=qmp,mode=control")
	w.add("-chardev", fmt.Sprintf("socket,id=qmp-event,fd=%d", eventFD), "-mon", "chardev=qmp-event,mode=control")
	w.add("-pidfile", s.path("pid"), "-smbios", "type=1,uuid="+s.UUID)
	w.cpus(s)
	w.add("-nodefaults", "-boot", "strict=on,reboot-timeout=1000", "-vnc", "unix:"+quote(s.path("vnc"))+",password=on")
	w.add("-cpu", s.CPUType)
	if err := w.memory(s); err != nil {
		return nil, err
	}
	w.add("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1")
	w.device("pci-bridge", "id=pci.1", "chassis_nr=1", "bus=pci.0", "addr=0x1e")
	w.device("pci-bridge", "id=pci.2", "chassis_nr=2", "bus=pci.0", "addr=0x1f")
	w.channels(s, consoleLog)
	if err := w.disks(s.Disks); err != nil {
		return nil, err
	}
	if err := w.nics(s); err != nil {
		return nil, err
	}
	w.add("-machine", "accel=tcg,type=pc")
	if s.LoadVM != "" {
		w.add("-loadvm", s.LoadVM)
	}
	w.add(withHostname(s.Args, s.Hostname)...)
	return w, nil
}

// cpus lays CPUs out as Proxmox VE does: where they can be plugged, all but
// the first are devices named cpu2, cpu3, ...
func (w *words) cpus(s Spec) {
	boot := s.VCPUs
	if s.hotplug("cpu") {
		boot = 1
	}
	w.add("-smp", fmt.Sprintf("%d,sockets=%d,cores=%d,maxcpus=%d", boot, s.Sockets, s.Cores, s.Sockets*s.Cores))
	for i := boot; i < s.VCPUs; i++ {
		w.device(s.CPUType+"-x86_64-cpu", fmt.Sprintf("id=cpu%d", i+1),
			fmt.Sprintf("socket-id=%d", i/s.Cores), fmt.Sprintf("core-id=%d", i%s.Cores), "thread-id=0")
	}
}

// hotplugBaseMiB is the part of a machine's memory that is not in DIMMs where
// memory can be plugged.
const hotplugBaseMiB = 1024

// memory lays memory out as Proxmox VE does. maxmem is less than on a real
// node, whose CPUs have more address bits than qemu64.
func (w *words) memory(s Spec) error {
	base := s.MemoryMiB
	if s.hotplug("memory") {
		if !s.NUMA {
			return fmt.Errorf("machine %d: NUMA needs to be enabled for memory hotplug", s.VMID)
		}
		if s.MemoryMiB < hotplugBaseMiB {
			return fmt.Errorf("machine %d: minimum memory must be %dMB", s.VMID, hotplugBaseMiB)
		}
		base = hotplugBaseMiB
		w.add("-m", fmt.Sprintf("size=%d,slots=255,maxmem=524288M", base))
	} else {
		w.add("-m", strconv.Itoa(base))
	}
	for i := range s.Sockets {
		if !s.NUMA {
			break
		}
		w.add("-object", fmt.Sprintf("memory-backend-ram,id=ram-node%d,size=%dM", i, base/s.Sockets))
		w.add("-numa", fmt.Sprintf("node,nodeid=%d,cpus=%s,memdev=ram-node%d", i, cpuRange(i*s.Cores, s.Cores), i))
	}
	return w.dimms(s, base)
}

// dimms adds what goes beyond base: 32 DIMMs of 512 MiB, then of 1 GiB, ...,
// over the NUMA nodes by turns.
func (w *words) dimms(s Spec, base int) error {
	size := 512
	for i := 0; base < s.MemoryMiB; i++ {
		if i > 0 && i%32 == 0 {
			size *= 2
		}
		w.add("-object", fmt.Sprintf("memory-backend-ram,id=mem-dimm%d,size=%dM", i, size))
		w.device("pc-dimm", fmt.Sprintf("id=dimm%d", i), fmt.Sprintf("memdev=mem-dimm%d", i), fmt.Sprintf("node=%d", i%32%s.Sockets))
		if base += size; base > s.MemoryMiB {
			return fmt.Errorf("machine %d: memory size (%d) must be aligned to %d for hotplugging", s.VMID, s.MemoryMiB, size)
		}
	}
	return nil
}

func cpuRange(first, n int) string {
	if n == 1 {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, first+n-1)
}

// channels adds what a guest talks through: serial port, guest agent, balloon.
func (w *words) channels(s Spec, consoleLog string) {
	if s.Serial {
		var logfile []string
		if consoleLog != "" {
			logfile = []string{"logfile=" + quote(consoleLog)}
		}
		w.socket("serial0", s.path("serial0"), logfile...)
		w.device("isa-serial", "chardev=serial0")
	}
	if s.Agent {
		w.socket("qga0", s.path("qga"))
		w.device("virtio-serial", "id=qga0", "bus=pci.0", "addr=0x8")
		w.device("virtserialport", "chardev=qga0", "name=org.qemu.guest_agent.0")
	}
	if s.BalloonMiB >= 0 {
		w.device("virtio-balloon-pci", "id=balloon0", "bus=pci.0", "addr=0x3", "free-page-reporting=on")
	}
}

// disks adds drives with Proxmox VE's names: block node drive-<key>, throttle
// group throttle-drive-<key>, device <key>. It boots from them in their order.
func (w *words) disks(disks []Disk) error {
	controllers := make(map[string]bool)
	for i, d := range disks {
		bus, device, err := place(d)
		if err != nil {
			return err
		}
		if c := controller(bus); c != "" && !controllers[c] {
			controllers[c] = true
			w.device(c)
		}
		drive := ""
		if d.Path != "" {
			drive = "drive=drive-" + d.Key
			w.add("-object", throttleGroup(d.Key), "-blockdev", blockdev(d))
		}
		w.device(device, drive, "id="+d.Key+serial(d), fmt.Sprintf("bootindex=%d", 100+i))
	}
	return nil
}

// place says on which bus a drive is and what device it is, without drive and id.
func place(d Disk) (bus, device string, err error) {
	bus = strings.TrimRight(d.Key, "0123456789")
	n, err := strconv.Atoi(d.Key[len(bus):])
	if err != nil {
		return "", "", fmt.Errorf("disk %q: no such bus and number", d.Key)
	}
	kind := "hd"
	if d.CDROM {
		kind = "cd"
	}
	switch {
	case bus == "ide" && n <= 3:
		return bus, fmt.Sprintf("ide-%s,bus=ide.%d,unit=%d", kind, n/2, n%2), nil
	case bus == "sata" && n <= 5:
		return bus, fmt.Sprintf("ide-%s,bus=ahci0.%d", kind, n), nil
	case bus == "scsi" && n <= 30:
		return bus, fmt.Sprintf("scsi-%s,bus=scsihw0.0,channel=0,scsi-id=0,lun=%d,device_id=drive-%s", kind, n, d.Key), nil
	case bus == "virtio" && n <= 15 && !d.CDROM:
		return bus, "virtio-blk-pci", nil
	}
	return "", "", fmt.Errorf("disk %q: no such bus and number", d.Key)
}

// controller is the device that a bus hangs on; "" if the machine has it.
func controller(bus string) string {
	switch bus {
	case "scsi":
		return "virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5"
	case "sata":
		return "ahci,id=ahci0,multifunction=on,bus=pci.0,addr=0x7"
	}
	return ""
}

// serial is the option of a disk's device that says what it is called, as the
// guest will read it.
func serial(d Disk) string {
	if d.Serial == "" || d.CDROM {
		return ""
	}
	return ",serial=" + quote(d.Serial)
}

func throttleGroup(key string) string {
	return fmt.Sprintf(`{"id":"throttle-drive-%s","limits":{},"qom-type":"throttle-group"}`, key)
}

// blockdev is the block graph of a drive: throttle over format over file. The
// cache is as unsafe as it is fast: nothing here outlives a crash of the host.
func blockdev(d Disk) string {
	type node map[string]any
	graph := node{
		"driver": "throttle", "node-name": "drive-" + d.Key, "throttle-group": "throttle-drive-" + d.Key,
		"read-only": d.CDROM,
		"file": node{
			"driver": d.Format, "read-only": d.CDROM, "cache": node{"no-flush": true},
			"file": node{"driver": "file", "filename": d.Path, "read-only": d.CDROM, "cache": node{"no-flush": true}},
		},
	}
	text, err := json.Marshal(graph)
	if err != nil {
		panic("kvm: blockdev of " + d.Key + ": " + err.Error()) // of strings and booleans only
	}
	return string(text)
}

// nics adds network interfaces on user networks that nothing leaves.
func (w *words) nics(s Spec) error {
	for i, n := range s.NICs {
		model := n.Model
		if model == "virtio" || model == "" {
			model = "virtio-net-pci"
		}
		address := ""
		if i < 6 {
			address = fmt.Sprintf("bus=pci.0,addr=0x%x", 0x12+i)
		}
		network, err := userNetwork(s, i)
		if err != nil {
			return err
		}
		w.add("-netdev", "user,id="+n.Key+",restrict=on,ipv6=off,"+network)
		w.device(model, "mac="+n.MAC, "netdev="+n.Key, address, "id="+n.Key)
	}
	return nil
}

// withHostname tells a guest that boots with -append what its name is.
func withHostname(args []string, name string) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, "-append"); name != "" && i >= 0 && i+1 < len(args) {
		args[i+1] += " hostname=" + name
	}
	return args
}
