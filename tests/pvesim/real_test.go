package pvesim_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// startReal starts a cluster of real QEMU, or skips.
func startReal(t *testing.T) *pvesim.Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c, err := pvesim.New(pvesim.Config{Dir: dir, VMs: 2, QEMU: pvesim.Real, PollUnit: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Start(t.Context())
	var (
		noQEMU  *kvm.MissingError
		noImg   *disk.MissingError
		noGuest *guestimage.MissingError
	)
	if errors.As(err, &noQEMU) || errors.As(err, &noImg) || errors.As(err, &noGuest) {
		t.Skipf("skipped: needs real QEMU and a guest; enable with: apt-get install qemu-system-x86 qemu-utils qemu-guest-agent linux-image-cloud-amd64 busybox-static\n%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestRealMigrate moves a VM that is a real QEMU from node to node.
func TestRealMigrate(t *testing.T) {
	c := startReal(t)
	if err := c.AddVM(120, "pve1", map[string]string{"memory": "64"}); err != nil {
		t.Fatal(err)
	}
	if err := c.StartVM(120); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"pve2", "pve1"} {
		if err := c.Migrate(120, node, pvesim.MigrateOptions{}); err != nil {
			t.Fatal(err)
		}
		if owner, _ := c.Owner(120); owner != node || !c.Running(120) {
			t.Errorf("on %s, runs %v", owner, c.Running(120))
		}
		if _, err := os.Stat(filepath.Join(c.Node(node).Run, "120.pid")); err != nil {
			t.Error(err)
		}
	}
}

// TestRealGuest is the life of a Linux guest in real QEMU.
func TestRealGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: needs a minute; enable with: go test without -short")
	}
	c := startReal(t)
	cl := newClient(t, c, "pve1")
	for _, step := range []struct{ call, params string }{
		{"POST /nodes/pve1/qemu/9000/clone", "newid=120&name=web-1"},
		{"PUT /nodes/pve1/qemu/120/resize", "disk=scsi0&size=128M"},
		{"POST /nodes/pve1/qemu/120/status/start", ""},
	} {
		if exit, log := cl.task(step.call, step.params); exit != "OK" {
			t.Fatalf("%s: %s\n%s", step.call, exit, strings.Join(log, "\n"))
		}
	}
	deadline := time.Now().Add(2 * time.Minute)
	for cl.do("POST /nodes/pve1/qemu/120/agent/ping", "").Status != 200 {
		if time.Now().After(deadline) {
			t.Fatal("the guest agent never answered")
		}
	}
	var host struct {
		Result struct {
			Name string `json:"host-name"`
		}
	}
	if err := json.Unmarshal(cl.must("GET /nodes/pve1/qemu/120/agent/get-host-name", "").Data, &host); err != nil || host.Result.Name != "web-1" {
		t.Errorf("hostname %q %v", host.Result.Name, err)
	}
	if r := cl.must("GET /nodes/pve1/qemu/120/status/current", ""); !strings.Contains(r.Body, `"qmpstatus":"running"`) || !strings.Contains(r.Body, `"running-qemu"`) {
		t.Errorf("%s", r.Body)
	}
	for _, step := range []struct{ call, params string }{
		{"PUT /nodes/pve1/qemu/120/resize", "disk=scsi0&size=256M"},
		{"POST /nodes/pve1/qemu/120/snapshot", "snapname=s1"},
		{"POST /nodes/pve1/qemu/120/status/shutdown", "timeout=400"},
		{"POST /nodes/pve1/qemu/120/snapshot/s1/rollback", ""},
		{"DELETE /nodes/pve1/qemu/120/snapshot/s1", ""},
		{"DELETE /nodes/pve1/qemu/120", "purge=1"},
	} {
		if exit, log := cl.task(step.call, step.params); exit != "OK" {
			t.Fatalf("%s: %s\n%s", step.call, exit, strings.Join(log, "\n"))
		}
	}
}
