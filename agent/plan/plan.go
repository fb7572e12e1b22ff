// Package plan decides what a VM's config in PVE is to be: what a class, disks, networks and tags of a request mean in
// PVE's keys, given a template or the VM as it is now. It is pure: no I/O, no clock; what it has to know of the world is
// handed in.
//
// A field that PVE cannot carry out is an error that names it: nothing of a request is dropped silently. What can only
// be done in part is a note, for the log.
package plan

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Values are config keys of PVE and their values, as the API takes them.
type Values map[string]string

// Policy is what the administrator says about names in requests.
type Policy struct {
	Bridges        map[string]string       // by the name of a network, in lower case
	StorageClasses map[string]StorageClass // by the type of a disk ("nvme", "ssd", ...), or the name of a class
	Groups         map[string][]string     // nodes, by the name of their group
}

// StorageClass is where disks of a type go, and with which drive options.
type StorageClass struct {
	Storage string // "": where the root disk is
	Options Values // as PVE writes them: discard, ssd, iothread, cache, ...
}

// DiskTypes are the types of disk that a request may name, sorted.
func (p Policy) DiskTypes() []string {
	types := append(slices.Collect(maps.Keys(p.StorageClasses)), "thin")
	slices.Sort(types)
	return slices.Compact(types)
}

// Check says what is wrong with a policy.
func (p Policy) Check() error {
	for _, name := range slices.Sorted(maps.Keys(p.StorageClasses)) {
		options := p.StorageClasses[name].Options
		for _, option := range slices.Sorted(maps.Keys(options)) {
			kind, ok := driveOptionKinds[option]
			if !ok {
				return fmt.Errorf("%s: %q is no drive option that may be set; those are: %s", name, option, strings.Join(slices.Sorted(maps.Keys(driveOptionKinds)), ", "))
			}
			if !kind.valid(options[option]) {
				return fmt.Errorf("%s: %s: %q is not %s", name, option, options[option], kind.words)
			}
		}
		if two := clash(options); two != "" {
			return fmt.Errorf("%s: a drive has either of %s", name, two)
		}
	}
	return nil
}

// Site is the node on which a VM is, or is to be, as far as plans have to know it.
type Site struct {
	Node    string // "": not decided yet; then nothing is checked that depends on it
	World   *pmxcfs.World
	CPUs    int          // host CPUs of the smallest node the VM may run on; PVE starts no VM with more. 0: unknown
	MHz     int          // clock of a host CPU; 0: unknown
	Major   int          // PVE's major version; 0: unknown
	Dialect spec.Dialect // of the request, for errors
	Policy  Policy
}

// Wish is what a request says of a VM that is to be made, whatever kind of request it is.
type Wish struct {
	Class     *spec.Class // nil: as the source
	Networks  []spec.Network
	Disks     []spec.Disk
	Placement spec.Placement
	Tags      []string
	Linked    bool // the root disk may share its base with the source
}

// VM is what a new VM is to be, beside what it is made from.
type VM struct {
	Linked  bool     // clone without copying disks
	Storage string   // for the copies of the source's disks; "": where those are
	Pool    string   // "": none
	Config  Values   // keys to be set
	Root    Growth   // of the root disk; Disk "" if it is large enough
	Options Values   // drive options to be set on the root disk
	Drives  []Drive  // to be allocated: data disks, EFI and TPM stores
	Tags    []string // PVE's, with those of the source
	NICs    []cloudinit.NIC
	Notes   []string // what is not as one might think, for the log
}

