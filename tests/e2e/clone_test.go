package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// copyOf asks for a copy of a VM.
func copyOf(source, name string, change ...func(*providerpb.CloneRequest)) *providerpb.CloneRequest {
	r := &providerpb.CloneRequest{SourceVmId: source, TargetName: name}
	for _, f := range change {
		f(r)
	}
	return r
}

func linked(r *providerpb.CloneRequest) { r.Linked = true }

func customized(json string) func(*providerpb.CloneRequest) {
	return func(r *providerpb.CloneRequest) { r.CustomizeJson = json }
}

// clone makes a copy, waits for it and returns its id.
func (s *stage) clone(r *providerpb.CloneRequest) string {
	s.Helper()
	c, err := s.agent.Provider.Clone(s.ctx, r)
	if err != nil {
		s.Fatalf("clone %s: %v", r.GetTargetName(), err)
	}
	if failure := s.outcome(c.GetTask()); failure != "" {
		s.Fatalf("clone %s: %s", r.GetTargetName(), failure)
	}
	return c.GetTargetVmId()
}

func (s *stage) tryClone(r *providerpb.CloneRequest) error {
	_, err := s.agent.Provider.Clone(s.ctx, r)
	return err
}

func TestCloneIsAVMOfItsOwn(t *testing.T) {
	t.Parallel()
	s := start(t)
	source := s.create(request("web-01", func(r *providerpb.CreateRequest) {
		r.UserData = []byte("#cloud-config\nruncmd: [true]\n")
		r.NetworksJson = `[{"Name":"primary","StaticIP":"192.0.2.10","Prefix":24,"Gateway":"192.0.2.1"}]`
		r.DisksJson = `[{"Name":"data","SizeGiB":2}]`
		r.Tags = []string{"web"}
	}))
	id := s.clone(copyOf(source, "web-02", func(r *providerpb.CloneRequest) {
		r.ClassJson = `{"cpu":3,"memory":"1Gi"}`
		r.CustomizeJson = `{"hostname":"second","tags":["copy"],"networks":[{"name":"eth0","ipAddress":"192.0.2.20","subnetMask":"255.255.255.0"}]}`
	}))
	s.wellFormed(id)
	if id == source {
		t.Fatalf("the copy is the source")
	}
	of, have := s.config(source), s.config(id)
	for key, want := range map[string]string{"name": "web-02", "vcpus": "3", "memory": "1024", "tags": "copy;web"} {
		if have[key] != want {
			t.Errorf("%s: %q, want %q", key, have[key], want)
		}
	}
	for _, key := range []string{"net0", "smbios1", "cicustom"} {
		if have[key] == of[key] {
			t.Errorf("%s is that of the source: %q", key, of[key])
		}
	}
	if !strings.Contains(have["scsi1"], "serial=data") {
		t.Errorf("the data disk is %q", have["scsi1"])
	}
	if got, want := s.part(id, "user"), s.part(source, "user"); got != want {
		t.Errorf("user-data %q, want the source's", got)
	}
	if meta := s.part(id, "meta"); !strings.Contains(meta, "second") {
		t.Errorf("meta-data without the host name: %q", meta)
	}
	if network := s.part(id, "network"); !strings.Contains(network, "192.0.2.20/24") || strings.Contains(network, "192.0.2.10") {
		t.Errorf("network-config %q", network)
	}
	s.on(id)
	s.must(s.delete(id))
	if !s.described(source).GetExists() {
		t.Error("the source went with its copy")
	}
}

// part reads the snippet that a VM's cicustom names for a part of its cloud-init drive.
func (s *stage) part(id, part string) string {
	s.Helper()
	for f := range strings.SplitSeq(s.config(id)["cicustom"], ",") {
		if volume, ok := strings.CutPrefix(f, part+"=local:"); ok {
			return string(s.file("pve1", "vz", volume))
		}
	}
	return ""
}

func TestCloneIsRepeated(t *testing.T) {
	t.Parallel()
	s := start(t)
	source := s.create(request("web-01"))
	var wait sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wait.Go(func() {
			c, err := s.agent.Provider.Clone(s.ctx, copyOf(source, "web-02"))
			if err != nil {
				t.Errorf("clone: %v", err)
				return
			}
			ids[i] = c.GetTargetVmId()
		})
	}
	wait.Wait()
	s.eventually("the copy is made", func() bool {
		c, err := s.agent.Provider.Clone(s.ctx, copyOf(source, "web-02"))
		return err == nil && c.GetTask() == nil
	})
	s.described(ids[0]) // the manager has its new VM, and repeats the clone all the same
	s.silent("a repeat", func() { ids = append(ids, s.clone(copyOf(source, "web-02"))) })
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("copies %v, want one", ids)
		}
	}
	refused(t, s.tryClone(copyOf(source, "web-02", func(r *providerpb.CloneRequest) { r.ClassJson = `{"cpu":9,"memory":"1Gi"}` })), codes.AlreadyExists, "web-02", ids[0])
	refused(t, s.tryClone(copyOf(ids[0], "web-01")), codes.AlreadyExists, "web-01", source)
}

