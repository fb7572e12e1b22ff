package e2e

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
)

var idPattern = regexp.MustCompile(`^([1-9]\d+)-([0-9a-f]{8})$`)

// wellFormed checks that an id carries the number and the SMBIOS uuid of its VM.
func (s *stage) wellFormed(id string) {
	s.Helper()
	m := idPattern.FindStringSubmatch(id)
	if m == nil {
		s.Fatalf("id %q is not <vmid>-<8 hex digits>", id)
	}
	if smbios := s.config(id)["smbios1"]; !strings.Contains(smbios, "uuid="+m[2]) {
		s.Errorf("id %s does not fit smbios1 %q", id, smbios)
	}
}

func TestCreateFromATemplateByItsNumber(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	s.wellFormed(id)
	if n := vmid(t, id); n != 10000 {
		t.Errorf("the first VM is %d, want the first of vmid-range", n)
	}
	conf := s.config(id)
	for key, want := range map[string]string{
		"name": "web-01", "vcpus": "2", "cores": "2", "sockets": "1", "memory": "4096", "hotplug": "disk,network,usb",
		"template": "", "lock": "", "cicustom": "", "boot": "order=scsi0",
	} {
		if conf[key] != want {
			t.Errorf("%s: %q, want %q", key, conf[key], want)
		}
	}
	if d := s.described(id); d.GetPowerState() != "Off" {
		t.Errorf("a new VM is %s", d.GetPowerState())
	}
}

func TestCreateFromATemplateByItsName(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.wellFormed(s.create(request("web-01", from("linux-template"))))

	// A VM of the same name is no template: the template is meant.
	s.add(500, map[string]string{"name": "linux-template"})
	clones := s.watch("POST", "/nodes/*/qemu/*/clone")
	s.create(request("web-02", from("linux-template")))
	if got := clones(); len(got) != 1 || !strings.Contains(got[0], "/qemu/9000/clone") {
		t.Errorf("cloned by %q, want the template 9000", got)
	}

	s.add(9500, map[string]string{"name": "linux-template", "template": "1"})
	before := s.inventory()
	refused(t, s.tryCreate(request("web-03", from("linux-template"))), codes.FailedPrecondition, "linux-template", "9000", "9500", "pve1")
	s.nothingLeft(before)
}

func TestCreateFromAnOrdinaryVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	clones := s.watch("POST", "/nodes/*/qemu/500/clone")
	id := s.create(request("web-01", from("500")))
	s.wellFormed(id)
	if got := clones(); len(got) != 1 || !strings.Contains(got[0], "full=1") {
		t.Errorf("cloned by %q, want one full clone", got)
	}
	s.must(s.delete(id))
	if _, err := s.sim.Config(500); err != nil {
		t.Errorf("the source went with its copy: %v", err)
	}
}

func TestCreateGivesAClassItsHardware(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes, c.NodeCPUs = 2, map[string]int{"pve2": 6} }})
	for name, tc := range map[string]struct {
		class, template string
		want            map[string]string
	}{
		"the manager's class": {
			payloads.Class, "9000",
			map[string]string{"sockets": "1", "cores": "8", "vcpus": "2", "memory": "2048", "numa": "1", "hotplug": "cpu,disk,memory,network,usb"},
		},
		"small": {
			`{"CPU":1,"MemoryMiB":512}`, "9000",
			map[string]string{"sockets": "1", "cores": "1", "vcpus": "1", "memory": "512", "numa": "0", "hotplug": "disk,network,usb"},
		},
		"head-room up to the node's CPUs": {
			`{"CPU":5,"MemoryMiB":512,"PerformanceProfile":{"CPUHotAddEnabled":true}}`, "9000",
			map[string]string{"sockets": "1", "cores": "16", "vcpus": "5", "memory": "512", "numa": "0", "hotplug": "cpu,disk,network,usb"},
		},
		"on shared storage up to those of the smallest node": {
			`{"CPU":2,"MemoryMiB":512,"PerformanceProfile":{"CPUHotAddEnabled":true}}`, "9001",
			map[string]string{"sockets": "1", "cores": "6", "vcpus": "2", "memory": "512", "numa": "0", "hotplug": "cpu,disk,network,usb"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.within(t)
			id := s.create(request("vm-"+strings.Map(nameRune, name), class(tc.class), from(tc.template)))
			conf := s.config(id)
			maps.DeleteFunc(conf, func(k, _ string) bool { _, ok := tc.want[k]; return !ok })
			if d := cmp.Diff(tc.want, conf); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			s.on(id) // PVE checks most of it only when it builds the command line
		})
	}
}

