package guest

import (
	"fmt"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// wholeStorages are the types of storage that take snapshots of any volume by themselves.
var wholeStorages = map[string]bool{"lvmthin": true, "zfspool": true, "zfs": true, "rbd": true}

// noSnapshots are the types of storage that take none at all.
var noSnapshots = map[string]bool{"iscsi": true, "iscsidirect": true}

// snapshotBlockers says of each disk that cannot be snapshot why not. It knows the types of storage that PVE brings;
// of others PVE is asked.
func snapshotBlockers(vmid int, conf *pmxcfs.Conf, storages pmxcfs.Storages) []string {
	var no []string
	for _, d := range conf.Drives() {
		if d.CDROM {
			continue // also the cloud-init drive: PVE leaves them out
		}
		if why := notSnapshotable(vmid, d, storages); why != "" {
			no = append(no, fmt.Sprintf("%s (%s) %s", d.Key, d.Volume, why))
		}
	}
	return no
}

// notSnapshotable says why a disk cannot be snapshot, "" if nothing is known against it.
func notSnapshotable(vmid int, d pmxcfs.Drive, storages pmxcfs.Storages) string {
	if d.Storage == "" {
		return "is not on a storage of PVE"
	}
	s, ok := storages.Get(d.Storage)
	if !ok {
		return ""
	}
	format := d.Format
	if format == "" {
		format = s.Format(d.Volume)
	}
	switch {
	case wholeStorages[s.Type], format == "qcow2", s.Type == "btrfs" && format == "raw":
		return ""
	case noSnapshots[s.Type]:
		return fmt.Sprintf("is on storage %s, and type %s takes no snapshots", s.ID, s.Type)
	case s.Type == "lvm":
		return fmt.Sprintf("is raw on storage %s of type lvm, which takes no snapshots of raw volumes; move it to one that does, such as lvmthin", s.ID)
	case s.Path == "" && s.Type != "glusterfs":
		return ""
	case strings.HasPrefix(d.Key, "tpmstate"):
		return fmt.Sprintf("is the TPM's state, a %s file on storage %s of type %s, which takes snapshots of qcow2 files only; with the VM off, move it to a storage that takes any: qm disk move %d %s <storage> --delete 1",
			format, s.ID, s.Type, vmid, d.Key)
	default:
		return fmt.Sprintf("is a %s file on storage %s of type %s, which takes snapshots of qcow2 files only; make it one with: qm disk move %d %s %s --format qcow2 --delete 1",
			format, s.ID, s.Type, vmid, d.Key, s.ID)
	}
}

// diskText names the disks of a VM and where they are.
func diskText(conf *pmxcfs.Conf) string {
	var disks []string
	for _, d := range conf.Drives() {
		if !d.CDROM {
			disks = append(disks, d.Key+" ("+d.Volume+")")
		}
	}
	return strings.Join(disks, ", ")
}
