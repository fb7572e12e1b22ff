package vmconf_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// recorded is a config of a running PVE 9.2 node: with a snapshot, pending
// changes and deletes, cloud-init and a description of three lines.
const recorded = `#Web server
#<!-- marker%3A {"a"%3A1} -->
#100%25 ok
agent: 1
boot: order=scsi0
cipassword: $5$aLb6Nog6$ZBTPxEyeyOk9lMKY.g2rPWkL9cJSxxR8eUiU7UyQfV/
cores: 1
ide2: local:120/vm-120-cloudinit.qcow2,media=cdrom,size=4M
memory: 768
name: linked120
net0: virtio=BC:24:11:78:31:57,bridge=vmbr0
scsi0: local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2,size=400M
smbios1: uuid=880d09f7-f1fc-44c7-a077-eb1c4edb01da
sockets: 2

[PENDING]
cores: 2
delete: agent,!scsi1
memory: 1024

[special:cloudinit]
searchdomain: lab.test

[alpha]
#first snapshot
#two lines
agent: 1
cores: 1
snaptime: 1795332991
`

func TestRoundTrip(t *testing.T) {
	c := vmconf.Parse([]byte(recorded))
	if diff := cmp.Diff(recorded, string(c.Bytes())); diff != "" {
		t.Errorf("(-read +written):\n%s", diff)
	}
	for got, want := range map[string]string{
		c.Main["description"]:                        "Web server\n<!-- marker: {\"a\":1} -->\n100% ok",
		c.Snapshots["alpha"]["description"]:          "first snapshot\ntwo lines",
		c.Pending["memory"]:                          "1024",
		c.Special["cloudinit"]["searchdomain"]:       "lab.test",
		c.Main.UUID():                                "880d09f7-f1fc-44c7-a077-eb1c4edb01da",
		vmconf.FormatSize(c.Main.Drives()[1].Size()): "400M",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if diff := cmp.Diff(map[string]bool{"agent": false, "scsi1": true}, c.PendingDelete()); diff != "" {
		t.Error(diff)
	}
}

func TestDrive(t *testing.T) {
	for value, want := range map[string]struct {
		out       string
		cd, cloud bool
	}{
		"local:8,format=qcow2,discard=on":                            {"local:8,discard=on,format=qcow2", false, false},
		"file=local:100/vm-100-disk-0.qcow2,size=8G":                 {"local:100/vm-100-disk-0.qcow2,size=8G", false, false},
		"local:cloudinit":                                            {"local:cloudinit", false, true},
		"local:120/vm-120-cloudinit.qcow2,media=cdrom":               {"local:120/vm-120-cloudinit.qcow2,media=cdrom", true, true},
		"none,media=cdrom":                                           {"none,media=cdrom", true, false},
		"local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2":    {"local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2", false, false},
		"local:100/vm-100-disk-0.qcow2,iothread=1,cache=none,size=1": {"local:100/vm-100-disk-0.qcow2,cache=none,iothread=1,size=1", false, false},
	} {
		d := vmconf.ParseDrive("scsi0", value)
		if d.String() != want.out || d.CDROM() != want.cd || d.CloudInit() != want.cloud {
			t.Errorf("%s: %s %v %v, want %+v", value, d, d.CDROM(), d.CloudInit(), want)
		}
	}
}

func TestNIC(t *testing.T) {
	for value, want := range map[string]string{
		"virtio=BC:24:11:78:31:57,bridge=vmbr0,tag=5":                 "virtio=BC:24:11:78:31:57,bridge=vmbr0,tag=5",
		"virtio,bridge=vmbr0,macaddr=BC:24:11:78:31:57":               "virtio=BC:24:11:78:31:57,bridge=vmbr0",
		"model=e1000,macaddr=BC:24:11:78:31:57,firewall=1,bridge=br1": "e1000=BC:24:11:78:31:57,bridge=br1,firewall=1",
		"virtio,bridge=vmbr0":                                         "virtio,bridge=vmbr0",
	} {
		if got := vmconf.ParseNIC("net0", value).String(); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, bytes := range map[string]int64{"8G": 8 << 30, "4M": 4 << 20, "512": 512, "1.5K": 1536, "2T": 2 << 40} {
		if n, err := vmconf.ParseSize(text); err != nil || n != bytes {
			t.Errorf("%s: %d %v", text, n, err)
		}
	}
	for bytes, text := range map[int64]string{8 << 30: "8G", 1536: "1536", 419430400: "400M", 0: "0", 1 << 40: "1T"} {
		if got := vmconf.FormatSize(bytes); got != text {
			t.Errorf("%d: %s, want %s", bytes, got, text)
		}
	}
	if _, err := vmconf.ParseSize("lots"); err == nil {
		t.Error("lots is a size")
	}
}