func TestCloneLinked(t *testing.T) {
	t.Parallel()
	s := start(t)
	clones := s.watch("POST", "/nodes/*/qemu/*/clone")
	source := s.create(request("web-01"))
	s.wellFormed(s.clone(copyOf("9000", "linked", linked)))
	s.wellFormed(s.clone(copyOf(source, "full", linked)))
	s.wellFormed(s.create(request("by-class", class(`{"CPU":1,"MemoryMiB":512,"ExtraConfig":{"proxmox.linked-clone":"1"}}`))))
	var full []string
	for _, c := range clones() {
		_, query, _ := strings.Cut(c, "?")
		for f := range strings.SplitSeq(query, "&") {
			if v, ok := strings.CutPrefix(f, "full="); ok {
				full = append(full, v)
			}
		}
	}
	if diff := cmp.Diff([]string{"1", "0", "1", "0"}, full); diff != "" {
		t.Errorf("full clones: %s", diff)
	}
}

func TestCloneRefuses(t *testing.T) {
	t.Parallel()
	s := start(t)
	source := s.create(request("web-01"))
	before := s.inventory()
	for name, tc := range map[string]struct {
		request *providerpb.CloneRequest
		code    codes.Code
		says    []string
	}{
		"no such source":  {copyOf("8888", "x"), codes.NotFound, []string{"8888"}},
		"no id":           {copyOf("web-01", "x"), codes.InvalidArgument, []string{"web-01"}},
		"no name":         {copyOf(source, ""), codes.InvalidArgument, []string{"target_name"}},
		"a policy":        {copyOf(source, "x", func(r *providerpb.CloneRequest) { r.PlacementJson = `{"name":"spread"}` }), codes.FailedPrecondition, []string{"placement policy", "spread"}},
		"a secret":        {copyOf(source, "x", customized(`{"userData":{"cloudInit":{"secretRef":{"name":"s"}}}}`)), codes.InvalidArgument, []string{"secretRef"}},
		"sysprep":         {copyOf(source, "x", customized(`{"sysprep":{"enabled":true}}`)), codes.InvalidArgument, []string{"sysprep"}},
		"ignition":        {copyOf(source, "x", customized(`{"userData":{"ignition":{"inline":"{}"}}}`)), codes.InvalidArgument, []string{"ignition"}},
		"guest commands":  {copyOf(source, "x", customized(`{"guestCommands":[{"command":"true"}]}`)), codes.InvalidArgument, []string{"guestCommands"}},
		"certificates":    {copyOf(source, "x", customized(`{"certificates":[{"name":"ca","data":"x"}]}`)), codes.InvalidArgument, []string{"certificates"}},
		"too many CPUs":   {copyOf(source, "x", func(r *providerpb.CloneRequest) { r.ClassJson = `{"cpu":64,"memory":"1Gi"}` }), codes.FailedPrecondition, []string{"CPUs (needs 64, has 16)"}},
		"a wrong address": {copyOf(source, "x", customized(`{"networks":[{"name":"a","ipAddress":"192.0.2"}]}`)), codes.InvalidArgument, []string{"networks[0].ipAddress"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, s.within(t).tryClone(tc.request), tc.code, tc.says...) })
	}
	s.nothingLeft(before)
}

