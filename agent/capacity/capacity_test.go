package capacity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

const gib = 1 << 30

// vms are in each state that matters to what is promised.
var vms = map[int]string{
	100: "memory: 2048\ncores: 2\nsockets: 2\nvcpus: 1\nname: web\ntags: prod;web\n", // counts if it runs
	101: "memory: 1024\ncores: 1\nname: off\ntags: prod\n",                           // does not run
	102: "memory: 512\ncores: 3\nlock: clone\n",                                      // is being made
	103: "memory: 8192\ncores: 8\nname: golden\ntemplate: 1\n",
}

func TestDigest(t *testing.T) {
	for _, test := range []struct {
		proc string
		want view.Digest
	}{
		{"testdata/zfs", view.Digest{
			MemoryTotal: 65782412 << 10, MemoryFree: 11534336<<10 + 21474836480 - 2105037184,
			MemoryReserved: 2105037184, VCPUs: 3, Load: 1234, PSICPU: 725, PSIMemory: 50, PSIIO: 10000,
		}},
		{"testdata/plain", view.Digest{MemoryTotal: 24684092 << 10, MemoryFree: 24225084 << 10, VCPUs: 2, Load: 15, PSICPU: 1}},
	} {
		t.Run(test.proc, func(t *testing.T) {
			h := newHost(t, test.proc, vms)
			h.running[100], h.flags.cordoned = true, true
			test.want.Quorate, test.want.Cordoned = true, true
			test.want.MemoryPromised, test.want.VCPUsPromised = (2048+512)<<20, 1+3
			s := New(h.cfg)
			if diff := cmp.Diff(test.want, s.Digest()); diff != "" {
				t.Errorf("digest (-want +got):\n%s", diff)
			}
			if h.log.Len() != 0 {
				t.Errorf("complaints about a good tree:\n%s", &h.log)
			}
			h.flags.cordoned, h.flags.draining = false, true
			if d := s.Digest(); d.Cordoned || !d.Draining {
				t.Errorf("flags do not follow: %+v", d)
			}
		})
	}
}

func TestPromisedCountsEachVMOnce(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		making []Making
		want   Size // beside VM 100, which runs, and VM 102, which is locked: clone
	}{
		"nothing is made":                                {},
		"it runs already":                                {making: []Making{{100, Size{gib, 1}}}},
		"it has what its lock says":                      {making: []Making{{102, Size{512 * mib, 3}}}},
		"it will be larger than what it is cloned of":    {making: []Making{{102, Size{8 * gib, 2}}}, want: Size{8*gib - 512*mib, 0}},
		"it will have more CPUs":                         {making: []Making{{102, Size{0, 16}}}, want: Size{0, 13}},
		"it is made, and its config alone says nothing":  {making: []Making{{101, Size{gib, 2}}}, want: Size{gib, 2}},
		"here it has no config; its number is elsewhere": {making: []Making{{200, Size{2 * gib, 4}}}, want: Size{2 * gib, 4}},
		"its number is a container's":                    {making: []Making{{201, Size{2 * gib, 4}}}, want: Size{2 * gib, 4}},
		"it has no config yet":                           {making: []Making{{300, Size{4 * gib, 8}}}, want: Size{4 * gib, 8}},
		"two have no numbers yet":                        {making: []Making{{0, Size{gib, 1}}, {0, Size{2 * gib, 2}}}, want: Size{3 * gib, 3}},
		"one is told twice":                              {making: []Making{{300, Size{gib, 4}}, {300, Size{2 * gib, 2}}}, want: Size{2 * gib, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "testdata/plain", vms)
			h.running[100], h.running[200] = true, true
			h.making = test.making
			d := New(h.cfg).Digest()
			got := Size{d.MemoryPromised - (2048+512)*mib, d.VCPUsPromised - 1 - 3}
			if got != test.want {
				t.Errorf("%+v more is promised, want %+v", got, test.want)
			}
		})
	}
}

