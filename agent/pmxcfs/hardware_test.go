package pmxcfs

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHardwareRecorded(t *testing.T) {
	t.Parallel()
	c := conf(t, string(testdata(t, "120.conf")))
	if c.Name() != "linked120" || c.Template() || c.Protection() || c.Lock() != "" || !c.AgentEnabled() ||
		c.SMBIOSUUID() != "880d09f7-f1fc-44c7-a077-eb1c4edb01da" || c.MemoryMiB() != 768 || len(c.Tags()) != 0 {
		t.Errorf("got %q %v %v %q %v %q %d %v", c.Name(), c.Template(), c.Protection(), c.Lock(), c.AgentEnabled(),
			c.SMBIOSUUID(), c.MemoryMiB(), c.Tags())
	}
	if most, vcpus := c.CPUs(); most != 2 || vcpus != 2 {
		t.Errorf("cpus: got %d, %d", most, vcpus)
	}
	want := []Drive{
		{
			Key: "ide2", Volume: "local:120/vm-120-cloudinit.qcow2", Storage: "local", Size: 4 << 20, Format: "qcow2",
			CDROM: true, CloudInit: true, Options: "local:120/vm-120-cloudinit.qcow2,media=cdrom,size=4M",
		},
		{
			Key: "scsi0", Volume: "local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2", Storage: "local",
			Size: 400 << 20, Format: "qcow2", Options: "local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2,size=400M",
		},
	}
	if diff := cmp.Diff(want, c.Drives()); diff != "" {
		t.Errorf("drives (-want +got):\n%s", diff)
	}
	nics := []NIC{{Key: "net0", Model: "virtio", MAC: "BC:24:11:78:31:57", Bridge: "vmbr0", Options: "virtio=BC:24:11:78:31:57,bridge=vmbr0"}}
	if diff := cmp.Diff(nics, c.NICs()); diff != "" {
		t.Errorf("nics (-want +got):\n%s", diff)
	}
	if boot, ok := c.BootDisk(); !ok || boot.Key != "scsi0" {
		t.Errorf("boot disk: got %v, %v", boot, ok)
	}
	if tmpl := conf(t, string(testdata(t, "900.conf"))); !tmpl.Template() || tmpl.Name() != "tmpl900" {
		t.Errorf("900: template %v, name %q", tmpl.Template(), tmpl.Name())
	}
}

func TestCPUs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]int{
		"":                                 {1, 1},
		"cores: 4\n":                       {4, 4},
		"cores: 4\nsockets: 2\nvcpus: 3\n": {8, 3},
		"smp: 4\n":                         {4, 4},
		"smp: 4\nsockets: 2\n":             {2, 2},
		"cores: x\nvcpus: 0\n":             {1, 1},
		"cores: 0\nsockets: 0\n":           {1, 1},
	} {
		if most, vcpus := conf(t, in).CPUs(); most != want[0] || vcpus != want[1] {
			t.Errorf("%q: got %d, %d, want %v", in, most, vcpus, want)
		}
	}
}

func TestPlainKeys(t *testing.T) {
	t.Parallel()
	c := conf(t, "agent: enabled=1,fstrim_cloned_disks=1\nlock: clone\nmemory: current=2048\nprotection: 1\n"+
		"smbios1: base64=1,uuid=880D09F7-F1FC-44C7-A077-EB1C4EDB01DA\ntags: b;a,c  d\ntemplate: no\n")
	if !c.AgentEnabled() || c.Lock() != "clone" || c.MemoryMiB() != 2048 || !c.Protection() || c.Template() ||
		c.SMBIOSUUID() != "880d09f7-f1fc-44c7-a077-eb1c4edb01da" || !slices.Equal(c.Tags(), []string{"b", "a", "c", "d"}) {
		t.Errorf("got %v %q %d %v %v %q %v", c.AgentEnabled(), c.Lock(), c.MemoryMiB(), c.Protection(), c.Template(), c.SMBIOSUUID(), c.Tags())
	}
	for in, want := range map[string]bool{"1": true, "0": false, "1,type=isa": true, "type=isa": false, "enabled=0": false, "on": true} {
		if got := conf(t, "agent: "+in).AgentEnabled(); got != want {
			t.Errorf("agent: %s: got %v", in, got)
		}
	}
	for in, want := range map[string]int64{"": 512, "memory: 16\n": 16, "memory: x\n": 512, "memory: -1\n": 512} {
		if got := conf(t, in).MemoryMiB(); got != want {
			t.Errorf("%q: got %d", in, got)
		}
	}
}

