package vmconf

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Drive is the value of a drive option: a volume and its options.
type Drive struct {
	Key  string // "scsi0"
	File string // "local:100/vm-100-disk-0.qcow2", "none", "local:8" (to be allocated)
	Opts map[string]string
}

var driveKey = regexp.MustCompile(`^(ide[0-3]|sata[0-5]|scsi(?:[12]?\d|30)|virtio(?:\d|1[0-5])|efidisk0|tpmstate0)$`)

// IsDrive says whether a key names a drive.
func IsDrive(key string) bool { return driveKey.MatchString(key) }

// ParseDrive reads a drive's value.
func ParseDrive(key, value string) Drive {
	d := Drive{Key: key, Opts: map[string]string{}}
	for _, part := range strings.Split(value, ",") {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case !ok && d.File == "":
			d.File = part
		case k == "file" || k == "volume":
			d.File = v
		case ok:
			d.Opts[k] = v
		}
	}
	return d
}

// String writes the value as PVE does: the volume first, then the options by name.
func (d Drive) String() string {
	out := d.File
	for _, k := range slices.Sorted(maps.Keys(d.Opts)) {
		out += "," + k + "=" + d.Opts[k]
	}
	return out
}

// CDROM says whether the drive is a CD-ROM, the cloud-init drive included.
func (d Drive) CDROM() bool { return d.Opts["media"] == "cdrom" }

var cloudInitName = regexp.MustCompile(`(^|/)(vm-\d+-)?cloudinit(\.[a-z0-9]+)?$`)

// CloudInit says whether the drive is a cloud-init drive.
func (d Drive) CloudInit() bool {
	_, name, ok := strings.Cut(d.File, ":")
	return ok && cloudInitName.MatchString(name)
}

// Storage is the storage of the drive's volume, "" for none.
func (d Drive) Storage() string {
	storage, _, ok := strings.Cut(d.File, ":")
	if !ok {
		return ""
	}
	return storage
}

// Size is the size option in bytes, 0 when there is none.
func (d Drive) Size() int64 {
	n, err := ParseSize(d.Opts["size"])
	if err != nil {
		return 0
	}
	return n
}

// Drives returns the drives of a section, in order of their keys.
func (s Section) Drives() []Drive {
	var out []Drive
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if IsDrive(key) {
			out = append(out, ParseDrive(key, s[key]))
		}
	}
	return out
}

var sizeText = regexp.MustCompile(`^(\d+(?:\.\d+)?)([KMGT])?$`)

// ParseSize reads PVE's sizes ("8G", "4M", "512") into bytes.
func ParseSize(s string) (int64, error) {
	m := sizeText.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("size %q", s)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", s, err)
	}
	unit := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
	return int64(n * unit[m[2]]), nil
}

// FormatSize writes bytes in the largest unit that leaves no rest.
func FormatSize(n int64) string {
	unit := ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}

// NIC is the value of a netN option.
type NIC struct {
	Key, Model, MAC string
	Opts            map[string]string
}

var nicKey = regexp.MustCompile(`^net\d+$`)

// IsNIC says whether a key names a network device.
func IsNIC(key string) bool { return nicKey.MatchString(key) }

var nicModels = []string{
	"e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b",
	"i82559er", "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
}

// ParseNIC reads a network device: "virtio=<MAC>,bridge=..." or
// "virtio,bridge=...,macaddr=<MAC>".
func ParseNIC(key, value string) NIC {
	n := NIC{Key: key, Opts: map[string]string{}}
	for _, part := range strings.Split(value, ",") {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case !ok:
			n.Model = part
		case k == "model":
			n.Model = v
		case k == "macaddr":
			n.MAC = v
		case slices.Contains(nicModels, k):
			n.Model, n.MAC = k, v
		default:
			n.Opts[k] = v
		}
	}
	return n
}

// String writes the device as PVE does.
func (n NIC) String() string {
	out := n.Model
	if n.MAC != "" {
		out += "=" + n.MAC
	}
	for _, k := range slices.Sorted(maps.Keys(n.Opts)) {
		out += "," + k + "=" + n.Opts[k]
	}
	return out
}

// Props reads any other property string; a part without "=" goes under def.
func Props(value, def string) map[string]string {
	out := map[string]string{}
	for _, part := range strings.Split(value, ",") {
		if k, v, ok := strings.Cut(part, "="); ok {
			out[k] = v
		} else if part != "" {
			out[def] = part
		}
	}
	return out
}
