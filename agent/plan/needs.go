package plan

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// Needs is what a VM takes of the node that it is on.
type Needs struct {
	Memory  uint64  // bytes
	CPUs    int     // that it starts with
	Disks   []Space // one for each disk: first the copies of the source's, in its order
	Bridges []string
}

// Space is room on a storage.
type Space struct {
	Storage string
	Bytes   uint64 // 0: the storage only has to be there
}

// Needs tells what a planned VM will take, made from source.
func (vm VM) Needs(source *pmxcfs.Conf) Needs {
	n := Needs{Memory: uint64(max(0, source.MemoryMiB())) << 20}
	if mib, err := strconv.ParseUint(vm.Config["memory"], 10, 32); err == nil {
		n.Memory = mib << 20
	}
	n.CPUs = vm.cpus(source)
	for _, d := range source.Drives() {
		if d.Storage == "" || d.CDROM && !d.CloudInit { // an installation medium stays where it is
			continue
		}
		space := Space{Storage: d.Storage, Bytes: uint64(max(0, d.Size))}
		if vm.Storage != "" {
			space.Storage = vm.Storage
		}
		if d.Key == vm.Root.Disk {
			space.Bytes = max(space.Bytes, uint64(vm.Root.GiB)<<30)
		} else if vm.Linked {
			space.Bytes = 0
		}
		n.Disks = append(n.Disks, space)
	}
	for _, d := range vm.Drives {
		n.Disks = append(n.Disks, driveSpace(d.Value))
	}
	n.Bridges = vm.bridges(source)
	return n
}

// ConfNeeds tells what a VM that is made already takes.
func ConfNeeds(conf *pmxcfs.Conf) Needs { return VM{}.Needs(conf) }

func (vm VM) cpus(source *pmxcfs.Conf) int {
	most, start := source.CPUs()
	if n, err := strconv.Atoi(vm.Config["vcpus"]); err == nil {
		return n
	}
	cores, err := strconv.Atoi(vm.Config["cores"])
	if err != nil {
		return min(most, max(start, 1))
	}
	sockets, err := strconv.Atoi(vm.Config["sockets"])
	if err != nil {
		sockets = 1
	}
	return cores * sockets
}

// driveSpace reads a drive as the API takes it: "local-lvm:8,serial=data".
func driveSpace(value string) Space {
	volume, _, _ := strings.Cut(value, ",")
	storage, size, _ := strings.Cut(volume, ":")
	gib, err := strconv.ParseUint(size, 10, 32)
	if err != nil {
		gib = 0
	}
	return Space{Storage: storage, Bytes: gib << 30}
}

// bridges are those of all NICs: what is planned stands above what the source has.
func (vm VM) bridges(source *pmxcfs.Conf) []string {
	byKey := map[string]string{}
	for _, nic := range source.NICs() {
		byKey[nic.Key] = nic.Bridge
	}
	for key, value := range vm.Config {
		if strings.HasPrefix(key, "net") {
			byKey[key], _ = pmxcfs.Props(value).Get("bridge")
		}
	}
	names := slices.Sorted(maps.Values(byKey))
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}