// Create plans a VM made from source. mac hands out MAC addresses that nobody has. Errors are of package fault.
func Create(w Wish, source *pmxcfs.Conf, site Site, mac func() string) (VM, error) {
	vm := VM{Config: Values{}}
	if err := site.place(w.Placement); err != nil {
		return VM{}, err
	}
	vm.Pool = poolName(w.Placement.Folder)
	vm.Tags = Tags(w.Tags, source.Tags(), nil)
	vm.Notes = tagNotes(w.Tags)
	if len(vm.Tags) > 0 {
		vm.Config["tags"] = joinTags(vm.Tags)
	}
	if source.Protection() {
		vm.Config["protection"] = "0" // PVE copies it, and then nobody could delete what we make
	}
	class := spec.Class{}
	if w.Class != nil {
		class = *w.Class
		values, err := Hardware(class, source, site)
		if err != nil {
			return VM{}, err
		}
		maps.Copy(vm.Config, values)
		vm.Notes = append(vm.Notes, Notes(class)...)
	}
	if err := vm.planDisks(w, class, source, site); err != nil {
		return VM{}, err
	}
	nets, nics, err := NICs(w.Networks, source, class.ExtraConfig, site, mac)
	if err != nil {
		return VM{}, err
	}
	maps.Copy(vm.Config, nets)
	vm.NICs = nics
	return vm, nil
}

// planDisks plans everything that lies on a storage.
func (vm *VM) planDisks(w Wish, class spec.Class, source *pmxcfs.Conf, site Site) error {
	root, err := site.rootDisk(class, w.Placement, source)
	if err != nil {
		return err
	}
	vm.Storage, vm.Options = root.storage, root.options
	vm.Notes = append(vm.Notes, root.notes...)
	if vm.Linked, err = vm.linked(w, class, source, site); err != nil {
		return err
	}
	if vm.Root, err = RootDisk(class, source); err != nil {
		return err
	}
	where := vm.Storage
	if boot, ok := source.BootDisk(); ok && where == "" {
		where = boot.Storage
	}
	firmware, stores, err := firmware(class, source, where, site)
	if err != nil {
		return err
	}
	maps.Copy(vm.Config, firmware)
	vm.Drives = stores
	data := newDataDisks(source, where, w.Placement.Datastore, class.ExtraConfig, site)
	for i, d := range w.Disks {
		fresh, grow, err := data.next(i, d)
		switch {
		case err != nil:
			return err
		case grow.Disk != "":
			return data.bad(i, fault.Precondition, "SizeGiB", "the template has a disk of that name at %s which is smaller; name the disk otherwise, or grow it later", grow.Disk)
		case fresh.Key != "":
			vm.Drives = append(vm.Drives, fresh)
		}
	}
	vm.singleControllers(source)
	return nil
}

// singleControllers gives each SCSI disk a controller of its own where one is to have an I/O thread: QEMU has one thread
// per controller. With other controllers PVE ignores the option, and says so at each start.
func (vm *VM) singleControllers(source *pmxcfs.Conf) {
	boot, _ := source.BootDisk()
	threads := strings.HasPrefix(boot.Key, "scsi") && vm.Options["iothread"] == "1"
	for _, d := range vm.Drives {
		threads = threads || strings.HasPrefix(d.Key, "scsi") && has(d.Value, "iothread", "1")
	}
	if !threads {
		return
	}
	hw, said := vm.Config["scsihw"]
	if !said {
		hw, _ = source.Get("scsihw")
	}
	switch {
	case hw == "virtio-scsi-single":
	case hw == "virtio-scsi-pci" && !said:
		vm.Config["scsihw"] = "virtio-scsi-single" // the same driver in the guest
	default:
		vm.Notes = append(vm.Notes, "iothread=1 has no effect with this SCSI controller ("+cmp.Or(hw, "lsi")+")")
	}
}

// linked says whether the clone shares its base with the source. Where that cannot be it is a copy: that takes longer,
// and is otherwise the same.
func (vm *VM) linked(w Wish, class spec.Class, source *pmxcfs.Conf, site Site) (bool, error) {
	asked, err := extraFlag(class.ExtraConfig, "linked-clone", site)
	if err != nil || !asked && !w.Linked {
		return false, err
	}
	if why := unlinkable(source, vm.Storage, site.World.Storages); why != "" {
		vm.Notes = append(vm.Notes, "a full clone is made instead of a linked one: "+why)
		return false, nil
	}
	vm.Storage = "" // PVE takes none for a linked clone
	return true, nil
}

// linkable are the storage types of PVE whose volumes can be the base of a linked clone (volume_has_feature "clone").
var linkable = []string{"dir", "nfs", "cifs", "btrfs", "cephfs", "glusterfs", "zfspool", "lvmthin", "rbd", "zfs"}

