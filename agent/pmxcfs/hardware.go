package pmxcfs

import (
	"slices"
	"strconv"
	"strings"
)

// defaultMemoryMiB is what a VM without `memory` has (QEMU VM config schema).
const defaultMemoryMiB = 512

// Name is the VM's name; "" if it has none, as while a clone is still being made.
func (s Section) Name() string { return s.value("name") }

// Template reports whether the VM is a template.
func (s Section) Template() bool { return s.boolean("template") }

// Protection reports whether PVE refuses to destroy it.
func (s Section) Protection() bool { return s.boolean("protection") }

// Lock is what PVE is doing to the VM: backup, clone, create, migrate, rollback, snapshot, ...; "" for nothing.
func (s Section) Lock() string { return s.value("lock") }

// SMBIOSUUID is the uuid of smbios1, in lower case; "" if there is none.
func (s Section) SMBIOSUUID() string {
	uuid, _ := Props(s.value("smbios1")).Get("uuid")
	return strings.ToLower(uuid)
}

// CPUs returns how many CPUs the VM can have (cores x sockets) and how many it starts with (vcpus).
func (s Section) CPUs() (maximum, vcpus int) {
	sockets := s.number("sockets", 1)
	if _, ok := s.Get("sockets"); !ok {
		sockets = s.number("smp", 1) // the name of sockets in very old configs
	}
	maximum = max(1, s.number("cores", 1)) * max(1, sockets)
	vcpus = s.number("vcpus", maximum)
	if vcpus < 1 {
		vcpus = maximum
	}
	return maximum, vcpus
}

// defaultHotplug is what the value 1 of `hotplug` stands for, and what a VM without it has.
const defaultHotplug = "network,disk,usb"

// Hotplugs reports whether `hotplug` has a feature: network, disk, cpu, memory, usb or cloudinit.
func (s Section) Hotplugs(feature string) bool {
	list, ok := s.Get("hotplug")
	if !ok || list == "1" {
		list = defaultHotplug
	}
	return slices.Contains(fields(list), feature)
}

// MemoryMiB is the VM's memory.
func (s Section) MemoryMiB() int64 {
	n, err := strconv.ParseInt(Props(s.value("memory")).either("current"), 10, 64)
	if err != nil || n < 0 {
		return defaultMemoryMiB
	}
	return n
}

// Tags lists the VM's tags in the order of the config.
func (s Section) Tags() []string { return fields(s.value("tags")) }

// AgentEnabled reports whether the VM has a channel for the QEMU guest agent.
func (s Section) AgentEnabled() bool {
	return boolean(Props(s.value("agent")).either("enabled"))
}

// NIC is one netN of a VM.
type NIC struct {
	Key     string // net0
	Model   string // virtio, e1000, ...
	MAC     string // as the config has it, upper case in what PVE writes
	Bridge  string // "" for user-mode networking
	VLAN    int    // 0 for none
	Options Props  // the whole value
}

// NICs lists the network devices in the order of their number.
func (s Section) NICs() []NIC {
	var nics []NIC
	for k, v := range s.lines() {
		if n, ok := indexed(k, "net"); ok && n < maxNICs {
			nics = append(nics, parseNIC(k, v))
		}
	}
	return ordered(nics, func(n NIC) string { return n.Key })
}

const maxNICs = 32

func parseNIC(key, value string) NIC {
	nic := NIC{Key: key, Options: Props(value)}
	for k, v := range nic.Options.All() {
		switch k {
		case "":
			nic.Model = v
		case "model":
			nic.Model = v
		case "macaddr":
			nic.MAC = v
		case "bridge":
			nic.Bridge = v
		case "tag":
			nic.VLAN, _ = strconv.Atoi(v)
		default:
			if slices.Contains(nicModels, k) {
				nic.Model, nic.MAC = k, v
			}
		}
	}
	return nic
}

// nicModels are the models that may stand as a key, `virtio=<mac>` (PVE::QemuServer::Network).
var nicModels = []string{
	"e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
	"ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
}

// indexed splits the number from a key such as net0.
func indexed(key, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok || rest == "" || len(rest) > 3 || len(rest) > 1 && rest[0] == '0' {
		return 0, false
	}
	n, err := strconv.Atoi(rest)
	return n, err == nil && n >= 0
}

// ordered drops all but the last entry of a key and sorts by the key's place among PVE's devices.
func ordered[T any](list []T, key func(T) string) []T {
	slices.SortStableFunc(list, func(a, b T) int { return devicePlace(key(a)) - devicePlace(key(b)) })
	out := list[:0]
	for i, e := range list {
		if i+1 < len(list) && key(list[i+1]) == key(e) {
			continue
		}
		out = append(out, e)
	}
	return out
}
