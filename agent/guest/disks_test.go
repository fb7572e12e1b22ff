package guest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

const manyStorages = `dir: local
	path /var/lib/vz
	content images
nfs: nas
	path /mnt/pve/nas
	server x
	export /x
lvmthin: local-lvm
	vgname pve
	thinpool data
lvm: san
	vgname san
zfspool: local-zfs
	pool rpool/data
rbd: ceph
	pool vms
btrfs: b
	path /mnt/b
iscsi: lun
	portal x
	target y
glusterfs: g
	volume v
custom: other
	x y
`

// diskConf has a disk of each kind, and two snapshots.
const diskConf = `#about it
boot: order=scsi0;ide2;net0
ide0: none,media=cdrom
ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom
name: web-01
parent: v1_2
sata0: local-lvm:base-900-disk-1/vm-100-disk-1,size=1536M,serial=data
scsi0: local:900/base-900-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=8G
scsi1: san:vm-100-disk-2,size=4G
unused0: nas:100/vm-100-disk-3.raw
efidisk0: local-zfs:vm-100-disk-4,size=1M

[base-X]
scsi0: local:900/base-900-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=4G
snaptime: 1795330381

[v1_2]
parent: base-X
sata0: local-lvm:base-900-disk-1/vm-100-disk-1,size=1G
scsi0: local:900/base-900-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=4G
snaptime: 1795330382
vmstate: local:100/vm-100-state-v1_2.raw
`

