package plan

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

func conf(t *testing.T, text string) *pmxcfs.Conf {
	t.Helper()
	c, err := pmxcfs.ParseConf("test.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPlanHardware(t *testing.T) {
	hot := &spec.PerformanceProfile{CPUHotAddEnabled: true, MemoryHotAddEnabled: true}
	for name, tc := range map[string]struct {
		class  spec.Class
		source string
		host   int
		want   Values
	}{
		"plain": {
			spec.Class{CPU: 2, MemoryMiB: 4096},
			"", 16,
			Values{"sockets": "1", "cores": "2", "vcpus": "2", "memory": "4096", "hotplug": "disk,network,usb"},
		},
		"head-room is four times, memory stands on the ladder": {
			spec.Class{CPU: 2, MemoryMiB: 3000, PerformanceProfile: hot},
			"", 16,
			Values{"sockets": "1", "cores": "8", "vcpus": "2", "memory": "3072", "numa": "1", "hotplug": "cpu,disk,memory,network,usb"},
		},
		"head-room ends at the host's CPUs": {
			spec.Class{CPU: 6, MemoryMiB: 512, PerformanceProfile: &spec.PerformanceProfile{CPUHotAddEnabled: true}},
			"", 8,
			Values{"sockets": "1", "cores": "8", "vcpus": "6", "memory": "512", "hotplug": "cpu,disk,network,usb"},
		},
		"head-room ends at 64": {
			spec.Class{CPU: 20, MemoryMiB: 512, PerformanceProfile: &spec.PerformanceProfile{CPUHotAddEnabled: true}},
			"", 256,
			Values{"sockets": "1", "cores": "64", "vcpus": "20", "memory": "512", "hotplug": "cpu,disk,network,usb"},
		},
		"more than 64 is granted without head-room": {
			spec.Class{CPU: 80, MemoryMiB: 512, PerformanceProfile: &spec.PerformanceProfile{CPUHotAddEnabled: true}},
			"", 256,
			Values{"sockets": "1", "cores": "80", "vcpus": "80", "memory": "512", "hotplug": "cpu,disk,network,usb"},
		},
		"an unknown host does not bound": {
			spec.Class{CPU: 4, MemoryMiB: 512, PerformanceProfile: &spec.PerformanceProfile{CPUHotAddEnabled: true}},
			"", 0,
			Values{"sockets": "1", "cores": "16", "vcpus": "4", "memory": "512", "hotplug": "cpu,disk,network,usb"},
		},
		"memory hot-add stays off under 1 GiB": {
			spec.Class{CPU: 1, MemoryMiB: 512, PerformanceProfile: &spec.PerformanceProfile{MemoryHotAddEnabled: true}},
			"", 16,
			Values{"sockets": "1", "cores": "1", "vcpus": "1", "memory": "512", "hotplug": "disk,network,usb"},
		},
		"the template's memory hot-plug is taken out, the rest kept": {
			spec.Class{CPU: 1, MemoryMiB: 512},
			"hotplug: memory,cpu,network,cloudinit\nballoon: 1024\n", 16,
			Values{"sockets": "1", "cores": "1", "vcpus": "1", "memory": "512", "hotplug": "cloudinit,cpu,network", "balloon": "512"},
		},
		"hot-plug off stays off": {
			spec.Class{CPU: 1, MemoryMiB: 512},
			"hotplug: 0\n", 16,
			Values{"sockets": "1", "cores": "1", "vcpus": "1", "memory": "512", "hotplug": "0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Hardware(tc.class, conf(t, tc.source), Site{CPUs: tc.host})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestPlanHardwareRefusesMoreThanTheHostHas(t *testing.T) {
	_, err := Hardware(spec.Class{CPU: 32, MemoryMiB: 512}, conf(t, ""), Site{CPUs: 16})
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "32 vCPUs asked") || !strings.Contains(err.Error(), "16 CPUs") {
		t.Errorf("got %v", err)
	}
}

// TestLadder has the sizes of facts.md section 2: 1024, then 32 steps of 512, 32 of 1024, and so on.
func TestLadder(t *testing.T) {
	for in, want := range map[int]int{
		1024: 1024, 1025: 1536, 1536: 1536, 4000: 4096, 17408: 17408, 17409: 18432, 50176: 50176, 50177: 52224,
	} {
		if got := onLadder(in); got != want {
			t.Errorf("%d MiB becomes %d, want %d", in, got, want)
		}
	}
}

func TestPlanGrowth(t *testing.T) {
	source := conf(t, "boot: order=ide2;scsi0\nide2: local:iso/x.iso,media=cdrom\nscsi0: local:900/base-900-disk-0.qcow2,size=2252M\n")
	for size, want := range map[int]Growth{0: {}, 2: {}, 3: {Disk: "scsi0", GiB: 3}, 40: {Disk: "scsi0", GiB: 40}} {
		got, err := RootDisk(spec.Class{DiskDefaults: &spec.DiskDefaults{SizeGiB: size}}, source)
		if err != nil || got != want {
			t.Errorf("%d GiB: %+v, err %v, want %+v", size, got, err, want)
		}
	}
	if got, err := RootDisk(spec.Class{}, source); err != nil || got != (Growth{}) {
		t.Errorf("no defaults: %+v, err %v", got, err)
	}
	if _, err := RootDisk(spec.Class{}, conf(t, "name: empty\n")); !fault.Is(err, fault.Precondition) {
		t.Errorf("a template without a disk: %v", err)
	}
}

func TestPlanCloudInit(t *testing.T) {
	for name, tc := range map[string]struct{ source, key, storage string }{
		"there already": {"scsi0: local:900/d.qcow2,size=1G\nide2: local:900/vm-900-cloudinit.qcow2,media=cdrom\n", "", ""},
		"first choice":  {"scsi0: lvm:base-900-disk-0,size=1G\n", "ide2", "lvm"},
		"ide2 is a CD":  {"scsi0: lvm:base-900-disk-0,size=1G\nide2: none,media=cdrom\n", "ide0", "lvm"},
	} {
		key, storage, err := CloudInitDrive(conf(t, tc.source), "")
		if err != nil || key != tc.key || storage != tc.storage {
			t.Errorf("%s: %q on %q, err %v, want %q on %q", name, key, storage, err, tc.key, tc.storage)
		}
	}
}

func TestWithUUIDKeepsTheRest(t *testing.T) {
	for in, want := range map[string]string{
		"":         "uuid=new",
		"uuid=old": "uuid=new",
		"base64=1,uuid=old,manufacturer=QUNNRQ==": "uuid=new,base64=1,manufacturer=QUNNRQ==",
	} {
		if got := WithUUID(in, "new"); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestCICustomMerges(t *testing.T) {
	got := CICustom("user=local:snippets/old.yaml,network=local:snippets/net.yaml", map[string]string{"user": "local:snippets/new.yaml"})
	if want := "network=local:snippets/net.yaml,user=local:snippets/new.yaml"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
