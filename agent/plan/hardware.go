package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Head-room for CPU hot-add: four times what is asked, but not past 64 vCPUs. The same policy as VirtRigaud's
// libvirt provider, so that a class behaves alike on both.
const (
	headroomFactor = 4
	headroomLimit  = 64
)

// Hardware derives from a class what it decides of a VM's config, but for what lies on storages; base is the template, or
// the VM as it is now. Errors are of package fault.
func Hardware(class spec.Class, base *pmxcfs.Conf, site Site) (Values, error) {
	if err := checkExtra(class.ExtraConfig, site); err != nil {
		return nil, err
	}
	if site.CPUs > 0 && class.CPU > site.CPUs {
		return nil, site.class(fault.Precondition, "CPU", "%d vCPUs asked, but a node this VM may run on has %d CPUs, and PVE starts no VM with more", class.CPU, site.CPUs)
	}
	profile := profileOf(class)
	hw := Values{"sockets": "1", "vcpus": strconv.Itoa(class.CPU), "cores": strconv.Itoa(class.CPU)}
	if profile.CPUHotAddEnabled {
		hw["cores"] = strconv.Itoa(headroom(class.CPU, site.CPUs))
	}
	memory, hotMemory := memoryOf(class)
	hw["memory"] = strconv.Itoa(memory)
	if hotMemory {
		hw["numa"] = "1"
	}
	hw["hotplug"] = hotplug(base, profile.CPUHotAddEnabled, hotMemory)
	limits, err := limits(class, base, memory, site)
	if err != nil {
		return nil, err
	}
	maps.Copy(hw, limits)
	if err := features(hw, class, base, site); err != nil {
		return nil, err
	}
	maps.Copy(hw, extraValues(class.ExtraConfig))
	return hw, checkBalloon(hw, memory, class, site)
}

func profileOf(class spec.Class) spec.PerformanceProfile {
	if class.PerformanceProfile == nil {
		return spec.PerformanceProfile{}
	}
	return *class.PerformanceProfile
}

// memoryOf is the memory of a class in MiB, and whether more can be plugged later.
func memoryOf(class spec.Class) (mib int, hot bool) {
	if profileOf(class).MemoryHotAddEnabled && class.MemoryMiB >= staticMemoryMiB {
		return onLadder(class.MemoryMiB), true
	}
	return class.MemoryMiB, false
}

// checkBalloon refuses what PVE would refuse late: a balloon minimum above the memory.
func checkBalloon(hw Values, memory int, class spec.Class, site Site) error {
	if asked, ok := class.ExtraConfig[extraPrefix+"balloon"]; ok && atoi(hw["balloon"]) > memory {
		return site.class(fault.Invalid, "ExtraConfig."+extraPrefix+"balloon", "%s MiB is more than the VM's memory, %d MiB", asked, memory)
	}
	return nil
}

// features are the CPU's and the guest agent's part.
func features(hw Values, class spec.Class, base *pmxcfs.Conf, site Site) error {
	p := profileOf(class)
	switch p.HyperThreadingPolicy {
	case "avoid", "require":
		return site.class(fault.Precondition, "PerformanceProfile.HyperThreadingPolicy", "%q: PVE leaves it to the host's scheduler on which threads of a core a vCPU runs; "+
			"only root may pin vCPUs (qm set <vmid> --affinity)", p.HyperThreadingPolicy)
	}
	if p.NestedVirtualization || p.VirtualizationBasedSecurity {
		cpu, _ := base.Get("cpu")
		// The only type that passes virtualization on in every version of PVE; flags stay.
		hw["cpu"] = withFirst(cpu, "cputype", "host")
	}
	agent, _ := base.Get("agent")
	switch class.GuestToolsPolicy {
	case "install", "upgrade":
		hw["agent"] = withFirst(agent, "enabled", "enabled=1")
	case "uninstall":
		hw["agent"] = withFirst(agent, "enabled", "enabled=0")
	}
	return nil
}

