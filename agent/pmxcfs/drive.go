package pmxcfs

import (
	"path"
	"slices"
	"strings"
)

// Drive is one disk, CD-ROM, cloud-init drive, EFI or TPM store of a VM.
type Drive struct {
	Key       string // scsi0, ide2, efidisk0, unused0, ...
	Volume    string // storage:volume, an absolute path, or "none" and "cdrom" of an empty or passed-through CD drive
	Storage   string // the part of Volume before the colon; "" if it names no storage
	Size      int64  // bytes, as the config says (informational in PVE); 0 if it does not
	Format    string // raw, qcow2, ... by option or file name; "" if the storage's type decides (Storage.Format)
	CDROM     bool   // media=cdrom, cloud-init drives included
	CloudInit bool   // the cloud-init drive
	Options   Props  // the whole value
}

// Disk reports whether the drive is an ordinary disk of the guest: no CD, cloud-init drive, EFI or TPM store, and in use.
func (d Drive) Disk() bool {
	return !d.CDROM && !d.CloudInit && devicePlace(d.Key) < devicePlace("efidisk0")
}

// Drives lists the drives in use, in PVE's order: ide, scsi, virtio, sata, efidisk, tpmstate, each by number.
func (s Section) Drives() []Drive {
	return s.drives(func(place int) bool { return place < devicePlace("unused0") })
}

// Unused lists the volumes that belong to the VM but are not attached (unusedN).
func (s Section) Unused() []Drive {
	return s.drives(func(place int) bool { return place >= devicePlace("unused0") && place < notADrive })
}

func (s Section) drives(want func(place int) bool) []Drive {
	var list []Drive
	for k, v := range s.lines() {
		if want(devicePlace(k)) {
			list = append(list, parseDrive(k, v))
		}
	}
	return ordered(list, func(d Drive) string { return d.Key })
}

// BootDisk is the disk the VM boots from: the first disk in `boot: order=`, else `bootdisk`. A config that says neither
// boots from its first disk; one whose order has no disk in it boots from none.
func (s Section) BootDisk() (Drive, bool) {
	drives := s.Drives()
	boot := Props(s.value("boot"))
	order, ok := boot.Get("order")
	if !ok {
		order = s.value("bootdisk")
	}
	for _, key := range fields(order) {
		for _, d := range drives {
			if d.Key == key && d.Disk() {
				return d, true
			}
		}
	}
	if ok || order != "" {
		return Drive{}, false
	}
	if i := slices.IndexFunc(drives, Drive.Disk); i >= 0 {
		return drives[i], true
	}
	return Drive{}, false
}

func parseDrive(key, value string) Drive {
	d := Drive{Key: key, Options: Props(value)}
	for k, v := range d.Options.All() {
		switch k {
		case "", "file", "volume":
			d.Volume = v
		case "media":
			d.CDROM = v == "cdrom"
		case "size":
			d.Size = ParseSize(v)
		case "format":
			d.Format = v
		}
	}
	if storage, _, ok := strings.Cut(d.Volume, ":"); ok && !strings.Contains(storage, "/") {
		d.Storage = storage
	}
	d.CloudInit = cloudInitVolume(d.Volume)
	if d.Format == "" {
		d.Format = extension(d.Volume)
	}
	return d
}

// cloudInitVolume recognises the volume PVE makes for cloud-init by its name: [vm-<id>-]cloudinit[.<format>].
func cloudInitVolume(volume string) bool {
	i := strings.LastIndexAny(volume, ":/")
	if i < 0 {
		return false
	}
	name := volume[i+1:]
	if ext := extension(name); ext != "" {
		name = strings.TrimSuffix(name, "."+ext)
	}
	if rest, ok := strings.CutPrefix(name, "vm-"); ok {
		name = strings.TrimPrefix(strings.TrimLeft(rest, "0123456789"), "-")
	}
	return name == "cloudinit"
}

// imageFormats are the file name extensions that tell QEMU's image format.
var imageFormats = []string{"raw", "qcow", "qcow2", "qed", "vmdk", "cloop"}

// extension is the image format a volume's file name tells, or "".
func extension(volume string) string {
	ext := strings.TrimPrefix(path.Ext(volume), ".")
	if slices.Contains(imageFormats, ext) {
		return ext
	}
	return ""
}

// notADrive is the devicePlace of a key that is no drive.
const notADrive = 9000

// driveBuses are the kinds of drives in PVE's order and how many there can be of each (PVE::QemuServer::Drive).
var driveBuses = []struct {
	prefix string
	count  int
}{
	{"ide", 4}, {"scsi", 31}, {"virtio", 16}, {"sata", 6}, {"efidisk", 1}, {"tpmstate", 1}, {"unused", 256},
}

// devicePlace sorts device keys: drives first in PVE's order, then everything else by its number.
func devicePlace(key string) int {
	for i, bus := range driveBuses {
		if n, ok := indexed(key, bus.prefix); ok && n < bus.count {
			return i*1000 + n
		}
	}
	n, _ := indexed(key, "net")
	return notADrive + n
}
