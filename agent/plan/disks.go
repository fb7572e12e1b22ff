package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Drive is a disk that PVE is to allocate.
type Drive struct {
	Key    string // scsi1, efidisk0, ...
	Value  string // as the API takes it: "local-lvm:8,serial=data,discard=on"
	Serial string // by which a data disk is found again; "" of EFI and TPM stores
}

// Growth is a disk to be grown.
type Growth struct {
	Disk string // config key; "": nothing to grow
	GiB  int
}

// RootDisk says whether the root disk of source must grow to reach the class's size, in whole GiB. One that is larger
// already is left as it is: PVE cannot shrink disks.
func RootDisk(class spec.Class, source *pmxcfs.Conf) (Growth, error) {
	boot, ok := source.BootDisk()
	if !ok {
		return Growth{}, fault.New(fault.Precondition, "%q has no disk that it boots from", source.Name())
	}
	if class.DiskDefaults == nil || class.DiskDefaults.SizeGiB == 0 {
		return Growth{}, nil
	}
	if int64(class.DiskDefaults.SizeGiB)<<30 <= boot.Size {
		return Growth{}, nil
	}
	return Growth{Disk: boot.Key, GiB: class.DiskDefaults.SizeGiB}, nil
}

// dataDisks plans the data disks of one VM, one after the other.
type dataDisks struct {
	conf      *pmxcfs.Conf
	storage   string // takes what neither a class nor the placement puts elsewhere
	datastore string // of the placement; it stands above the classes
	extra     map[string]string
	site      Site

	slots   *slots
	serials map[string]int // of those that were planned, by their index in the request
}

func newDataDisks(conf *pmxcfs.Conf, storage, datastore string, extra map[string]string, site Site) *dataDisks {
	return &dataDisks{
		conf: conf, storage: storage, datastore: datastore, extra: extra, site: site, slots: newSlots(conf), serials: map[string]int{},
	}
}

// next plans the disk at an index of the request. One that is there is found by its serial, and may have to grow; else it
// is to be made. Neither: there is nothing to do.
func (p *dataDisks) next(at int, d spec.Disk) (fresh Drive, grow Growth, err error) {
	serial := Serial(d.Name, at)
	if other, taken := p.serials[serial]; taken { // "disk-2" is also what the second one without a name is called
		return fresh, grow, p.bad(at, fault.Invalid, "Name", "serial %s is also that of disk %d: name it otherwise", serial, other)
	}
	p.serials[serial] = at
	if have, ok := bySerial(p.conf, serial); ok {
		grow, err = p.growth(at, d, have)
	} else {
		fresh, err = p.fresh(at, d, serial)
	}
	return fresh, grow, err
}

// bad is a failure about a field of the disk at an index.
func (p *dataDisks) bad(at int, reason fault.Reason, field, format string, args ...any) error {
	return p.site.fail(reason, p.site.Dialect.DiskError(at, field, fmt.Sprintf(format, args...)))
}

// growth compares a disk that is there with what is wanted.
func (p *dataDisks) growth(at int, d spec.Disk, have pmxcfs.Drive) (Growth, error) {
	wanted := int64(d.SizeGiB) << 30
	switch {
	case wanted == have.Size, have.Size == 0:
		return Growth{}, nil
	case wanted < have.Size:
		return Growth{}, p.bad(at, fault.Precondition, "SizeGiB", "%d GiB is less than the disk has (%s, %s): disks cannot shrink", d.SizeGiB, have.Key, gibText(have.Size))
	}
	return Growth{Disk: have.Key, GiB: d.SizeGiB}, nil
}

func gibText(bytes int64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', -1, 64) + " GiB"
}