// withFirst returns a value of PVE's form with another first part, which may stand there with its key or without.
func withFirst(value, key, first string) string {
	parts := []string{first}
	for i, p := range strings.Split(value, ",") {
		k, _, named := strings.Cut(p, "=")
		if p != "" && k != key && (named || i > 0) {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ",")
}

// Notes tells what of a class is carried out otherwise than one might think, for the log.
func Notes(class spec.Class) []string {
	var notes []string
	p := profileOf(class)
	if p.MemoryHotAddEnabled && class.MemoryMiB < staticMemoryMiB {
		notes = append(notes, fmt.Sprintf("memory hot-add stays off: PVE needs %d MiB at least, and the class has %d", staticMemoryMiB, class.MemoryMiB))
	}
	if memory, _ := memoryOf(class); memory != class.MemoryMiB {
		notes = append(notes, fmt.Sprintf("memory is %d MiB instead of %d: whole DIMMs", memory, class.MemoryMiB))
	}
	if keys := foreignExtra(class.ExtraConfig); len(keys) > 0 {
		notes = append(notes, "ExtraConfig for other hypervisors: "+strings.Join(keys, ", "))
	}
	return notes
}

func headroom(cpus, hostCPUs int) int {
	limit := headroomLimit
	if hostCPUs > 0 {
		limit = min(limit, hostCPUs)
	}
	return max(cpus, min(headroomFactor*cpus, limit))
}

// hotplug merges what the template allows with what the class asks. Memory is taken out where the VM is not made
// for it: with it, PVE refuses to start a VM of less than 1 GiB or without NUMA.
func hotplug(source *pmxcfs.Conf, cpu, memory bool) string {
	features := map[string]bool{}
	v, ok := source.Get("hotplug")
	switch {
	case !ok || v == "1":
		v = "network,disk,usb" // PVE's default, and what "1" stands for
	case v == "0":
		v = ""
	}
	for f := range strings.SplitSeq(v, ",") {
		if f = strings.TrimSpace(f); f != "" {
			features[f] = true
		}
	}
	features["cpu"] = features["cpu"] || cpu
	features["memory"] = memory
	maps.DeleteFunc(features, func(_ string, on bool) bool { return !on })
	if len(features) == 0 {
		return "0"
	}
	return strings.Join(slices.Sorted(maps.Keys(features)), ",")
}

// The DIMM ladder of PVE (facts.md, PVE::QemuServer::Memory): 1024 MiB are there at start, then come 32 DIMMs of
// 512 MiB, 32 of 1024 MiB, and so on.
const (
	staticMemoryMiB = 1024
	firstDIMMMiB    = 512
	dimmsPerSize    = 32
	dimmSizes       = 8
)

// onLadder rounds memory (MiB) up to a size that whole DIMMs make, so that the config says what the guest gets.
func onLadder(memory int) int {
	size, dimm := staticMemoryMiB, firstDIMMMiB
	for range dimmSizes {
		for range dimmsPerSize {
			if size >= memory {
				return size
			}
			size += dimm
		}
		dimm *= 2
	}
	return max(size, memory)
}

// WithUUID returns an smbios1 value with its uuid replaced and everything else kept.
func WithUUID(smbios1, uuid string) string {
	fields := []string{"uuid=" + uuid}
	for f := range strings.SplitSeq(smbios1, ",") {
		if f != "" && !strings.HasPrefix(f, "uuid=") {
			fields = append(fields, f)
		}
	}
	return strings.Join(fields, ",")
}

// cloudInitKeys are the places a cloud-init drive is put when the template has none, in the order PVE's GUI offers.
var cloudInitKeys = []string{"ide2", "ide0", "ide1", "ide3", "sata5", "sata4"}

// CloudInitDrive says where a cloud-init drive has to be added, on the storage of the root disk, which is where unless
// that is ""; key is "" when there is one already.
func CloudInitDrive(source *pmxcfs.Conf, where string) (key, storage string, err error) {
	for _, d := range source.Drives() {
		if d.CloudInit {
			return "", "", nil
		}
	}
	boot, ok := source.BootDisk()
	if !ok {
		return "", "", fault.New(fault.Precondition, "template %q has no disk that it boots from", source.Name())
	}
	for _, k := range cloudInitKeys {
		if _, taken := source.Get(k); !taken {
			return k, cmp.Or(where, boot.Storage), nil
		}
	}
	return "", "", fault.New(fault.Precondition, "template %q has no free slot for a cloud-init drive (tried %s): add one to the template",
		source.Name(), strings.Join(cloudInitKeys, ", "))
}

// CICustom merges snippet volumes into the template's cicustom value; part is user, meta, network or vendor.
func CICustom(current string, parts map[string]string) string {
	all := map[string]string{}
	for f := range strings.SplitSeq(current, ",") {
		if k, v, ok := strings.Cut(f, "="); ok {
			all[k] = v
		}
	}
	maps.Copy(all, parts)
	fields := make([]string, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		fields = append(fields, fmt.Sprintf("%s=%s", k, all[k]))
	}
	return strings.Join(fields, ",")
}