func TestDrives(t *testing.T) {
	t.Parallel()
	c := conf(t, "virtio1: lvm:vm-1-disk-3,format=raw,size=1.5G\nscsi10: a:1\nscsi2: a:2\nscsi2: a:3\nscsi31: no\nscsi01: no\n"+
		"ide0: none,media=cdrom\nide1: nfs:iso/debian.iso,media=cdrom,size=600M\nide3: zfs:vm-1-cloudinit,media=cdrom\n"+
		"sata0: /dev/disk/by-id/ata-X:1,size=1T\nefidisk0: lvm:vm-1-disk-1,size=4M\ntpmstate0: lvm:vm-1-disk-2,size=4M\n"+
		"unused1: lvm:vm-1-disk-9\nunused0: file=d:1/vm-1-disk-8.vmdk\nscsihw: virtio-scsi-pci\n")
	type row struct {
		Key, Storage, Format string
		Size                 int64
		CD, CI, Disk         bool
	}
	var got []row
	for _, d := range append(c.Drives(), c.Unused()...) {
		got = append(got, row{d.Key, d.Storage, d.Format, d.Size, d.CDROM, d.CloudInit, d.Disk()})
	}
	want := []row{
		{"ide0", "", "", 0, true, false, false},
		{"ide1", "nfs", "", 600 << 20, true, false, false},
		{"ide3", "zfs", "", 0, true, true, false},
		{"scsi2", "a", "", 0, false, false, true},
		{"scsi10", "a", "", 0, false, false, true},
		{"virtio1", "lvm", "raw", 3 << 29, false, false, true},
		{"sata0", "", "", 1 << 40, false, false, true},
		{"efidisk0", "lvm", "", 4 << 20, false, false, false},
		{"tpmstate0", "lvm", "", 4 << 20, false, false, false},
		{"unused0", "d", "vmdk", 0, false, false, false},
		{"unused1", "lvm", "", 0, false, false, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("drives (-want +got):\n%s", diff)
	}
	if d := c.Drives()[3]; d.Volume != "a:3" {
		t.Errorf("the later of two lines counts: got %q", d.Volume)
	}
}

func TestCloudInitVolume(t *testing.T) {
	t.Parallel()
	for volume, want := range map[string]bool{
		"local:120/vm-120-cloudinit.qcow2": true, "zfs:vm-1-cloudinit": true, "rbd:cloudinit": true, "lvm:vm-1-cloudinit.raw": true,
		"cloudinit": false, "a:vm-1-cloudinit.iso": false, "a:vm-1-disk-0": false, "a:my-cloudinit": false, "": false,
	} {
		if got := cloudInitVolume(volume); got != want {
			t.Errorf("%q: got %v", volume, got)
		}
	}
}

func TestBootDisk(t *testing.T) {
	t.Parallel()
	drives := "ide2: none,media=cdrom\nscsi0: a:1\nscsi1: a:2\nvirtio0: a:3\nefidisk0: a:4\n"
	for in, want := range map[string]string{
		"boot: order=ide2;net0;scsi1;scsi0\n": "scsi1",
		"boot: order=net0\n":                  "",
		"boot: order=efidisk0;ide2\n":         "",
		"boot: c\nbootdisk: virtio0\n":        "virtio0",
		"boot: legacy=cdn\nbootdisk: scsi1\n": "scsi1",
		"bootdisk: sata3\n":                   "",
		"boot: cdn\n":                         "scsi0",
		"":                                    "scsi0",
	} {
		got, ok := conf(t, drives+in).BootDisk()
		if got.Key != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got.Key, ok, want)
		}
	}
	if d, ok := conf(t, "name: x\n").BootDisk(); ok {
		t.Errorf("no disks: got %v", d)
	}
}

func TestNICs(t *testing.T) {
	t.Parallel()
	c := conf(t, "net10: virtio=AA:00:00:00:00:01,bridge=vmbr1,tag=120,firewall=1\nnet2: e1000,bridge=vmbr0\n"+
		"net0: model=vmxnet3,macaddr=AA:00:00:00:00:02\nnet32: virtio\nnetx: virtio\nnet1: e1000-82540em=AA:00:00:00:00:03,tag=x\n")
	var got []NIC
	for _, n := range c.NICs() {
		n.Options = ""
		got = append(got, n)
	}
	want := []NIC{
		{Key: "net0", Model: "vmxnet3", MAC: "AA:00:00:00:00:02"},
		{Key: "net1", Model: "e1000-82540em", MAC: "AA:00:00:00:00:03"},
		{Key: "net2", Model: "e1000", Bridge: "vmbr0"},
		{Key: "net10", Model: "virtio", MAC: "AA:00:00:00:00:01", Bridge: "vmbr1", VLAN: 120},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nics (-want +got):\n%s", diff)
	}
	if v, ok := c.NICs()[3].Options.Get("firewall"); !ok || v != "1" {
		t.Errorf("firewall: got %q, %v", v, ok)
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"400M": 400 << 20, "32G": 32 << 30, "528K": 528 << 10, "1T": 1 << 40, "1.5G": 3 << 29, "1048576": 1 << 20, "0": 0,
		"": 0, "G": 0, "4MB": 0, "4GG": 0, "-1G": 0, "1e3": 0, "0x10": 0, "1_0": 0, "+1": 0, "inf": 0, "1..2": 0, ".": 0,
		"9223372036854775807": 1<<63 - 1, "9223372036854775808": 0, "8388608T": 0, "8388607T": 8388607 << 40, "9e30T": 0, "99999999.5T": 0,
	} {
		if got := ParseSize(in); got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}