// fresh plans a disk that is not there yet.
func (p *dataDisks) fresh(at int, d spec.Disk, serial string) (Drive, error) {
	class, err := p.site.storageClass(d.Type)
	if err != nil {
		return Drive{}, p.bad(at, fault.Precondition, "Type", "%v", err)
	}
	storage := cmp.Or(p.datastore, class.Storage, p.storage)
	if err := p.site.holdsDisks(storage); err != nil {
		return Drive{}, p.bad(at, fault.Precondition, "Type", "%v", err)
	}
	key, ok := p.slots.take()
	if !ok {
		return Drive{}, p.bad(at, fault.Precondition, "", "no bus has a free slot for another disk")
	}
	options, _ := driveOptions(class.Options, p.extra, key)
	if two := clash(options); two != "" {
		return Drive{}, p.bad(at, fault.Invalid, "Type", "with the ExtraConfig it has %s, of which PVE takes one", two)
	}
	options["serial"] = serial
	if format := p.site.format(storage); format != "" {
		options["format"] = format
	}
	return Drive{Key: key, Value: fmt.Sprintf("%s:%d,%s", storage, d.SizeGiB, joinOptions(options)), Serial: serial}, nil
}

// format is that of new disks on a storage, "" where PVE's own choice is good. Of files it makes raw ones unless the storage
// says otherwise, and a VM with one of those has no snapshots.
func (s Site) format(storage string) string {
	found, ok := s.World.Storages.Get(storage)
	if !ok || found.Options["format"] != "" || !slices.Contains([]string{"dir", "nfs", "cifs", "glusterfs"}, found.Type) {
		return ""
	}
	return "qcow2"
}

// maxSerial is how many characters of a serial QEMU shows to the guest on every bus.
const maxSerial = 20

// Serial is the serial number by which the data disk of a name is known; one without a name is known by its place in
// the request. A name that is too long is cut, with a piece of its hash, so that it stays its own.
func Serial(name string, index int) string {
	if name == "" {
		name = fmt.Sprintf("disk-%d", index+1)
	}
	if len(name) <= maxSerial {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:maxSerial-9] + "-" + hex.EncodeToString(sum[:4])
}

// bySerial finds a disk of a VM.
func bySerial(conf *pmxcfs.Conf, serial string) (pmxcfs.Drive, bool) {
	for _, d := range conf.Drives() {
		if s, ok := d.Options.Get("serial"); ok && s == serial && d.Disk() {
			return d, true
		}
	}
	return pmxcfs.Drive{}, false
}

// storageClass returns the class of a disk type. Thin is how PVE makes disks unless its storage says otherwise, so that
// it needs no class; of the others nobody could say what they are here.
func (s Site) storageClass(name string) (StorageClass, error) {
	class, ok := s.Policy.StorageClasses[name]
	if ok || name == "" || name == "thin" {
		options := Values{}
		for option, value := range class.Options {
			options[option] = normal(driveOptionKinds[option], value) // "true" of a YAML file
		}
		return StorageClass{Storage: class.Storage, Options: options}, nil
	}
	return StorageClass{}, fmt.Errorf("%q: %w; add it to the configuration: storage-classes: {%s: {storage: <storage>}}", name, errUnknownClass, name)
}

// rootPlan is where the root disk goes and which options it gets.
type rootPlan struct {
	storage string
	options Values
	notes   []string
}

// rootDisk decides about the disks that are cloned, or made first.
func (s Site) rootDisk(class spec.Class, p spec.Placement, source *pmxcfs.Conf) (rootPlan, error) {
	boot, ok := source.BootDisk()
	if !ok {
		return rootPlan{}, fault.New(fault.Precondition, "%q has no disk that it boots from", source.Name())
	}
	d := spec.DiskDefaults{}
	if class.DiskDefaults != nil {
		d = *class.DiskDefaults
	}
	field, name := "DiskDefaults.Type", d.Type
	if d.StorageClass != "" {
		field, name = "DiskDefaults.StorageClass", d.StorageClass
	}
	found, err := s.storageClass(name)
	if err != nil {
		return rootPlan{}, s.class(fault.Precondition, field, "%v", err)
	}
	options := maps.Clone(found.Options)
	if d.IOPS != nil {
		if options == nil {
			options = Values{}
		}
		options["iops"] = strconv.Itoa(*d.IOPS)
	}
	plan := rootPlan{storage: found.Storage}
	if p.Datastore != "" {
		plan.storage = p.Datastore
	}
	if err := s.holdsDisks(plan.storage); err != nil {
		return rootPlan{}, s.class(fault.Precondition, field, "%v", err)
	}
	plan.options, plan.notes = driveOptions(options, class.ExtraConfig, boot.Key)
	if two := clash(plan.options); two != "" {
		return rootPlan{}, s.class(fault.Invalid, "ExtraConfig", "the root disk would have %s, of which PVE takes one", two)
	}
	return plan, nil
}

