package image

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestParams: a replica is configured as its template is, and is another machine.
func TestParams(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.put(9000, "pve2", `#from here%3A 100%25
agent: enabled=1,fstrim_cloned_disks=1
bios: ovmf
boot: order=scsi0;net0
ciuser: admin
cores: 2
efidisk0: local-lvm:base-9000-disk-1,size=4M
ide2: local:9000/vm-9000-cloudinit.qcow2,media=cdrom
ide3: local:iso/debian.iso,media=cdrom
ipconfig0: ip=dhcp
lock: backup
memory: 2048
meta: creation-qemu=9.0.0,ctime=1700000000
name: ubuntu
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=7
net1: e1000,bridge=vmbr1,macaddr=BC:24:11:00:00:02
onboot: 1
protection: 1
scsi0: local:9000/base-9000-disk-0.qcow2,discard=on,iothread=1,serial=root,size=2G,ssd=1
scsi1: local-lvm:base-9000-disk-3,size=1G
scsihw: virtio-scsi-single
serial0: socket
smbios1: uuid=`+uuidA+`,manufacturer=QWNtZQ==,base64=1
sshkeys: ssh-ed25519%20AAAA
tags: golden;x
template: 1
tpmstate0: local-lvm:base-9000-disk-2,size=4M,version=v2.0
unused0: local:9000/vm-9000-disk-9.qcow2
vmgenid: 12345678-89ab-cdef-0123-456789abcdef
`)
	l.refresh()
	conf := l.world().VMs[9000].Conf
	target, err := targetOn(l.world(), conf, "pve1")
	l.must(err)
	k := &making{Images: l.Images, memo: memo{Source: source{VMID: 9000}, VMID: 10000, UUID: uuidB, Target: target}}
	for _, d := range copied(conf) {
		format := "raw"
		if d.Key == "scsi0" {
			format = "qcow2"
		}
		k.memo.Disks = append(k.memo.Disks, disk{Key: d.Key, Staged: "local:import/pve-rigaud-10000-" + d.Key + "." + format, Format: format})
	}
	params, err := k.params()
	l.must(err)
	var got strings.Builder
	for _, key := range slices.Sorted(maps.Keys(params)) {
		got.WriteString(key + ": " + params.Get(key) + "\n")
	}
	want := `agent: enabled=1,fstrim_cloned_disks=1
bios: ovmf
boot: order=scsi0;net0
ciuser: admin
cores: 2
description: from here: 100%
efidisk0: local-lvm:0,import-from=local:import/pve-rigaud-10000-efidisk0.raw,efitype=2m,pre-enrolled-keys=0
ide2: local:cloudinit
ide3: none,media=cdrom
ipconfig0: ip=dhcp
memory: 2048
name: ubuntu
net0: virtio,bridge=vmbr0,tag=7
net1: e1000,bridge=vmbr1
scsi0: local:0,import-from=local:import/pve-rigaud-10000-scsi0.qcow2,format=qcow2,discard=on,iothread=1,serial=root,ssd=1
scsi1: local-lvm:0,import-from=local:import/pve-rigaud-10000-scsi1.raw
scsihw: virtio-scsi-single
serial0: socket
smbios1: uuid=` + uuidB + `,manufacturer=QWNtZQ==,base64=1
sshkeys: ssh-ed25519%20AAAA
tags: golden;x
tpmstate0: local-lvm:0,import-from=local:import/pve-rigaud-10000-tpmstate0.raw,version=v2.0
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClones(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.put(9000, "pve1", templateConf(9000, "files", "local", uuidA))
	l.put(9001, "pve1", templateConf(9001, "blocks", "local-lvm", uuidB))
	l.put(9002, "pve1", templateConf(9002, "far", "ceph", uuidC))
	l.put(100, "pve1", "scsi0: local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=2G\n")
	l.put(101, "pve2", "scsi0: local:9000/base-9000-disk-0.qcow2/101/vm-101-disk-0.qcow2,size=2G\n") // of that node's own
	l.put(102, "pve1", "scsi0: local-lvm:base-9001-disk-0/vm-102-disk-0,size=2G\n")
	l.put(103, "pve2", "scsi0: none\n\n[before]\nscsi0: ceph:9002/base-9002-disk-0.qcow2/103/vm-103-disk-0.qcow2,size=2G\n")
	l.put(104, "pve1", "unused0: local:9000/base-9000-disk-0.qcow2/104/vm-104-disk-0.qcow2\n")
	l.put(105, "pve1", "scsi0: local:105/vm-105-disk-0.qcow2,size=2G\n")
	l.refresh()
	for id, want := range map[int][]int{9000: {100, 104}, 9001: {102}, 9002: {103}} {
		if got := clones(l.world(), l.world().VMs[id]); !slices.Equal(got, want) {
			t.Errorf("of %d: %v, want %v", id, got, want)
		}
	}
}
