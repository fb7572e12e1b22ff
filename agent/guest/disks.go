package guest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/snapname"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// DiskInfo is one disk of a VM, as it is or as it was when a snapshot was taken.
type DiskInfo struct {
	Key          string // scsi0, unused0, ...
	Volume       string // local:100/vm-100-disk-0.qcow2
	Format       string // raw, qcow2, ...
	VirtualBytes int64  // as the guest sees it; 0 if nobody tells
	ActualBytes  int64  // on the storage; 0 if it does not tell, and for a snapshot, of which none tells
	Bootable     bool   // is in the boot order
	Backing      string // the volume that a linked clone is based on
	Snapshots    []string
	Metadata     map[string]string // for people
}

// snapshotEntry is a snapshot in the metadata of a disk, as JSON.
type snapshotEntry struct {
	ID     string `json:"id"`               // PVE's name
	Name   string `json:"name"`             // as it was asked for
	Parent string `json:"parent,omitempty"` // id of the one it was taken after
	Time   string `json:"time,omitempty"`   // RFC 3339
	Memory bool   `json:"memory"`
	State  string `json:"state,omitempty"` // prepare or delete: not whole
}

// DiskInfo describes a disk of a VM of this node: the one with that key, serial number or volume, the boot disk for "".
// With a snapshot it is the disk as it was then.
func (g *Guests) DiskInfo(ctx context.Context, id record.ID, disk, snapshot string) (DiskInfo, error) {
	conf, id, err := g.snapshotted(ctx, id)
	if err != nil {
		return DiskInfo{}, err
	}
	section := conf.Section
	if snapshot != "" {
		s, ok := findSnapshot(conf, snapshot)
		if !ok {
			return DiskInfo{}, fault.New(fault.NotFound, "disk %s of VM %s: it has no snapshot %s", disk, id, snapshot)
		}
		section, snapshot = s.Section, s.Name
	}
	d, err := findDisk(section, disk)
	if err != nil {
		return DiskInfo{}, fault.New(fault.NotFound, "VM %s: %w", id, err)
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return DiskInfo{}, fault.New(fault.Precondition, "disk %s of VM %s: %w", d.Key, id, err)
	}
	info := diskInfo(conf, section, d, world.Storages)
	if snapshot != "" {
		info.Metadata["snapshot"] = snapshot
	}
	return info, g.askStorage(ctx, id, &info, d.Storage, snapshot == "")
}

// findDisk returns the disk that a client means. CD and cloud-init drives are none.
func findDisk(s pmxcfs.Section, want string) (pmxcfs.Drive, error) {
	if want == "" {
		if d, ok := s.BootDisk(); ok {
			return d, nil
		}
		return pmxcfs.Drive{}, fmt.Errorf("it boots from no disk (boot: %s); name one of %s", valueOf(s, "boot"), diskKeys(s))
	}
	disks := disksOf(s)
	for _, means := range []func(pmxcfs.Drive) bool{
		func(d pmxcfs.Drive) bool { return d.Key == want },
		func(d pmxcfs.Drive) bool { return d.Volume == want },
		func(d pmxcfs.Drive) bool { serial, _ := d.Options.Get("serial"); return serial == want },
	} {
		if i := slices.IndexFunc(disks, means); i >= 0 {
			return disks[i], nil
		}
	}
	return pmxcfs.Drive{}, fmt.Errorf("it has no disk %q; it has %s", want, diskKeys(s))
}

// disksOf lists what holds data of a VM: its disks, also the EFI and TPM stores, and volumes that are not attached.
func disksOf(s pmxcfs.Section) []pmxcfs.Drive {
	return slices.DeleteFunc(append(s.Drives(), s.Unused()...), func(d pmxcfs.Drive) bool { return d.CDROM || d.CloudInit })
}

func diskKeys(s pmxcfs.Section) string {
	var keys []string
	for _, d := range disksOf(s) {
		keys = append(keys, d.Key)
	}
	if len(keys) == 0 {
		return "no disks"
	}
	return strings.Join(keys, ", ")
}

func valueOf(s pmxcfs.Section, key string) string {
	v, _ := s.Get(key)
	return v
}

