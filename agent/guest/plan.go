package guest

import (
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

// bounds is what the node, or the smallest node the VM may run on, can carry.
type bounds struct {
	CPUs int // host CPUs; PVE refuses to start a VM with more (cores x sockets). 0: unknown
}

// hardware is the part of a VM's config that a class decides: PVE config keys and their values.
type hardware map[string]string

// planHardware derives the config of a clone of source from a class. It is pure.
func planHardware(class spec.Class, source *pmxcfs.Conf, b bounds) (hardware, error) {
	if b.CPUs > 0 && class.CPU > b.CPUs {
		return nil, fault.New(fault.Precondition, "class_json: CPU: %d vCPUs asked, but a node this VM may run on has %d CPUs, and PVE starts no VM with more", class.CPU, b.CPUs)
	}
	hw := hardware{"sockets": "1", "vcpus": strconv.Itoa(class.CPU)}
	profile := spec.PerformanceProfile{}
	if class.PerformanceProfile != nil {
		profile = *class.PerformanceProfile
	}
	cores := class.CPU
	if profile.CPUHotAddEnabled {
		cores = headroom(class.CPU, b.CPUs)
	}
	hw["cores"] = strconv.Itoa(cores)

	memory, hotMemory := class.MemoryMiB, profile.MemoryHotAddEnabled && class.MemoryMiB >= staticMemoryMiB
	if hotMemory {
		memory = onLadder(memory)
		hw["numa"] = "1"
	}
	hw["memory"] = strconv.Itoa(memory)
	if v, ok := source.Get("balloon"); ok {
		if n, err := strconv.Atoi(v); err == nil && n > memory {
			hw["balloon"] = hw["memory"] // PVE refuses a balloon minimum above the memory
		}
	}
	hw["hotplug"] = planHotplug(source, profile.CPUHotAddEnabled, hotMemory)
	return hw, nil
}

func headroom(cpus, hostCPUs int) int {
	limit := headroomLimit
	if hostCPUs > 0 {
		limit = min(limit, hostCPUs)
	}
	return max(cpus, min(headroomFactor*cpus, limit))
}

// planHotplug merges what the template allows with what the class asks. Memory is taken out where the VM is not made
// for it: with it, PVE refuses to start a VM of less than 1 GiB or without NUMA.
func planHotplug(source *pmxcfs.Conf, cpu, memory bool) string {
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

// withUUID returns an smbios1 value with its uuid replaced and everything else kept.
func withUUID(smbios1, uuid string) string {
	fields := []string{"uuid=" + uuid}
	for f := range strings.SplitSeq(smbios1, ",") {
		if f != "" && !strings.HasPrefix(f, "uuid=") {
			fields = append(fields, f)
		}
	}
	return strings.Join(fields, ",")
}

// growth is a root disk to be grown.
type growth struct {
	Disk string // config key, such as "scsi0"
	GiB  int
}

// planGrowth says whether the root disk of source must grow to reach the class's size, in whole GiB. A template
// whose disk is larger already is left as it is: PVE cannot shrink disks.
func planGrowth(class spec.Class, source *pmxcfs.Conf) (growth, error) {
	boot, ok := source.BootDisk()
	if !ok {
		return growth{}, fault.New(fault.Precondition, "template %q has no disk that it boots from", source.Name())
	}
	if class.DiskDefaults == nil || class.DiskDefaults.SizeGiB == 0 {
		return growth{}, nil
	}
	if int64(class.DiskDefaults.SizeGiB)<<30 <= boot.Size {
		return growth{}, nil
	}
	return growth{Disk: boot.Key, GiB: class.DiskDefaults.SizeGiB}, nil
}

// cloudInitKeys are the places a cloud-init drive is put when the template has none, in the order PVE's GUI offers.
var cloudInitKeys = []string{"ide2", "ide0", "ide1", "ide3", "sata5", "sata4"}

// planCloudInit says where a cloud-init drive has to be added; key is "" when there is one already.
func planCloudInit(source *pmxcfs.Conf) (key, storage string, err error) {
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
			return k, boot.Storage, nil
		}
	}
	return "", "", fault.New(fault.Precondition, "template %q has no free slot for a cloud-init drive (tried %s): add one to the template",
		source.Name(), strings.Join(cloudInitKeys, ", "))
}

// cicustom merges snippet volumes into the template's cicustom value; part is user, meta, network or vendor.
func cicustom(current string, parts map[string]string) string {
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