// unlinkable says why a linked clone of source cannot be; "" if it can.
func unlinkable(source *pmxcfs.Conf, storage string, storages pmxcfs.Storages) string {
	if !source.Template() {
		return "the source is no template"
	}
	for _, d := range source.Drives() {
		if !d.Disk() || d.Storage == "" {
			continue
		}
		if storage != "" && storage != d.Storage {
			return fmt.Sprintf("%s is on storage %s and is wanted on %s", d.Key, d.Storage, storage)
		}
		s, ok := storages.Get(d.Storage)
		if !ok || !slices.Contains(linkable, s.Type) {
			return fmt.Sprintf("storage %s, which holds %s, cannot", d.Storage, d.Key)
		}
	}
	return ""
}

// fail makes a failure of what is wrong with a field.
func (s Site) fail(reason fault.Reason, err *spec.Error) error { return fault.New(reason, "%w", err) }

// class is a failure about a field of the class.
func (s Site) class(reason fault.Reason, field, format string, args ...any) error {
	return s.fail(reason, s.Dialect.ClassError(field, fmt.Sprintf(format, args...)))
}

// place refuses what the placement says and PVE has not.
func (s Site) place(p spec.Placement) error {
	bad := func(reason fault.Reason, field, format string, args ...any) error {
		return s.fail(reason, s.Dialect.PlacementError(field, fmt.Sprintf(format, args...)))
	}
	if p.StoragePod != "" {
		return bad(fault.Invalid, "StoragePod", "%q: PVE has no storage pods; name a storage in Datastore", p.StoragePod)
	}
	for _, f := range []struct{ field, name string }{{"Host", p.Host}, {"Cluster", p.Cluster}} {
		nodes, known := s.named(f.field, f.name)
		if !known {
			return bad(fault.Precondition, f.field, "%q is no node of this cluster, no group of nodes, nor the cluster's name", f.name)
		}
		if nodes != nil && s.Node != "" && !slices.Contains(nodes, s.Node) {
			return bad(fault.Precondition, f.field, "the VM is wanted on node %s, and what it is made from is on node %s only", strings.Join(nodes, " or "), s.Node)
		}
	}
	if err := s.holdsDisks(p.Datastore); err != nil {
		return bad(fault.Precondition, "Datastore", "%v", err)
	}
	return nil
}

// named returns the nodes that a field of a placement names; nil: all of them.
func (s Site) named(field, name string) (nodes []string, known bool) {
	if name == "" || field == "Cluster" && name == s.World.Members.Cluster {
		return nil, true
	}
	if _, node := s.World.Members.Nodes[name]; node {
		return []string{name}, true
	}
	group, known := s.Policy.Groups[name]
	return group, known
}

// Named returns the nodes to which a placement limits the VM, and the words of the request for that; nil: all nodes.
func (s Site) Named(p spec.Placement) (nodes []string, words string) {
	for _, f := range []struct{ field, name string }{{"Host", p.Host}, {"Cluster", p.Cluster}} {
		of, _ := s.named(f.field, f.name)
		if of == nil {
			continue
		}
		if nodes == nil {
			nodes, words = of, fmt.Sprintf("placement_json: %s %q", f.field, f.name)
			continue
		}
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return !slices.Contains(of, n) })
		words += fmt.Sprintf(" and %s %q", f.field, f.name)
	}
	return nodes, words
}

// holdsDisks says why no disk can be put on a storage; "" is the source's.
func (s Site) holdsDisks(storage string) error {
	if storage == "" {
		return nil
	}
	found, ok := s.World.Storages.Get(storage)
	switch {
	case !ok:
		return fmt.Errorf("storage %q does not exist", storage)
	case s.Node != "" && !found.OnNode(s.Node):
		return fmt.Errorf("storage %q is not available on node %s", storage, s.Node)
	case !found.Has("images"):
		return fmt.Errorf("storage %q holds no VM disks (its content lacks images)", storage)
	}
	return nil
}

var errUnknownClass = errors.New("no storage class of that name is configured")
