package pvesim_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// upidOf sends a request that starts a task and does not wait.
func (cl *client) upidOf(call, params string) string {
	cl.t.Helper()
	var upid string
	r := cl.must(call, params)
	if err := json.Unmarshal(r.Data, &upid); err != nil {
		cl.t.Fatalf("%s: %s", call, r.Body)
	}
	return upid
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func conf(t *testing.T, c *pvesim.Cluster, vmid int) map[string]string {
	t.Helper()
	m, err := c.Config(vmid)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCloneShowsLittleUntilTheFirstDisk(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	release := c.HoldTasks("qmclone")
	defer release()
	upid := cl.upidOf("POST /nodes/pve1/qemu/900/clone", "newid=120&name=web&description=made for a test")
	eventually(t, "the clone's config is there", func() bool { return slices.Contains(c.VMIDs(), 120) })
	b, err := os.ReadFile(filepath.Join(c.Tree(), "nodes/pve1/qemu-server/120.conf"))
	if err != nil || string(b) != "# qmclone temporary file\nlock: clone\n" {
		t.Errorf("while it is made: %q %v", b, err)
	}
	if r := cl.do("PUT /nodes/pve1/qemu/120/config", "cores=2"); r.Reason != "VM is locked (clone)" {
		t.Errorf("change while it is made: %d %s", r.Status, r.Reason)
	}
	release()
	if exit, log := cl.wait(upid); exit != "OK" {
		t.Fatal(exit, log)
	}
	src, got := conf(t, c, 900), conf(t, c, 120)
	want := map[string]string{
		"name": "web", "description": "made for a test", "lock": "", "template": "", "cores": "1",
		"scsi0": "local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2,size=8M",
		"ide2":  "local:120/vm-120-cloudinit.qcow2,media=cdrom,size=4M",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	for _, k := range []string{"net0", "smbios1", "vmgenid"} {
		if got[k] == "" || got[k] == src[k] {
			t.Errorf("%s is the template's: %q", k, got[k])
		}
	}
}

func TestFailedCloneLeavesNothing(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	content := func() string { return string(cl.must("GET /nodes/pve1/storage/local/content", "").Data) }
	before := content()
	c.FailTask("qmclone", 900, "no space left on device")
	if exit, _ := cl.task("POST /nodes/pve1/qemu/900/clone", "newid=120"); exit != "no space left on device" {
		t.Errorf("injected: %q", exit)
	}
	err := c.ChangeStorage(pvesim.StorageLocal, func(s *pvesim.Storage) { s.Free = 6 << 20 })
	if err != nil {
		t.Fatal(err)
	}
	exit, _ := cl.task("POST /nodes/pve1/qemu/900/clone", "newid=120&full=1")
	if !strings.HasPrefix(exit, "clone failed: unable to create image: ") || !strings.Contains(exit, "No space left on device") {
		t.Errorf("full storage: %q", exit)
	}
	if slices.Contains(c.VMIDs(), 120) {
		t.Error("the number is still taken")
	}
	if after := content(); after != before {
		t.Errorf("left behind:\n%s\n%s", before, after)
	}
}

func TestCloneOfNumberThatAnotherNodeHas(t *testing.T) {
	cl := newClient(t, lab(t, nil), "pve1")
	exit, _ := cl.task("POST /nodes/pve1/qemu/900/clone", "newid=200")
	if want := "close (rename) atomic file '/etc/pve/nodes/pve1/qemu-server/200.conf' failed: File exists"; exit != want {
		t.Errorf("%q, want %q", exit, want)
	}
}

func TestCloneToAnotherNode(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	for _, params := range []string{"newid=210&target=pve2", "newid=211&target=pve2&full=1&storage=shared"} {
		if exit, log := cl.task("POST /nodes/pve1/qemu/901/clone", params); exit != "OK" {
			t.Fatal(exit, log)
		}
	}
	for _, id := range []int{210, 211} {
		if node, _ := c.Owner(id); node != "pve2" {
			t.Errorf("%d is on %s", id, node)
		}
	}
	if r := cl.do("POST /nodes/pve1/qemu/900/clone", "newid=212&target=pve2&full=1&storage=local"); r.Reason != "can't clone to non-shared storage 'local'" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	// A template of another node is not to be had here.
	if r := cl.do("POST /nodes/pve2/qemu/900/clone", "newid=213"); r.Reason != "unable to find configuration file for VM 900 on node 'pve2'" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
}

func TestDestroyTakesOnlyOwnVolumes(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	if exit, _ := cl.task("POST /nodes/pve1/qemu/900/clone", "newid=120"); exit != "OK" {
		t.Fatal(exit)
	}
	dir, err := c.StorageDir("pve1", pvesim.StorageLocal)
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "images", "120", "vm-120-disk-7.qcow2")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, log := cl.task("DELETE /nodes/pve1/qemu/120", "purge=1&destroy-unreferenced-disks=0"); exit != "OK" || log[0] != "purging VM 120 from related configurations.." {
		t.Errorf("%s %q", exit, log)
	}
	if _, err := os.Stat(stray); err != nil {
		t.Errorf("the unreferenced disk went too: %v", err)
	}
	for _, name := range []string{"vm-120-disk-0.qcow2", "vm-120-cloudinit.qcow2"} {
		if _, err := os.Stat(filepath.Join(dir, "images", "120", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "images", "900", "base-900-disk-0.qcow2")); err != nil {
		t.Errorf("base: %v", err)
	}
	if exit, _ := cl.task("DELETE /nodes/pve1/storage/local/content/local:120/vm-120-disk-7.qcow2", ""); exit != "OK" {
		t.Errorf("imgdel: %s", exit)
	}
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("imgdel left it: %v", err)
	}
}

// TestDestroyLeavesVolumesOfOthers: a config may name a volume of another VM.
func TestDestroyLeavesVolumesOfOthers(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	dir, err := c.StorageDir("pve1", pvesim.StorageLocal)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "images", "777", "vm-777-disk-0.raw")
	if err := errors.Join(os.MkdirAll(filepath.Dir(other), 0o755), os.WriteFile(other, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cl.must("PUT "+vm100+"/config", "scsi1=local:777/vm-777-disk-0.raw")
	if exit, _ := cl.task("DELETE "+vm100, ""); exit != "OK" {
		t.Fatal(exit)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("it went too: %v", err)
	}
}

func TestDestroyUnreferenced(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	dir, err := c.StorageDir("pve1", pvesim.StorageShared)
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "images", "100", "vm-100-disk-7.raw")
	if err := errors.Join(os.MkdirAll(filepath.Dir(stray), 0o755), os.WriteFile(stray, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if exit, _ := cl.task("DELETE "+vm100, "destroy-unreferenced-disks=1"); exit != "OK" {
		t.Fatal(exit)
	}
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