// nameRune makes any text part of a VM's name.
func nameRune(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return '-'
}

// TestCreateRefusesMoreCPUsThanANodeHas: PVE takes such a config and then does not start the VM.
func TestCreateRefusesMoreCPUsThanANodeHas(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	s.silent("a wish that no node can fulfil", func() {
		refused(t, s.tryCreate(request("web-01", class(`{"CPU":17,"MemoryMiB":512}`))), codes.FailedPrecondition, "CPUs (needs 17, has 16)")
	})
	s.nothingLeft(before)
}

// imageSize is the size that a guest sees of a disk on a node's storage local.
func (s *stage) imageSize(file string) int64 {
	s.Helper()
	info, err := disk.Plain{}.Info(s.ctx, filepath.Join(s.rig.Dir, "pve1", "vz", "images", file))
	if err != nil {
		s.Fatal(err)
	}
	return info.Virtual
}

func TestCreateGrowsTheRootDisk(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"Type":"thin","SizeGiB":3}}`)))
	if scsi0 := s.config(id)["scsi0"]; !strings.HasSuffix(scsi0, ",size=3G") {
		t.Errorf("scsi0: %s, want size=3G", scsi0)
	}
	if got := s.imageSize("10000/vm-10000-disk-0.qcow2"); got != 3<<30 {
		t.Errorf("the image has %d bytes, want 3 GiB", got)
	}
	// A disk that is larger already stays: PVE cannot shrink.
	s.add(500, nil)
	resizes := s.watch("PUT", "/nodes/*/qemu/*/resize")
	id = s.create(request("web-02", from("500"), class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"Type":"thin","SizeGiB":0}}`)))
	if got := resizes(); len(got) != 0 {
		t.Errorf("%s: resized by %q", id, got)
	}
}

func TestCreateHandsOverUserData(t *testing.T) {
	t.Parallel()
	user := []byte("#cloud-config\r\nruncmd:\n  - [ echo, \"\xff\xfe $x % : ü\" ]\n# no newline at the end")
	meta := []byte("instance-id: web-01\nlocal-hostname: web-01\n")
	give := func(r *providerpb.CreateRequest) { r.UserData, r.MetaData = user, meta }

	for name, tc := range map[string]struct {
		template string
		drive    string // the key of the cloud-init drive
	}{
		"a template with a cloud-init drive": {"9000", "ide2"},
		"a template without one":             {"9500", "ide2"},
		"its place is taken":                 {"9501", "ide0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.must(os.WriteFile(filepath.Join(s.rig.Dir, "pve1", "vz", "snippets", "net.yaml"), []byte("version: 2\n"), 0o600))
			s.add(9500, map[string]string{"template": "1"})
			s.add(9501, map[string]string{"template": "1", "ide2": "none,media=cdrom", "cicustom": "network=local:snippets/net.yaml"})
			before := s.inventory()
			id := s.create(request("web-01", from(tc.template), give))
			conf := s.config(id)
			if want := "cloudinit"; !strings.Contains(conf[tc.drive], want) {
				t.Errorf("%s: %q, want a cloud-init drive", tc.drive, conf[tc.drive])
			}
			s.isSnippet(s.snippet(id, "user"), user)
			// The instance-id is this VM's, whatever others of that name there are and were.
			s.isSnippet(s.snippet(id, "meta"), bytes.Replace(meta, []byte("id: web-01"), []byte(`id: "`+smbiosUUID(conf)+`"`), 1))
			if tc.template == "9501" && s.snippet(id, "network") != "local:snippets/net.yaml" {
				t.Errorf("cicustom %q lost what the template has", conf["cicustom"])
			}
			s.must(s.delete(id))
			s.nothingLeft(before)
		})
	}
}