func TestCreateFromAMedium(t *testing.T) {
	t.Parallel()
	s := start(t)
	medium := filepath.Join(s.rig.Dir, "pve1", "vz", "template", "iso", "debian.iso")
	s.must(os.MkdirAll(filepath.Dir(medium), 0o755))
	s.must(os.WriteFile(medium, make([]byte, 1<<20), 0o600))
	id := s.create(request("installed", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":3}}`), from("local:iso/debian.iso"), func(r *providerpb.CreateRequest) {
		r.PlacementJson = `{"Datastore":"local"}`
		r.UserData = []byte("#cloud-config\nautoinstall: {version: 1}\n")
	}))
	s.wellFormed(id)
	conf := s.config(id)
	for key, want := range map[string]string{
		"name": "installed", "boot": "order=scsi0;ide2", "ide2": "local:iso/debian.iso,media=cdrom", "scsihw": "virtio-scsi-single", "lock": "", "template": "",
	} {
		if !strings.HasPrefix(conf[key], want) || want == "" && conf[key] != "" {
			t.Errorf("%s: %q, want %q", key, conf[key], want)
		}
	}
	if !strings.Contains(conf["scsi0"], "size=3G") || !strings.Contains(conf["net0"], "bridge=vmbr0") {
		t.Errorf("disk %q, NIC %q", conf["scsi0"], conf["net0"])
	}
	if !strings.Contains(s.part(id, "user"), "autoinstall") {
		t.Error("no user-data for the installer")
	}
	s.must(s.delete(id))
	refused(t, s.tryCreate(request("gone", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":3}}`), from("local:iso/none.iso"), datastore("local"))), codes.NotFound, "local:iso/none.iso")
}

func datastore(name string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) { r.PlacementJson = `{"Datastore":"` + name + `"}` }
}

func TestCreateFromAVolume(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(9100, nil) // what holds an imported disk
	disk, _, _ := strings.Cut(s.config("9100")["scsi0"], ",")
	id := s.create(request("imported", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":12}}`), func(r *providerpb.CreateRequest) {
		r.ImageJson = `{"TemplateName":"","Path":"` + disk + `","Format":"qcow2"}`
	}))
	conf := s.config(id)
	if !strings.Contains(conf["scsi0"], "size=12G") || strings.Contains(conf["scsi0"], disk) {
		t.Errorf("the root disk is %q, made from %s", conf["scsi0"], disk)
	}
	// A disk that is larger than the class wants stays as it is: only the copy tells its size.
	large, _, _ := strings.Cut(conf["scsi0"], ",")
	resizes := s.watch("PUT", "/nodes/*/qemu/*/resize")
	again := s.create(request("imported-again", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":5}}`), func(r *providerpb.CreateRequest) {
		r.ImageJson = `{"Path":"` + large + `"}`
	}))
	if conf := s.config(again); !strings.Contains(conf["scsi0"], "size=12G") || len(resizes()) > 0 {
		t.Errorf("the root disk is %q after %d calls", conf["scsi0"], len(resizes()))
	}
	s.must(s.delete(id))
	if s.config("9100")["scsi0"] == "" {
		t.Error("the source lost its disk")
	}
}

func TestCreateMakesEverythingOnStorages(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--storage-classes=nvme:storage=shared,ssd=1,iothread=1", "--bridges=storage=vmbr1"}})
	s.must(s.sim.AddPool("team-a"))
	id := s.create(request("whole", func(r *providerpb.CreateRequest) {
		r.ClassJson = `{"CPU":2,"MemoryMiB":1024,"Firmware":"UEFI","GuestToolsPolicy":"install","DiskDefaults":{"Type":"nvme"},
			"SecurityProfile":{"SecureBoot":true,"TPMEnabled":true},"ExtraConfig":{"proxmox.onboot":"1","proxmox.net.firewall":"1"}}`
		r.DisksJson = `[{"Name":"data","SizeGiB":2,"Type":"nvme"},{"Name":"logs","SizeGiB":1}]`
		r.NetworksJson = `[{"Name":"storage"}]`
		r.PlacementJson = `{"Folder":"team-a"}`
		r.Tags = []string{"Team A", "web"}
	}))
	s.wellFormed(id)
	conf := s.config(id)
	for key, want := range map[string]string{
		"bios": "ovmf", "machine": "q35", "agent": "enabled=1", "onboot": "1", "tags": "team-a;web", "efidisk0": "shared:", "tpmstate0": "shared:", "scsi0": "shared:",
		"scsi1": "shared:", "scsi2": "shared:", "scsihw": "virtio-scsi-single",
	} {
		if !strings.HasPrefix(conf[key], want) {
			t.Errorf("%s: %q, want %q", key, conf[key], want)
		}
	}
	for key, want := range map[string]string{
		"efidisk0": "pre-enrolled-keys=1", "tpmstate0": "version=v2.0", "scsi0": "iothread=1", "scsi1": "serial=data", "scsi2": "serial=logs", "net0": "bridge=vmbr1,firewall=1",
	} {
		if !strings.Contains(conf[key], want) {
			t.Errorf("%s: %q lacks %q", key, conf[key], want)
		}
	}
	s.on(id)
	s.must(s.delete(id))
	refused(t, s.tryCreate(request("nowhere", func(r *providerpb.CreateRequest) { r.PlacementJson = `{"Folder":"team-b"}` })), codes.FailedPrecondition, "team-b", "pvesh create /pools")
}

