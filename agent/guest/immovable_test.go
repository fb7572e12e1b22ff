package guest

import (
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

const immovableStorages = `dir: local
	path /var/lib/vz
	content iso,images
zfspool: zfs
	pool tank
dir: chain
	path /chain
	content images
	snapshot-as-volume-chain 1
lvmthin: thin
	vgname pve
	thinpool data
iscsidirect: lun
	portal 192.0.2.1
nfs: nfs
	server 192.0.2.2
	export /x
	path /mnt/x
	content iso,images
`

func TestImmovable(t *testing.T) {
	storages, err := pmxcfs.ParseStorages("storage.cfg", []byte(immovableStorages))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		conf    string
		on, off string // beginnings of why not, while it runs and while it does not
	}{
		{conf: "scsi0: local:100/vm-100-disk-0.qcow2,size=8G\nide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\nnet0: virtio=AA:BB:CC:00:00:01,bridge=vmbr0"},
		{conf: "template: 1", on: "it is a template", off: "it is a template"},
		{conf: "hostpci0: 0000:01:00.0", on: "it uses a device or feature of its host (hostpci0)", off: "it uses a device"},
		{conf: "hostpci0: mapping=gpu"},
		{conf: "usb0: spice,usb3=1\nusb1: host=spice\nserial0: socket"},
		{conf: "usb0: host=1234:5678", on: "it uses a device or feature of its host (usb0)", off: "it uses a device"},
		{conf: "usb1: mapping=stick", on: "it uses a device or feature of its host (usb1)"},
		{conf: "serial0: /dev/ttyS0", on: "it uses a device or feature of its host (serial0)", off: "it uses"},
		{conf: "parallel0: /dev/parport0", on: "it uses", off: "it uses"},
		{conf: "virtiofs0: dirid=share", on: "it uses a device or feature of its host (virtiofs0)"},
		{conf: "amd-sev: type=std", on: "it uses a device or feature of its host (amd-sev)"},
		{conf: "ivshmem: size=32", on: "it uses", off: "it uses"},
		{conf: "ide2: none,media=cdrom"},
		{conf: "ide2: cdrom,media=cdrom", on: "ide2 is the CD drive of its host", off: "ide2 is"},
		{conf: "ide2: local:iso/x.iso,media=cdrom", on: "ide2 has a CD image that only its host has (local:iso/x.iso)", off: "ide2 has"},
		{conf: "ide2: nfs:iso/x.iso,media=cdrom"},
		{conf: "scsi1: /dev/disk/by-id/x", on: "scsi1 is /dev/disk/by-id/x of its host", off: "scsi1 is"},
		{conf: "scsi0: gone:vm-100-disk-0", on: "scsi0 is on storage gone, which does not exist", off: "scsi0 is"},
		{conf: "scsi0: lun:0.0.0.scsi-1", on: "", off: ""}, // iSCSI is shared
		{conf: "scsi0: local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2", on: "scsi0 is a linked clone on storage local", off: "scsi0 is a linked clone"},
		{conf: "scsi0: zfs:base-9000-disk-0/vm-100-disk-0", on: "scsi0 is a linked clone on storage zfs", off: "scsi0 is a linked clone"},
		{conf: "scsi0: nfs:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2"},
		{conf: "scsi0: thin:vm-100-disk-0\nunused0: local:9000/base-9000-disk-0.raw/100/vm-100-disk-1.qcow2", on: "unused0 is a linked clone", off: "unused0"},
		{conf: "scsi0: zfs:vm-100-disk-0\n[before]\nscsi0: zfs:vm-100-disk-0", on: "its snapshot before is on storage zfs, which is not shared"},
		{conf: "scsi0: nfs:100/vm-100-disk-0.qcow2\n[before]\nscsi0: nfs:100/vm-100-disk-0.qcow2"},
		{conf: "scsi0: local:100/vm-100-disk-0.qcow2\n[before]\nscsi0: local:100/vm-100-disk-0.qcow2", on: "its snapshot before"},
		{conf: "scsi0: chain:100/vm-100-disk-0.qcow2\n[before]\nscsi0: chain:100/vm-100-disk-0.qcow2", on: "its snapshot", off: "its snapshot before is on storage chain, whose snapshots"},
		{conf: "scsi0: thin:vm-100-disk-0\n[before]\nscsi0: thin:vm-100-disk-0", on: "its snapshot", off: "its snapshot before is on storage thin, whose snapshots"},
	} {
		conf, err := pmxcfs.ParseConf("100.conf", []byte(test.conf+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		for running, want := range map[bool]string{true: test.on, false: test.off} {
			if got := Immovable(conf, storages, running); (got == "") != (want == "") || !strings.HasPrefix(got, want) {
				t.Errorf("%q, running %v: %q, want %q", test.conf, running, got, want)
			}
		}
	}
}

// TestComplaint reads logs of failed migrations as PVE writes them.
func TestComplaint(t *testing.T) {
	for log, want := range map[string]string{
		"":                        "",
		"starting|no reason here": "",
		"2026-11-22 19:00:00 starting migration|2026-11-22 19:00:01 ERROR: migration aborted (duration 00:00:01): Can't connect to destination address using public key|TASK ERROR: migration aborted": "Can't connect to destination address using public key",
		"2026-11-22 19:00:01 ERROR: online migrate failure - aborting|2026-11-22 19:00:02 ERROR: migration finished with problems (duration 00:00:04)":                                                 "online migrate failure - aborting",
	} {
		if got := complaint(strings.Split(log, "|")); got != want {
			t.Errorf("%q: %q, want %q", log, got, want)
		}
	}
	err := (&move{migration: migration{ID: "100-aaaaaaaa", Target: "pve2"}}).explain(&pve.TaskError{
		UPID: "UPID:pve1:0000307A:0003F063:6B028FD3:qmigrate:100:root@pam:", ExitStatus: "migration aborted",
		Log: []string{"x ERROR: migration aborted (duration 00:00:01): no space"},
	})
	if !strings.HasPrefix(err.Error(), "move VM 100-aaaaaaaa to node pve2: no space: ") {
		t.Error(err)
	}
}

// TestOlder: seconds are too coarse to tell an earlier move from this one.
func TestOlder(t *testing.T) {
	const first, second = "UPID:pve1:0000307A:0003F063:6B028FD3:qmigrate:100:root@pam:", "UPID:pve1:0000307B:0003F064:6B028FD3:hamigrate:100:root@pam:"
	for _, test := range []struct {
		u, than pve.UPID
		want    bool
	}{{first, second, true}, {second, first, false}, {first, first, false}, {first, "", false}} {
		if older(test.u, test.than) != test.want {
			t.Errorf("%s, %s: %v", test.u, test.than, !test.want)
		}
	}
}