func TestContainersTakeMemory(t *testing.T) {
	h := newHost(t, "testdata/plain", nil)
	s := New(h.cfg)
	if d := s.Digest(); d.MemoryPromised != 0 {
		t.Errorf("%d bytes promised without containers", d.MemoryPromised)
	}
	for name, text := range map[string]string{
		"201/memory.max": "1073741824\n", "202/memory.max": "536870912\n", "203/memory.max": "max\n", "204/cgroup.procs": "", "memory.max": "7\n",
		"monitor/memory.max": "7\n", "201/ns/memory.max": "7\n",
	} {
		put(t, filepath.Join(h.cfg.SysDir, "fs/cgroup/lxc", name), text)
	}
	d := s.Digest()
	if d.MemoryPromised != gib+gib/2 || d.VCPUsPromised != 0 {
		t.Errorf("%d bytes and %d vCPUs promised", d.MemoryPromised, d.VCPUsPromised)
	}
	if h.log.Len() != 0 {
		t.Errorf("complaints:\n%s", &h.log)
	}
}

func TestDigestWithoutPVE(t *testing.T) {
	h := newHost(t, "testdata/plain", vms)
	h.running[100] = true
	s := New(h.cfg)
	before := s.Digest()
	h.quorum(0)
	h.look()
	if d := s.Digest(); d.Quorate {
		t.Error("quorate without quorum")
	}
	h.gone = errors.New("transport endpoint is not connected")
	want := before
	want.Quorate = false
	if diff := cmp.Diff(want, s.Digest()); diff != "" {
		t.Errorf("without /etc/pve the promises hold and quorum does not (-want +got):\n%s", diff)
	}
	s.Digest()
	if n := strings.Count(h.log.String(), "not connected"); n != 1 {
		t.Errorf("%d complaints about /etc/pve:\n%s", n, &h.log)
	}
	h.gone = nil
	s.Digest()
	h.gone = errors.New("transport endpoint is not connected")
	s.Digest()
	if n := strings.Count(h.log.String(), "not connected"); n != 2 {
		t.Errorf("%d complaints after it was back and went again", n)
	}
}

// TestBadFiles breaks one file after the other: that value is zero, the others are what they were, and the log says
// which file, once.
func TestBadFiles(t *testing.T) {
	zero := map[string]func(*view.Digest){
		"meminfo":         func(d *view.Digest) { d.MemoryTotal, d.MemoryFree, d.MemoryReserved = 0, 0, 0 },
		"stat":            func(d *view.Digest) { d.VCPUs = 0 },
		"loadavg":         func(d *view.Digest) { d.Load = 0 },
		"pressure/cpu":    func(d *view.Digest) { d.PSICPU = 0 },
		"pressure/memory": func(d *view.Digest) { d.PSIMemory = 0 },
		"pressure/io":     func(d *view.Digest) { d.PSIIO = 0 },
		fileArc:           func(d *view.Digest) { d.MemoryFree, d.MemoryReserved = 11534336<<10, 0 },
	}
	mayMiss := func(name string) bool { return strings.HasPrefix(name, "pressure/") || name == fileArc }
	garbage := map[string]string{
		"missing": "", "empty": "", "garbage": "what is this\n\x00\xff\n", "negative": "some avg10=-1\n-3.0 0 0\nMemTotal: -1 kB\nsize 4 -1\n",
		"cut": "MemTotal:\nsome avg60=1\ncpu\nsize\n", "not a number": "some avg10=NaN\nNaN\nMemTotal: x kB\nc_min 4 x\n",
		"too much": "some avg10=1e300\n1e300\nMemTotal: 99999999999999999999 kB\nsize 4 99999999999999999999\n",
	}
	for name, forget := range zero {
		for what, text := range garbage {
			t.Run(name+" "+what, func(t *testing.T) {
				proc := t.TempDir()
				if err := os.CopyFS(proc, os.DirFS("testdata/zfs")); err != nil {
					t.Fatal(err)
				}
				h := newHost(t, proc, nil)
				s := New(h.cfg)
				want := s.Digest()
				forget(&want)
				path := filepath.Join(proc, name)
				if what == "missing" {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				} else {
					put(t, path, text)
				}
				for range 3 {
					if diff := cmp.Diff(want, s.Digest()); diff != "" {
						t.Fatalf("digest (-want +got):\n%s", diff)
					}
				}
				complaints := 1
				if what == "missing" && mayMiss(name) {
					complaints = 0
				}
				if n := strings.Count(h.log.String(), path); n != complaints || strings.Count(h.log.String(), "\n") != complaints {
					t.Errorf("%d complaints, want %d:\n%s", n, complaints, &h.log)
				}
			})
		}
	}
}

