package capacity

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
)

// bridges are what a VM of this node can be plugged into, by name. A name too many costs nothing, because PVE refuses
// it; without a name the node would be taken for one that cannot run the VM.
func (s *Source) bridges() []string {
	dir := filepath.Join(s.cfg.SysDir, "class/net")
	entries, err := os.ReadDir(dir)
	s.complain("sys/class/net", err)
	_, err = os.Stat(filepath.Join(dir, "ovs-system"))
	vswitch := err == nil
	var names []string
	for _, e := range entries {
		if bridge(filepath.Join(dir, e.Name()), vswitch) {
			names = append(names, e.Name())
		}
	}
	return most(names)
}

var (
	// usual is what PVE calls a bridge unless somebody wants another name.
	usual = regexp.MustCompile(`^vmbr[0-9]+$`)
	// firewall is a bridge that PVE makes for one NIC of a guest (PVE::Network). There may be hundreds.
	firewall = regexp.MustCompile(`^fwbr[0-9]+i[0-9]+$`)
)

// bridge tells from the directory of a network device whether it is one of Linux's bridges, as the networks of SDN are
// too, or may be one of Open vSwitch, which has no mark of its own there.
func bridge(dir string, vswitch bool) bool {
	switch name := filepath.Base(dir); {
	case firewall.MatchString(name), name == "ovs-system":
		return false
	case usual.MatchString(name), has(dir, "bridge"):
		return true
	}
	return vswitch && internal(dir)
}

// internal says whether a device may be a port of Open vSwitch that is known to the kernel only by its name, as the one
// is that each of its bridges has. It has no hardware, nothing above it, no other end, and no kind.
func internal(dir string) bool {
	for _, mark := range []string{"device", "master", "brport", "bonding", "tun_flags"} {
		if has(dir, mark) {
			return false
		}
	}
	kind, err := os.ReadFile(filepath.Join(dir, "type"))
	if err != nil || string(bytes.TrimSpace(kind)) != "1" { // ARPHRD_ETHER
		return false
	}
	uevent, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil || bytes.Contains(uevent, []byte("DEVTYPE=")) { // vlan, vxlan, bond, ...
		return false
	}
	index, err := os.ReadFile(filepath.Join(dir, "ifindex"))
	link, lerr := os.ReadFile(filepath.Join(dir, "iflink")) // of the other end, for the pairs of containers
	return err == nil && lerr == nil && bytes.Equal(index, link)
}

func has(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}
