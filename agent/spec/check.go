package spec

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// Limits of what a wish may ask for, as the manager's CRDs and PVE's schema have them.
const (
	MaxCPU       = 128
	MinMemoryMiB = 16
	MaxMemoryMiB = 4 << 20 // 4 TiB
	MaxDiskGiB   = 128 << 10
	MaxUserData  = 1 << 20 // bytes; PVE reads no larger snippet
	MaxVLAN      = 4094
)

// nameRE is a DNS-1123 subdomain; PVE's dns-name format accepts every such name.
var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func checkName(p place, name string) error {
	if len(name) > 253 || !nameRE.MatchString(name) {
		return p.err("", "%q is not a DNS-1123 name (lower case letters, digits, '-' and '.')", name)
	}
	return nil
}

func checkData(p place, data []byte) error {
	if len(data) > MaxUserData {
		return p.err("", "%d bytes, at most %d fit", len(data), MaxUserData)
	}
	return nil
}

func (c *Class) check(p place) error {
	unit := ""
	if p.resource {
		unit = " MiB" // the manager wrote a quantity
	}
	return cmp.Or(
		inRange(p, "CPU", c.CPU, 1, MaxCPU, ""),
		inRange(p, "MemoryMiB", c.MemoryMiB, MinMemoryMiB, MaxMemoryMiB, unit),
		c.checkLimits(p, unit),
		c.checkEnums(p),
	)
}

func (c *Class) checkLimits(p place, unit string) error {
	var err error
	if d := c.DiskDefaults; d != nil {
		err = cmp.Or(inRange(p, "DiskDefaults.SizeGiB", d.SizeGiB, 0, MaxDiskGiB, strings.Replace(unit, "M", "G", 1)),
			optional(p, "DiskDefaults.IOPS", d.IOPS, 1, 100_000, ""))
	}
	if l := c.ResourceLimits; l != nil {
		err = cmp.Or(err,
			optional(p, "ResourceLimits.CPULimit", l.CPULimit, 1, 1_000_000, ""),
			optional(p, "ResourceLimits.CPUReservation", l.CPUReservation, 0, 1_000_000, ""),
			optional(p, "ResourceLimits.MemoryLimitMiB", l.MemoryLimitMiB, 0, MaxMemoryMiB, unit),
			optional(p, "ResourceLimits.MemoryReservationMiB", l.MemoryReservationMiB, 0, MaxMemoryMiB, unit),
			optional(p, "ResourceLimits.CPUShares", l.CPUShares, 1, 1_000_000, ""))
	}
	return err
}

func (c *Class) checkEnums(p place) error {
	err := cmp.Or(
		oneOf(p, "Firmware", c.Firmware, "BIOS", "UEFI", "EFI"),
		oneOf(p, "GuestToolsPolicy", c.GuestToolsPolicy, "install", "skip", "upgrade", "uninstall"),
	)
	if d := c.DiskDefaults; d != nil {
		err = cmp.Or(err, oneOf(p, "DiskDefaults.Type", d.Type, diskTypes...))
	}
	if f := c.PerformanceProfile; f != nil {
		err = cmp.Or(err,
			oneOf(p, "PerformanceProfile.LatencySensitivity", f.LatencySensitivity, "low", "normal", "high"),
			oneOf(p, "PerformanceProfile.HyperThreadingPolicy", f.HyperThreadingPolicy, "auto", "prefer", "avoid", "require"))
	}
	if s := c.SecurityProfile; s != nil {
		err = cmp.Or(err,
			oneOf(p, "SecurityProfile.TPMVersion", s.TPMVersion, "1.2", "2.0"),
			oneOf(p, "SecurityProfile.KeyProvider", s.KeyProvider, "standard", "hardware", "external"))
	}
	return err
}

var diskTypes = []string{"thin", "thick", "eagerzeroedthick", "ssd", "hdd", "nvme"}

func (i *Image) check(p place) error {
	if i.Empty() {
		return p.err("", "names no template, path or URL: a VM without a root disk is refused. "+
			"On a VMImage with only an http source add a proxmox source, so that the image is prepared first")
	}
	return i.checkEnums(p)
}

func (i *Image) checkEnums(p place) error {
	return cmp.Or(
		oneOf(p, "Format", i.Format, append([]string{"template"}, imageFormats...)...),
		oneOf(p, "ChecksumType", i.ChecksumType, checksumTypes...),
	)
}

var (
	imageFormats  = []string{"qcow2", "raw", "vmdk", "vhd", "vhdx", "iso", "ova", "ovf"}
	checksumTypes = []string{"md5", "sha1", "sha256", "sha512"}
)

func checkDisks(p place, disks []Disk) error {
	first := map[string]int{}
	for i, d := range disks {
		at := p.item(i)
		if err := cmp.Or(inRange(at, "SizeGiB", d.SizeGiB, 1, MaxDiskGiB, ""), oneOf(at, "Type", d.Type, diskTypes...)); err != nil {
			return err
		}
		if other, taken := first[d.Name]; taken && d.Name != "" {
			return at.err("Name", "%q is also the name of disk %d, and disks are told apart by their names", d.Name, other)
		}
		first[d.Name] = i
	}
	return nil
}

// NICModels are the models of NIC that a request may name: those of the manager, and PVE has them all.
var NICModels = []string{"virtio", "e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "ne2k_pci"}

// macRE is a unicast MAC address; the second digit of a multicast address is odd.
var macRE = regexp.MustCompile(`^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$`)

// checkNetworks checks what makes a NIC. Addresses are checked by whoever renders them.
func checkNetworks(d Dialect, networks []Network) error {
	first := map[string]int{}
	for i, n := range networks {
		at := d.network(i)
		if err := cmp.Or(
			inRange(at, "VLAN", n.VLAN, 0, MaxVLAN, ""),
			oneOf(at, "Model", n.Model, NICModels...),
			oneOf(at, "IPPolicy", n.IPPolicy, "dhcp", "static"),
		); err != nil {
			return err
		}
		if n.MacAddress == "" {
			continue
		}
		if !macRE.MatchString(n.MacAddress) {
			return at.err("MacAddress", "%q is not a unicast MAC address such as 02:00:00:12:34:56", n.MacAddress)
		}
		mac := strings.ToLower(n.MacAddress)
		if other, taken := first[mac]; taken {
			return at.err("MacAddress", "%q is also that of network %d", n.MacAddress, other)
		}
		first[mac] = i
	}
	return nil
}

func inRange(p place, field string, v, low, high int, unit string) error {
	if v < low || v > high {
		return p.err(field, "%d%s is not in %d..%d", v, unit, low, high)
	}
	return nil
}

// optional is inRange for what may be left away.
func optional(p place, field string, v *int, low, high int, unit string) error {
	if v == nil {
		return nil
	}
	return inRange(p, field, *v, low, high, unit)
}

// oneOf checks a field with a closed set of values; empty means unset.
func oneOf(p place, field, value string, allowed ...string) error {
	if value == "" || slices.Contains(allowed, value) {
		return nil
	}
	return p.err(field, "%q is not one of %s", value, strings.Join(allowed, ", "))
}