func TestCacheBelowItsLeastIsNotReclaimable(t *testing.T) {
	if a, err := parseArc("arcstats", []byte("c_min 4 100\nsize 4 40\n")); a.reclaimable() != 0 || a.least != 100 || err != nil {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestPressureIsThatOfSome(t *testing.T) {
	if n, err := parsePressure("io", []byte("full avg10=9.00\nsome avg60=3.00 avg10=1.25\n")); n != 125 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestFreeIsNeverMoreThanTotal(t *testing.T) {
	proc := t.TempDir()
	put(t, filepath.Join(proc, "meminfo"), "MemTotal: 100 kB\nMemAvailable: 90 kB\n")
	put(t, filepath.Join(proc, fileArc), "c_min 4 0\nsize 4 99999999\n")
	if d := New(newHost(t, proc, nil).cfg).Digest(); d.MemoryFree != 100<<10 {
		t.Errorf("%d bytes free of %d", d.MemoryFree, d.MemoryTotal)
	}
}

func TestFacts(t *testing.T) {
	h := newHost(t, "testdata/plain", vms)
	h.running[100] = true
	h.sys("class/net/eno1/operstate")
	h.sys("devices/virtual/net/vmbr1/bridge/bridge_id")
	h.sys("class/net/vmbr0/bridge/bridge_id")
	if err := os.Symlink("../../devices/virtual/net/vmbr1", filepath.Join(h.cfg.SysDir, "class/net/vmbr1")); err != nil {
		t.Fatal(err) // as the kernel has them
	}
	h.cfg.API = &api{storages: []pve.Storage{
		{Storage: "nfs", Type: "nfs", Content: "iso", Active: false, Enabled: true, Total: 9, Avail: 9},
		{Storage: "old", Type: "dir", Content: "iso", Active: true, Enabled: false, Total: 9, Avail: 9},
		{Storage: "thin", Type: "lvmthin", Content: "rootdir,images", Active: true, Enabled: true, Total: 100, Avail: 40},
		{Storage: "ceph", Type: "rbd", Content: "images", Active: true, Enabled: true, Shared: true, Total: 10, Avail: -1},
	}}
	s := New(h.cfg)
	s.refresh(t.Context())
	want := view.Facts{
		PVEVersion: "9.1.2",
		Storages: []view.Storage{
			{Name: "ceph", Type: "rbd", Content: []string{"images"}, Shared: true, Total: 10},
			{Name: "thin", Type: "lvmthin", Content: []string{"images", "rootdir"}, Total: 100, Free: 40},
		},
		Templates: []view.Template{{VMID: 103, Name: "golden"}},
		Bridges:   []string{"vmbr0", "vmbr1"},
		Tags:      map[string]int{"prod": 2, "web": 1},
		VMs:       3, Running: 1,
	}
	if diff := cmp.Diff(want, s.Facts()); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	h.gone = errors.New("gone")
	want = view.Facts{PVEVersion: want.PVEVersion, Storages: want.Storages, Bridges: want.Bridges}
	if diff := cmp.Diff(want, s.Facts()); diff != "" {
		t.Errorf("facts without /etc/pve (-want +got):\n%s", diff)
	}
}

// TestBridges has devices as the kernel shows them.
func TestBridges(t *testing.T) {
	// What each device has, beside what all have; a value replaces what all have.
	devices := map[string]map[string]string{
		"lo":         {"type": "772"},
		"eno1":       {"device": ""},
		"vmbr0":      {"bridge/bridge_id": "", "uevent": "DEVTYPE=bridge"},
		"vnet12":     {"bridge/bridge_id": "", "uevent": "DEVTYPE=bridge"}, // of SDN
		"vmbr7":      {},                                                   // of Open vSwitch
		"vmbr1.5":    {"uevent": "DEVTYPE=vlan"},
		"bond0":      {"bonding/mode": "", "uevent": "DEVTYPE=bond"},
		"wg0":        {"type": "65534", "uevent": "DEVTYPE=wireguard"},
		"tap100i0":   {"tun_flags": "0x5002"},
		"tap101i0":   {"tun_flags": "0x5002", "master": ""},
		"veth200i0":  {"iflink": "2"},
		"fwpr100p0":  {"iflink": "9", "master": ""},
		"fwbr100i0":  {"bridge/bridge_id": "", "uevent": "DEVTYPE=bridge"}, // PVE's own, for its firewall
		"customers":  {},
		"ovs-system": {},
	}
	for name, want := range map[string][]string{
		"with Open vSwitch":    {"customers", "vmbr0", "vmbr7", "vnet12"},
		"without Open vSwitch": {"vmbr0", "vmbr7", "vnet12"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "testdata/plain", nil)
			h.cfg.SysDir = t.TempDir()
			for device, files := range devices {
				if device == "ovs-system" && name == "without Open vSwitch" {
					continue
				}
				all := map[string]string{"type": "1", "ifindex": "7", "iflink": "7", "uevent": "INTERFACE=" + device}
				maps.Copy(all, files)
				for file, text := range all {
					put(t, filepath.Join(h.cfg.SysDir, "class/net", device, file), text+"\n")
				}
			}
			if diff := cmp.Diff(want, New(h.cfg).Facts().Bridges); diff != "" {
				t.Errorf("bridges (-want +got):\n%s", diff)
			}
		})
	}
}

// TestFactsFit makes a node with more names than anybody has: what is left of them can be sent.
func TestFactsFit(t *testing.T) {
	many := map[int]string{}
	for i := range 400 {
		long := strings.Repeat("x", 60)
		many[1000+i] = fmt.Sprintf("name: %s-%d\ntemplate: 1\ntags: zcommon;t%s%d\n", long, i, long, i)
	}
	h := newHost(t, "testdata/plain", many)
	for i := range 400 {
		h.sys(fmt.Sprintf("class/net/bridge%09d/bridge/id", i)) // as long as the kernel allows
	}
	var storages []pve.Storage
	for i := range 400 {
		storages = append(storages, pve.Storage{
			Storage: fmt.Sprintf("storage%d", i), Type: "zfspool", Content: "backup,images,import,iso,rootdir,snippets,vztmpl",
			Active: true, Enabled: true, Total: 1 << 45, Avail: 1 << 44,
		})
	}
	h.cfg.API = &api{storages: storages}
	s := New(h.cfg)
	s.refresh(t.Context())
	f := s.Facts()
	f.Incarnation = view.MaxIncarnation
	if f.Tags["zcommon"] != 400 {
		t.Errorf("the most frequent tag has %d", f.Tags["zcommon"])
	}
	if _, err := f.MarshalBinary(); err != nil {
		t.Error(err)
	}
}

func TestStoragesAreAskedOncePerInterval(t *testing.T) {
	h := newHost(t, "testdata/plain", nil)
	synctest.Test(t, func(t *testing.T) {
		a := &api{storages: []pve.Storage{{Storage: "thin", Active: true, Enabled: true, Avail: 1}}}
		cfg := h.cfg
		cfg.API = a
		s := New(cfg)
		stopped := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { stopped <- s.Run(ctx) }()
		<-s.Ready()
		synctest.Wait()
		has := func(storages int, version string) {
			t.Helper()
			v, st := s.told(time.Now())
			if len(st) != storages || v != version {
				t.Errorf("after %d questions: %d storages, version %q; want %d, %q", a.asked(), len(st), v, storages, version)
			}
		}
		has(1, "9.1.2")
		time.Sleep(59 * time.Second)
		for range 100 {
			has(1, "9.1.2")
		}
		if a.asked() != 1 {
			t.Errorf("asked %d times in a minute", a.asked())
		}
		a.fail(errors.New("no route to host"))
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		has(1, "9.1.2") // what it was
		time.Sleep(2 * time.Minute)
		has(0, "9.1.2") // too long ago
		if n := strings.Count(h.log.String(), "no route to host"); n != 2 {
			t.Errorf("%d complaints, want one about storages and one about the version:\n%s", n, &h.log)
		}
		a.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		has(1, "9.1.2")
		if a.asked() != 8 {
			t.Errorf("asked %d times in 7 minutes, want once at the start and once in each", a.asked())
		}
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}