// The disks of a VM are made once, however often the agent dies on the way or loses an answer.
func TestCreateDisksAfterALostAnswer(t *testing.T) {
	t.Parallel()
	s := start(t)
	posts := s.watch("POST", "/nodes/*/qemu/*/config")
	s.sim.FailAfter(pvesim.Match("POST", "/nodes/*/qemu/*/config"), 0, "", 1)
	c, err := s.agent.Provider.Create(s.ctx, request("web-01", func(r *providerpb.CreateRequest) {
		r.DisksJson = `[{"Name":"data","SizeGiB":1},{"Name":"logs","SizeGiB":1}]`
	}))
	if err != nil {
		t.Fatal(err)
	}
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	conf := s.config(c.GetId())
	if !strings.Contains(conf["scsi1"], "serial=data") || !strings.Contains(conf["scsi2"], "serial=logs") || conf["scsi3"] != "" || conf["unused0"] != "" {
		t.Errorf("disks %q, %q, %q, unused %q after %d calls", conf["scsi1"], conf["scsi2"], conf["scsi3"], conf["unused0"], len(posts()))
	}
}

// What is made of a volume is made where the request says: PVE knows of its files on the node alone.
func TestCreateFromAMediumOnAnotherNode(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.startAgentOn("pve2")
	medium := filepath.Join(s.rig.Dir, "pve2", "vz", "template", "iso", "debian.iso")
	s.must(os.MkdirAll(filepath.Dir(medium), 0o755))
	s.must(os.WriteFile(medium, make([]byte, 1<<20), 0o600))
	small := class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":1}}`)
	id := s.create(request("far", small, from("local:iso/debian.iso"), func(r *providerpb.CreateRequest) {
		r.PlacementJson = `{"Datastore":"local","Cluster":"pve2"}`
	}))
	if owner, _ := s.sim.Owner(vmid(t, id)); owner != "pve2" {
		t.Errorf("made on %s", owner)
	}
	refused(t, s.tryCreate(request("near", small, from("local:iso/debian.iso"), datastore("local"))), codes.NotFound, "local:iso/debian.iso", "pve1")
}

// While PVE copies, the copy has no uuid yet: it is not listed, and a Delete waits for its end.
func TestCloneUnderWay(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=0s"}})
	source := s.create(request("web-01"))
	release := s.sim.HoldTasks("qmclone")
	c, err := s.agent.Provider.Clone(s.ctx, copyOf(source, "web-02"))
	s.must(err)
	s.eventually("PVE begins to copy", func() bool { _, err := s.sim.Config(vmid(t, c.GetTargetVmId())); return err == nil })
	again, err := s.agent.Provider.Clone(s.ctx, copyOf(source, "web-02"))
	s.must(err)
	if again.GetTargetVmId() != c.GetTargetVmId() {
		t.Errorf("a repeat makes %s beside %s", again.GetTargetVmId(), c.GetTargetVmId())
	}
	refused(t, s.tryClone(copyOf(fmt.Sprint(template), "web-02")), codes.AlreadyExists, "web-02", "another request")
	list, err := s.agent.Provider.ListVMs(s.ctx, &providerpb.ListVMsRequest{})
	s.must(err)
	for _, vm := range list.GetVms() {
		if vm.GetId() != source {
			t.Errorf("listed: %s", vm.GetId())
		}
	}
	s.described(c.GetTargetVmId())
	ended := make(chan error, 1)
	go func() { ended <- s.delete(c.GetTargetVmId()) }()
	release()
	s.must(<-ended)
	if d, err := s.describe(c.GetTargetVmId()); err != nil || d.GetExists() {
		t.Errorf("after its deletion: %v, %v", d, err)
	}
	if !s.described(source).GetExists() {
		t.Error("the source went with its copy")
	}
}

// The manager takes an error of a Clone for its end, so that a backup of the source is waited for.
func TestCloneWaitsForABackup(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=0s"}})
	source := s.create(request("web-01"))
	s.must(s.sim.SetLock(vmid(t, source), "backup"))
	c, err := s.agent.Provider.Clone(s.ctx, copyOf(source, "web-02"))
	s.must(err)
	refusals := s.watch("POST", "/nodes/*/qemu/*/clone")
	s.eventually("PVE is asked", func() bool { return len(refusals()) > 0 })
	s.must(s.sim.SetLock(vmid(t, source), ""))
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	s.wellFormed(c.GetTargetVmId())
	s.must(s.sim.SetLock(vmid(t, source), "suspended"))
	s.eventually("the agent knows the lock", func() bool { return s.raw(s.described(source))["lock"] == "suspended" })
	refused(t, s.tryClone(copyOf(source, "web-03")), codes.FailedPrecondition, "locked (suspended)")
}
