package kvm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]Spec{
		"usual": {
			VMID: 120, Name: "linked120", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: "/run/qemu-server",
			Sockets: 2, Cores: 1, MemoryMiB: 768, Agent: true, Serial: true, Hostname: "linked120",
			Args: []string{"-kernel", "/boot/vmlinuz", "-append", "console=ttyS0 quiet"},
			Disks: []Disk{
				{Key: "scsi0", Path: "/images/120/vm-120-disk-0.qcow2", Format: "qcow2"},
				{Key: "scsi1", Path: "/images/120/vm-120-disk-1.raw", Format: "raw"},
				{Key: "ide2", Path: "/images/120/vm-120-cloudinit.qcow2", Format: "qcow2", CDROM: true},
				{Key: "ide0", CDROM: true},
			},
			NICs: []NIC{
				{Key: "net0", Model: "virtio", MAC: "BC:24:11:78:31:57", Bridge: "vmbr0"},
				{Key: "net1", Model: "e1000", MAC: "BC:24:11:78:31:58", Bridge: "vmbr1"},
			},
		},
		"bare":         {VMID: 100, Name: "a,b", UUID: "u", RunDir: "/r", BalloonMiB: -1},
		"plugged-cpus": {VMID: 101, Name: "c", UUID: "u", RunDir: "/r", Sockets: 2, Cores: 2, VCPUs: 3, CPUType: "host", Hotplug: []string{"disk", "cpu"}},
		"plugged-memory": {
			VMID: 102, Name: "m", UUID: "u", RunDir: "/r", Sockets: 2, Cores: 2, MemoryMiB: 1024 + 32*512 + 1024,
			NUMA: true, Hotplug: []string{"memory"},
		},
		"all-buses": {VMID: 103, Name: "d", UUID: "u", RunDir: "/r", Disks: []Disk{
			{Key: "virtio15", Path: "/a", Format: "raw", Serial: "data,1"}, {Key: "sata5", Path: "/b", Format: "raw"}, {Key: "ide3", Path: "/c", Format: "raw"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args, err := commandLine(spec.withDefaults(), "")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", name+".args"), strings.Join(args, "\n")+"\n")
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (rewrite with -update): %s", file, diff)
	}
}

func TestCommandLineRefuses(t *testing.T) {
	t.Parallel()
	for want, spec := range map[string]Spec{
		"NUMA needs to be enabled for memory hotplug":                 {MemoryMiB: 2048, Hotplug: []string{"memory"}},
		"minimum memory must be 1024MB":                               {MemoryMiB: 512, NUMA: true, Hotplug: []string{"memory"}},
		"memory size (1025) must be aligned to 512 for hotplugging":   {MemoryMiB: 1025, NUMA: true, Hotplug: []string{"memory"}},
		`disk "scsi31": no such bus and number`:                       {Disks: []Disk{{Key: "scsi31"}}},
		`disk "floppy0": no such bus and number`:                      {Disks: []Disk{{Key: "floppy0"}}},
		`disk "ide": no such bus and number`:                          {Disks: []Disk{{Key: "ide"}}},
		`guest address "fd00::1" is no IPv4 address`:                  {GuestIP: "fd00::1", NICs: []NIC{{Key: "net0"}}},
		`guest address "somewhere" is no IPv4 address`:                {GuestIP: "somewhere", NICs: []NIC{{Key: "net0"}}},
		`memory size (18000) must be aligned to 1024 for hotplugging`: {MemoryMiB: 18000, NUMA: true, Hotplug: []string{"memory"}},
		`disk "virtio0": no such bus and number`:                      {Disks: []Disk{{Key: "virtio0", CDROM: true}}},
	} {
		if _, err := commandLine(spec.withDefaults(), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestUserNetwork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ip   string
		nic  int
		want string
	}{
		{"", 0, "net=10.1.2.0/24,host=10.1.2.2,dns=10.1.2.250,dhcpstart=10.1.2.10"},
		{"", 3, "net=10.1.2.0/24,host=10.1.2.2,dns=10.1.2.250,dhcpstart=10.1.2.13"},
		{"192.0.2.2", 0, "net=192.0.2.0/24,host=192.0.2.3,dns=192.0.2.250,dhcpstart=192.0.2.2"},
		{"192.0.2.2", 1, "net=10.1.2.0/24,host=10.1.2.2,dns=10.1.2.250,dhcpstart=10.1.2.11"},
	} {
		got, err := userNetwork(Spec{VMID: 258, GuestIP: c.ip}, c.nic)
		if err != nil || got != c.want {
			t.Errorf("%q, %d: %s, %v, want %s", c.ip, c.nic, got, err, c.want)
		}
	}
}
