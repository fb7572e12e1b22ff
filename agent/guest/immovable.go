package guest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// Immovable says in words why PVE would not move a VM to any other node, as far as its config tells; "" if nothing
// speaks against it. What only some nodes lack, such as a storage, is a matter of choosing the node. The rules are those
// of PVE::QemuMigrate and PVE::QemuMigrate::Helpers.
func Immovable(conf *pmxcfs.Conf, storages pmxcfs.Storages, running bool) string {
	if conf.Template() {
		return "it is a template"
	}
	if device := localDevice(conf.Section, running); device != "" {
		return fmt.Sprintf("it uses a device or feature of its host (%s)", device)
	}
	for _, d := range slices.Concat(conf.Drives(), conf.Unused(), conf.Pending().Drives()) {
		if why := boundDrive(d, storages); why != "" {
			return why
		}
	}
	for _, snap := range conf.Snapshots() {
		for _, d := range snap.Drives() {
			if why := boundSnapshot(snap.Name, d, storages, running); why != "" {
				return why
			}
		}
	}
	return ""
}

var (
	ownDevice  = regexp.MustCompile(`^(usb|hostpci|serial|parallel|virtiofs)\d+$`)
	hostBound  = []string{"hostusb", "hostpci", "ivshmem"}
	liveBound  = []string{"amd-sev", "intel-tdx"}
	spiceOrMap = map[string]bool{"usb": true, "hostpci": true, "virtiofs": true}
)

// localDevice is the first key of a config that ties the VM to its host.
func localDevice(conf pmxcfs.Section, running bool) string {
	for _, key := range conf.Keys() {
		value, _ := conf.Get(key)
		if slices.Contains(hostBound, key) || running && slices.Contains(liveBound, key) || ownDevice.MatchString(key) && bound(key, value, running) {
			return key
		}
	}
	return ""
}

// bound reports whether a device ties the VM to its host. One that is mapped may go with a VM that does not run, and a
// PCI device with one that does, if it can.
func bound(key, value string, running bool) bool {
	kind := strings.TrimRight(key, "0123456789")
	if kind == "serial" {
		return value != "socket"
	}
	if !spiceOrMap[kind] {
		return true
	}
	props := pmxcfs.Props(value)
	host, named := props.Get("host")
	if !named {
		host, _ = props.Get("")
	}
	if kind == "usb" && strings.EqualFold(host, "spice") {
		return false
	}
	_, mapped := props.Get("mapping")
	switch kind {
	case "hostpci":
		return !mapped
	case "virtiofs":
		return running
	}
	return !mapped || running
}

// movableTypes are the types of storages that are not shared from which PVE copies disks to another node.
var movableTypes = []string{"dir", "btrfs", "zfspool", "lvmthin", "lvm"}

// boundDrive says why a drive ties its VM to the node; "" if it does not.
func boundDrive(d pmxcfs.Drive, storages pmxcfs.Storages) string {
	switch {
	case d.Volume == "" || d.Volume == "none":
		return ""
	case d.Volume == "cdrom":
		return fmt.Sprintf("%s is the CD drive of its host: empty it", d.Key)
	case d.Storage == "":
		return fmt.Sprintf("%s is %s of its host", d.Key, d.Volume)
	}
	st, ok := storages.Get(d.Storage)
	switch {
	case !ok:
		return fmt.Sprintf("%s is on storage %s, which does not exist", d.Key, d.Storage)
	case st.Shared:
		return ""
	case d.CDROM && !d.CloudInit:
		return fmt.Sprintf("%s has a CD image that only its host has (%s): empty it", d.Key, d.Volume)
	case !slices.Contains(movableTypes, st.Type):
		return fmt.Sprintf("%s is on storage %s, and PVE moves no disks of its type (%s)", d.Key, d.Storage, st.Type)
	case linkedClone(d.Volume):
		return fmt.Sprintf("%s is a linked clone on storage %s, which is not shared (make it whole: qm disk move VMID %s %s --delete 1)", d.Key, d.Storage, d.Key, d.Storage)
	}
	return ""
}

// linkedClone reports whether a volume is named after one that it needs: base-.../vm-..., with directories in storages
// of files.
func linkedClone(volume string) bool {
	_, path, _ := strings.Cut(volume, ":")
	parts := strings.Split(path, "/")
	return slices.ContainsFunc(parts[:len(parts)-1], func(s string) bool { return strings.HasPrefix(s, "base-") })
}

// boundSnapshot says why a drive of a snapshot ties its VM to the node; "" if it does not.
func boundSnapshot(name string, d pmxcfs.Drive, storages pmxcfs.Storages, running bool) string {
	st, ok := storages.Get(d.Storage)
	switch {
	case !ok || st.Shared || d.CDROM || d.CloudInit:
		return ""
	case running:
		return fmt.Sprintf("its snapshot %s is on storage %s, which is not shared: PVE moves such a VM only while it does not run", name, d.Storage)
	case st.Type == "zfspool", st.Type == "btrfs" && d.Format == "raw", d.Format == "qcow2" && st.Options["snapshot-as-volume-chain"] == "":
		return ""
	}
	return fmt.Sprintf("its snapshot %s is on storage %s, whose snapshots PVE does not move", name, d.Storage)
}