// snippet is the volume that a VM's cicustom names for a part (user, meta, network), "" for none.
func (s *stage) snippet(id, part string) string {
	s.Helper()
	for f := range strings.SplitSeq(s.config(id)["cicustom"], ",") {
		if name, volume, _ := strings.Cut(f, "="); name == part {
			return volume
		}
	}
	return ""
}

// smbiosUUID is the uuid in a VM's config.
func smbiosUUID(conf map[string]string) string {
	_, rest, _ := strings.Cut(conf["smbios1"], "uuid=")
	uuid, _, _ := strings.Cut(rest, ",")
	return uuid
}

// TestCreateConnectsNetworks: the NICs of the VM, and what cloud-init is told of them, which it finds by their addresses.
func TestCreateConnectsNetworks(t *testing.T) {
	t.Parallel()
	connected := func(r *providerpb.CreateRequest) { r.NetworksJson = payloads.Networks }
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01", connected))
	conf := s.config(id)
	macs := map[string]string{}
	for key, want := range map[string]string{"net0": "virtio=MAC,bridge=vmbr0", "net1": "e1000=MAC,bridge=vmbr1,tag=120"} {
		_, rest, _ := strings.Cut(conf[key], "=")
		macs[key], _, _ = strings.Cut(rest, ",")
		if got := strings.Replace(conf[key], macs[key], "MAC", 1); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", key, conf[key], want)
		}
	}
	s.isSnippet(s.snippet(id, "network"), []byte(`version: 2
ethernets:
  eth0:
    match:
      macaddress: "`+strings.ToLower(macs["net0"])+`"
    addresses:
      - "192.0.2.10/24"
    routes:
      - to: "0.0.0.0/0"
        via: "192.0.2.1"
    nameservers:
      addresses:
        - "192.0.2.53"
        - "192.0.2.54"
  eth1:
    match:
      macaddress: "`+strings.ToLower(macs["net1"])+`"
    dhcp4: true
`))
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestCreateConnectsNetworksWithoutSnippets: PVE's own settings carry addresses.
func TestCreateConnectsNetworksWithoutSnippets(t *testing.T) {
	t.Parallel()
	s := raise(t)
	for _, name := range []string{"local", "shared"} {
		s.must(s.sim.ChangeStorage(name, func(x *pvesim.Storage) { x.Content = []string{"images"} }))
	}
	s.startAgent()
	id := s.create(request("web-01", func(r *providerpb.CreateRequest) { r.NetworksJson = payloads.Networks }))
	conf := s.config(id)
	for key, want := range map[string]string{"ipconfig0": "ip=192.0.2.10/24,gw=192.0.2.1", "ipconfig1": "ip=dhcp", "nameserver": "192.0.2.53 192.0.2.54"} {
		if conf[key] != want {
			t.Errorf("%s: %q, want %q", key, conf[key], want)
		}
	}
	wrong := `[{"Name":"a","StaticIP":"192.0.2.10","Prefix":33,"Gateway":""}]`
	refused(t, s.tryCreate(request("web-02", func(r *providerpb.CreateRequest) { r.NetworksJson = wrong })), codes.InvalidArgument, "networks_json", "[0].Prefix")
}

// isSnippet checks a snippet on the node's storage local: byte for byte, and for root's eyes only.
func (s *stage) isSnippet(volume string, want []byte) {
	s.Helper()
	file, ok := strings.CutPrefix(volume, "local:")
	if !ok {
		s.Fatalf("%q is no snippet on local", volume)
	}
	path := filepath.Join(s.rig.Dir, "pve1", "vz", file)
	got, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		s.Errorf("%s (-want +got):\n%s", volume, d)
	}
	info, err := os.Stat(path)
	if err != nil {
		s.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		s.Errorf("%s has mode %s: it may hold passwords", volume, info.Mode())
	}
}