func parsed(t *testing.T, conf string) (*pmxcfs.Conf, pmxcfs.Storages) {
	t.Helper()
	c, err := pmxcfs.ParseConf("100.conf", []byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	s, err := pmxcfs.ParseStorages("storage.cfg", []byte(manyStorages))
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestFindDisk(t *testing.T) {
	conf, _ := parsed(t, diskConf)
	for want, key := range map[string]string{
		"": "scsi0", "scsi1": "scsi1", "data": "sata0", "san:vm-100-disk-2": "scsi1", "efidisk0": "efidisk0", "unused0": "unused0",
		"nas:100/vm-100-disk-3.raw": "unused0", "ide2": "", "ide0": "", "none": "", "scsi9": "", "local:100/vm-100-cloudinit.qcow2": "",
	} {
		d, err := findDisk(conf.Section, want)
		if d.Key != key || (err == nil) != (key != "") {
			t.Errorf("%q is %q, err %v, want %q", want, d.Key, err, key)
		}
		if err != nil && !strings.Contains(err.Error(), "it has sata0, scsi0, scsi1, efidisk0, unused0") && !strings.Contains(err.Error(), "scsi0, scsi1, sata0, efidisk0, unused0") {
			t.Errorf("%q: %v does not say what there is", want, err)
		}
	}
	none, _ := parsed(t, "boot: order=ide2;net0\nide2: none,media=cdrom\n")
	if d, err := findDisk(none.Section, ""); err == nil || !strings.Contains(err.Error(), "boots from no disk") || !strings.Contains(err.Error(), "no disks") {
		t.Errorf("%v, %v", d, err)
	}
}

func TestDiskInfo(t *testing.T) {
	conf, storages := parsed(t, diskConf)
	const tree = `[{"id":"base-X","name":"base-X","time":"2026-11-22T06:53:01Z","memory":false},` +
		`{"id":"v1_2","name":"v1.2","parent":"base-X","time":"2026-11-22T06:53:02Z","memory":true}]`
	more := func(m map[string]string) map[string]string {
		m["vm"], m["snapshot_tree"], m["current_snapshot"] = "web-01", tree, "v1_2"
		return m
	}
	then, _ := conf.Snapshot("v1_2")
	for _, tc := range []struct {
		section pmxcfs.Section
		want    DiskInfo
	}{
		{conf.Section, DiskInfo{
			Key: "scsi0", Volume: "local:900/base-900-disk-0.qcow2/100/vm-100-disk-0.qcow2", Format: "qcow2", VirtualBytes: 8 << 30, Bootable: true,
			Backing: "local:900/base-900-disk-0.qcow2", Snapshots: []string{"base-X", "v1_2"},
			Metadata: more(map[string]string{"storage": "local", "storage_type": "dir"}),
		}},
		{conf.Section, DiskInfo{
			Key: "sata0", Volume: "local-lvm:base-900-disk-1/vm-100-disk-1", Format: "raw", VirtualBytes: 1536 << 20,
			Backing: "local-lvm:base-900-disk-1", Snapshots: []string{"v1_2"},
			Metadata: more(map[string]string{"storage": "local-lvm", "storage_type": "lvmthin", "serial": "data"}),
		}},
		{then.Section, DiskInfo{
			Key: "sata0", Volume: "local-lvm:base-900-disk-1/vm-100-disk-1", Format: "raw", VirtualBytes: 1 << 30,
			Backing: "local-lvm:base-900-disk-1", Snapshots: []string{"v1_2"},
			Metadata: more(map[string]string{"storage": "local-lvm", "storage_type": "lvmthin"}),
		}},
		{conf.Section, DiskInfo{
			Key: "scsi1", Volume: "san:vm-100-disk-2", Format: "raw", VirtualBytes: 4 << 30,
			Metadata: more(map[string]string{"storage": "san", "storage_type": "lvm"}),
		}},
	} {
		d, err := findDisk(tc.section, tc.want.Key)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(tc.want, diskInfo(conf, tc.section, d, storages)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.want.Key, diff)
		}
	}
}

func TestBootable(t *testing.T) {
	for conf, want := range map[string]string{
		"boot: order=scsi1;scsi0\nscsi0: local:1\nscsi1: local:2\nscsi2: local:3\n": "scsi0 scsi1",
		"bootdisk: scsi1\nscsi0: local:1\nscsi1: local:2\n":                         "scsi1",
		"scsi0: local:1\nscsi1: local:2\n":                                          "scsi0",
		"boot: cdn\nbootdisk: scsi1\nscsi1: local:2\n":                              "scsi1",
		"boot: order=net0\nscsi0: local:1\n":                                        "",
	} {
		c, _ := parsed(t, conf)
		var got []string
		for _, d := range disksOf(c.Section) {
			if bootable(c.Section, d.Key) {
				got = append(got, d.Key)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", conf, got, want)
		}
	}
}

func TestBacking(t *testing.T) {
	for volume, want := range map[string]string{
		"local:900/base-900-disk-0.qcow2/100/vm-100-disk-0.qcow2": "local:900/base-900-disk-0.qcow2",
		"ceph:base-900-disk-0/vm-100-disk-0":                      "ceph:base-900-disk-0",
		"local:100/vm-100-disk-0.qcow2":                           "",
		"local-lvm:vm-100-disk-0":                                 "",
		"local:900/base-900-disk-0.qcow2":                         "",
		"local-lvm:base-900-disk-0":                               "",
		"/dev/sdb":                                                "",
		"none":                                                    "",
	} {
		if got := backing(volume); got != want {
			t.Errorf("%s is based on %q, want %q", volume, got, want)
		}
	}
}

// TestSnapshotable: what PVE's storages can do, by their type and the format of the disk.
func TestSnapshotable(t *testing.T) {
	for _, tc := range []struct{ line, why string }{
		{"scsi0: local:100/vm-100-disk-0.qcow2", ""},
		{"scsi0: local:100/vm-100-disk-0.raw", "raw file on storage local of type dir"},
		{"scsi0: local:100/vm-100-disk-0.vmdk", "vmdk file on storage local"},
		{"scsi0: nas:100/vm-100-disk-0.qcow2", ""},
		{"scsi0: nas:100/vm-100-disk-0.raw", "type nfs"},
		{"scsi0: g:100/vm-100-disk-0.raw", "type glusterfs"},
		{"scsi0: b:100/vm-100-disk-0.raw", ""},
		{"scsi0: b:100/vm-100-disk-0.vmdk", "type btrfs"},
		{"scsi0: local-lvm:vm-100-disk-0", ""},
		{"scsi0: local-zfs:vm-100-disk-0", ""},
		{"scsi0: ceph:vm-100-disk-0", ""},
		{"scsi0: san:vm-100-disk-0", "raw on storage san of type lvm"},
		{"scsi0: san:vm-100-disk-0.qcow2", ""}, // from PVE 9 on
		{"scsi0: lun:0.0.0.scsi-x", "type iscsi takes no snapshots"},
		{"scsi0: other:vm-100-disk-0", ""}, // PVE knows
		{"scsi0: gone:vm-100-disk-0", ""},
		{"scsi0: /dev/sdb", "not on a storage"},
		{"tpmstate0: local:100/vm-100-disk-1.raw,size=4M,version=v2.0", "TPM"},
		{"tpmstate0: local-lvm:vm-100-disk-1,size=4M,version=v2.0", ""},
		{"tpmstate0: local:100/vm-100-disk-1.qcow2,size=4M,version=v2.0", ""}, // from PVE 9.1 on
		{"efidisk0: local:100/vm-100-disk-1.raw,size=528K", "efidisk0 (local:100/vm-100-disk-1.raw) is a raw file"},
		{"ide2: local:iso/x.iso,media=cdrom", ""},
		{"ide2: local:100/vm-100-cloudinit.raw,media=cdrom", ""},
		{"unused0: local:100/vm-100-disk-1.raw", ""},
	} {
		conf, storages := parsed(t, tc.line+"\n")
		no := fmt.Sprint(snapshotBlockers(100, conf, storages))
		if tc.why == "" && no != "[]" || !strings.Contains(no, tc.why) {
			t.Errorf("%s: %s, want %q", tc.line, no, tc.why)
		}
	}
}