// clash names two limits of which a drive may have one only: one for reads and writes together, and one for either. PVE
// could not read the drive again; "" if there are none.
func clash(options Values) string {
	for _, whole := range []string{"iops", "iops_max", "mbps", "mbps_max"} {
		unit, burst, _ := strings.Cut(whole, "_")
		for _, half := range []string{unit + "_rd", unit + "_wr"} {
			if burst != "" {
				half += "_" + burst
			}
			if options[whole] != "" && options[half] != "" {
				return whole + " and " + half
			}
		}
	}
	return ""
}

// driveOptions are those of a class, overruled by those of the request, as far as the bus of key has them.
func driveOptions(class Values, extra map[string]string, key string) (out Values, notes []string) {
	out = Values{}
	maps.Copy(out, class)
	maps.Copy(out, extraDrive(extra))
	bus := strings.TrimRight(key, "0123456789")
	for _, o := range []struct {
		option string
		buses  []string
	}{{"ssd", []string{"ide", "sata", "scsi"}}, {"iothread", []string{"scsi", "virtio"}}} {
		if v, ok := out[o.option]; ok && !slices.Contains(o.buses, bus) {
			delete(out, o.option)
			notes = append(notes, fmt.Sprintf("%s=%s has no meaning on %s", o.option, v, key))
		}
	}
	return out, notes
}

// SetOptions returns the value of a drive with some of its options set, and everything else as it is.
func SetOptions(value string, options Values) string {
	parts := []string{}
	for i, p := range strings.Split(value, ",") {
		k, _, _ := strings.Cut(p, "=")
		if _, replaced := options[k]; i == 0 || !replaced {
			parts = append(parts, p)
		}
	}
	if len(options) > 0 {
		parts = append(parts, joinOptions(options))
	}
	return strings.Join(parts, ",")
}

// has reports whether a value of PVE's form has an option, set to this.
func has(value, option, want string) bool {
	v, ok := pmxcfs.Props(value).Get(option)
	return ok && v == want
}

func joinOptions(options Values) string {
	parts := make([]string, 0, len(options))
	for _, k := range slices.Sorted(maps.Keys(options)) {
		parts = append(parts, k+"="+options[k])
	}
	return strings.Join(parts, ",")
}

// busSlots is how many disks there may be on a bus of PVE.
var busSlots = map[string]int{"scsi": 31, "virtio": 16, "sata": 6}

// slots hands out places for new disks, on the bus of the root disk: its driver is in the guest.
type slots struct {
	bus   string
	taken map[string]bool
}

func newSlots(conf *pmxcfs.Conf) *slots {
	s := &slots{bus: "scsi", taken: map[string]bool{}}
	for _, k := range conf.Keys() {
		s.taken[k] = true
	}
	pending := conf.Pending()
	for _, k := range pending.Keys() {
		s.taken[k] = true
	}
	if boot, ok := conf.BootDisk(); ok {
		s.bus = strings.TrimRight(boot.Key, "0123456789")
	}
	if s.bus == "ide" { // four places, of which CDs have some
		s.bus = "sata"
	}
	return s
}

func (s *slots) take() (string, bool) {
	for n := range busSlots[s.bus] {
		key := s.bus + strconv.Itoa(n)
		if !s.taken[key] {
			s.taken[key] = true
			return key, true
		}
	}
	return "", false
}