// TestSnippetsAreShared: equal user-data is one file, which stays when the last VM is gone: it may come back.
func TestSnippetsAreShared(t *testing.T) {
	t.Parallel()
	s := start(t)
	give := func(r *providerpb.CreateRequest) { r.UserData = []byte("#cloud-config\n") }
	before := s.inventory()
	first, second := s.create(request("web-01", give)), s.create(request("web-02", give))
	volume := s.snippet(second, "user")
	s.must(s.delete(first))
	s.isSnippet(volume, []byte("#cloud-config\n"))
	s.must(s.delete(second))
	s.nothingLeft(before)
	s.isSnippet(volume, []byte("#cloud-config\n"))
}

func TestUserDataNeedsAStorageForSnippets(t *testing.T) {
	t.Parallel()
	give := func(r *providerpb.CreateRequest) { r.UserData = []byte("#cloud-config\nruncmd: [[reboot]]\n") }
	s := raise(t)
	for _, name := range []string{"local", "shared"} {
		s.must(s.sim.ChangeStorage(name, func(x *pvesim.Storage) { x.Content = []string{"images"} }))
	}
	s.startAgent()
	before := s.inventory()
	s.silent("a wish that cannot be fulfilled", func() {
		refused(t, s.tryCreate(request("web-01", give)), codes.FailedPrecondition, "user_data", "snippets", "pve1", "pvesm set", "runcmd")
	})
	s.nothingLeft(before)
}

// TestCreateFromAProtectedTemplate: PVE copies protection, and nobody could delete the copy.
func TestCreateFromAProtectedTemplate(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.set(template, map[string]string{"protection": "1"})
	before := s.inventory()
	id := s.create(request("web-01"))
	if p := s.config(id)["protection"]; p != "" && p != "0" {
		t.Errorf("protection: %s", p)
	}
	s.must(s.delete(id))
	s.nothingLeft(before)
}

func TestCreateOnADatastore(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01", func(r *providerpb.CreateRequest) { r.PlacementJson = `{"Datastore":"shared"}` }))
	if scsi0 := s.config(id)["scsi0"]; !strings.HasPrefix(scsi0, "shared:") {
		t.Errorf("scsi0: %s, want it on shared", scsi0)
	}
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestNumbersAreNotUsedAgain: not after a delete, not after a failure, not after a restart.
func TestNumbersAreNotUsedAgain(t *testing.T) {
	t.Parallel()
	s := start(t)
	var last int
	higher := func(what string) string {
		t.Helper()
		id := s.create(request("web-01"))
		if n := vmid(t, id); n <= last {
			t.Errorf("%s: VM %d after VM %d", what, n, last)
		} else {
			last = n
		}
		return id
	}
	s.must(s.delete(higher("first")))
	id := higher("after a delete")
	s.must(s.delete(id))
	s.sim.FailTask("qmclone", 0, "no space left on device")
	refused(t, s.tryCreate(request("web-01")), codes.ResourceExhausted, "no space left on device")
	last++
	s.must(s.delete(higher("after a failure")))
	s.stop()
	s.startAgent()
	s.add(last+1, nil) // taken by somebody else
	last++
	higher("after a restart")
}

func TestCreateTakesItsNumbersFromTheRange(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--vmid-range=200-201"}})
	for i, name := range []string{"web-01", "web-02"} {
		if n := vmid(t, s.create(request(name))); n != 200+i {
			t.Errorf("%s is VM %d, want %d", name, n, 200+i)
		}
	}
	before := s.inventory()
	refused(t, s.tryCreate(request("web-03")), codes.ResourceExhausted, "web-03", "200", "201")
	s.nothingLeft(before)
}