// diskInfo is what the config tells of a disk.
func diskInfo(conf *pmxcfs.Conf, s pmxcfs.Section, d pmxcfs.Drive, storages pmxcfs.Storages) DiskInfo {
	info := DiskInfo{
		Key: d.Key, Volume: d.Volume, Format: d.Format, VirtualBytes: d.Size, Bootable: bootable(s, d.Key),
		Backing: backing(d.Volume), Metadata: map[string]string{},
	}
	info.note("vm", conf.Name())
	if storage, ok := storages.Get(d.Storage); ok {
		info.note("storage", storage.ID)
		info.note("storage_type", storage.Type)
		if info.Format == "" {
			info.Format = storage.Format(d.Volume)
		}
	}
	serial, _ := d.Options.Get("serial")
	info.note("serial", serial)
	tree := snapshotTree(conf)
	for _, e := range tree {
		if s, _ := conf.Snapshot(e.ID); slices.ContainsFunc(s.Drives(), func(x pmxcfs.Drive) bool { return x.Volume == d.Volume }) {
			info.Snapshots = append(info.Snapshots, e.ID)
		}
	}
	if len(tree) > 0 {
		if raw, err := json.Marshal(tree); err == nil { // strings and booleans always encode
			info.note("snapshot_tree", string(raw))
		}
		info.note("current_snapshot", valueOf(conf.Section, "parent"))
	}
	return info
}

// note adds something to the metadata, if there is something to say.
func (i *DiskInfo) note(key, value string) {
	if value != "" {
		i.Metadata[key] = value
	}
}

// snapshotTree lists the snapshots of a VM, oldest first. Each names its parent.
func snapshotTree(conf *pmxcfs.Conf) []snapshotEntry {
	snaps := conf.Snapshots()
	slices.SortStableFunc(snaps, func(a, b pmxcfs.Snapshot) int {
		return cmp.Or(cmp.Compare(a.Time(), b.Time()), cmp.Compare(a.Name, b.Name))
	})
	tree := make([]snapshotEntry, len(snaps))
	for i, s := range snaps {
		tree[i] = snapshotEntry{ID: s.Name, Name: snapname.Decode(s.Name, s.Description()), Parent: s.Parent(), Memory: s.Memory(), State: s.State()}
		if at := s.Time(); at > 0 {
			tree[i].Time = time.Unix(at, 0).UTC().Format(time.RFC3339)
		}
	}
	return tree
}

// bootable reports whether a VM may boot from a disk: it is in the boot order or, where there is none, the first one.
func bootable(s pmxcfs.Section, key string) bool {
	if order, ok := pmxcfs.Props(valueOf(s, "boot")).Get("order"); ok {
		return slices.Contains(strings.Split(order, ";"), key)
	}
	boot, ok := s.BootDisk()
	return ok && boot.Key == key
}

// backing returns the volume that a linked clone is based on, as its own name tells: <storage>:<base>/<volume>, with
// directories in front of both on storages of files.
func backing(volume string) string {
	storage, name, ok := strings.Cut(volume, ":")
	if !ok {
		return ""
	}
	parts := strings.Split(name, "/")
	if n := len(parts) / 2; len(parts)%2 == 0 && strings.HasPrefix(parts[n-1], "base-") {
		return storage + ":" + strings.Join(parts[:n], "/")
	}
	return ""
}

// askStorage adds what the storage tells of a volume. What the config tells has to do if it cannot be asked. Of a
// snapshot no storage tells its size, and that of the disk may be another one by now.
func (g *Guests) askStorage(ctx context.Context, id record.ID, info *DiskInfo, storage string, current bool) error {
	if storage == "" {
		return nil
	}
	vols, err := g.cfg.PVE.Content(ctx, g.cfg.Node, storage, pve.ContentQuery{Content: "images", VMID: id.VMID})
	if err != nil && info.VirtualBytes == 0 {
		return explain(fmt.Sprintf("disk %s of VM %s: ask storage %s", info.Key, id, storage), err)
	}
	if err != nil {
		info.note("storage_error", err.Error())
		return nil
	}
	i := slices.IndexFunc(vols, func(v pve.Volume) bool { return v.VolID == info.Volume })
	if i < 0 {
		info.note("storage_error", "the storage does not list this volume")
		return nil
	}
	v := vols[i]
	info.Format = cmp.Or(v.Format, info.Format)
	info.Backing = cmp.Or(info.Backing, v.Parent)
	if current {
		info.VirtualBytes, info.ActualBytes = cmp.Or(int64(v.Size), info.VirtualBytes), int64(v.Used)
	}
	info.VirtualBytes = cmp.Or(info.VirtualBytes, int64(v.Size))
	return nil
}
