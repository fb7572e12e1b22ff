package pvesim_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario/fabric"
)

func TestMigrate(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve2")
	disk := func(node string) bool {
		dir, err := c.StorageDir(node, pvesim.StorageLocal)
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(filepath.Join(dir, "images", "101", "vm-101-disk-0.qcow2"))
		return err == nil
	}
	was, err := c.Config(101)
	if err != nil {
		t.Fatal(err)
	}
	if exit, log := cl.task("POST /nodes/pve2/qemu/101/migrate", "target=pve3"); exit != "OK" {
		t.Fatalf("%s\n%s", exit, strings.Join(log, "\n"))
	}
	now, err := c.Config(101)
	if owner, _ := c.Owner(101); owner != "pve3" || disk("pve2") || !disk("pve3") || err != nil || now["smbios1"] != was["smbios1"] || now["lock"] != "" {
		t.Errorf("on %s, disk on pve2 %v, on pve3 %v, %v %v", owner, disk("pve2"), disk("pve3"), now, err)
	}

	// 100 runs on pve1.
	cl = newClient(t, c, "pve1")
	if r := cl.do("POST /nodes/pve1/qemu/100/migrate", "target=pve2"); r.Reason != "can't migrate running VM without --online" {
		t.Errorf("running: %d %s", r.Status, r.Reason)
	}
	if exit, _ := cl.task("POST /nodes/pve1/qemu/100/migrate", "target=pve2&online=1"); exit != "migration aborted" || !c.Running(100) {
		t.Errorf("with local disks: %s", exit)
	}
	before, _ := c.QEMU(100)
	if exit, log := cl.task("POST /nodes/pve1/qemu/100/migrate", "target=pve2&online=1&with-local-disks=1"); exit != "OK" {
		t.Fatalf("%s\n%s", exit, strings.Join(log, "\n"))
	}
	after, ok := c.QEMU(100)
	if owner, _ := c.Owner(100); owner != "pve2" || !c.Running(100) || !ok || before == after {
		t.Errorf("on %s, running %v", owner, c.Running(100))
	}
	if _, err := os.Stat(filepath.Join(c.Node("pve2").Run, "100.qmp")); err != nil {
		t.Error(err)
	}
	if now, err := c.Config(100); err != nil || now["lock"] != "" {
		t.Errorf("%v %v", now, err)
	}
	eventually(t, "the old process is gone", func() bool {
		_, err := os.Stat(filepath.Join(c.Node("pve1").Run, "100.pid"))
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestMigrateRefuses(t *testing.T) {
	c := startCluster(t, nil)
	c.AddToken("x@pve!few", "s", pvesim.ACL{"/vms": {"VM.Audit", "VM.PowerMgmt"}})
	cl := newClient(t, c, "pve1")
	if exit, _ := cl.task("POST /nodes/pve1/qemu/9000/clone", "newid=600"); exit != "OK" {
		t.Fatal(exit)
	}
	for _, tc := range []struct{ params, want string }{
		{"target=pve1", "Parameter verification failed."},
		{"target=pve9", "no such cluster node 'pve9'"},
		{"target=pve2&force=1", "Parameter verification failed."},
	} {
		if r := cl.do("POST /nodes/pve1/qemu/600/migrate", tc.params); r.Reason != tc.want {
			t.Errorf("%s: %d %s, want %s", tc.params, r.Status, r.Reason, tc.want)
		}
	}
	if exit, log := cl.task("POST /nodes/pve1/qemu/600/migrate", "target=pve2"); exit != "migration aborted" || !strings.Contains(strings.Join(log, "\n"), "as it's a clone of") {
		t.Errorf("a linked clone on local storage: %s %q", exit, log)
	}
	if err := c.Cut("pve1", "pve3"); err != nil {
		t.Fatal(err)
	}
	if err := c.Migrate(600, "pve3", pvesim.MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "Can't connect") {
		t.Errorf("over a cut: %v", err)
	}
	if err := c.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLock(600, "backup"); err != nil {
		t.Fatal(err)
	}
	if r := cl.do("POST /nodes/pve1/qemu/600/migrate", "target=pve2"); r.Reason != "VM is locked (backup)" {
		t.Errorf("locked: %d %s", r.Status, r.Reason)
	}
	cl.token = "x@pve!few=s"
	if r := cl.do("POST /nodes/pve1/qemu/600/migrate", "target=pve2"); r.Status != 403 {
		t.Errorf("without VM.Migrate: %d %s", r.Status, r.Reason)
	}
}

// TestMigrationGap: for a moment the VM is in no .vmlist, while its config is always at one of the two nodes.
func TestMigrationGap(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *pvesim.Cluster, _ *fabric.Network) {
		n := c.Node("pve3")
		where := func() (listed string, file string) {
			for _, node := range []string{"pve1", "pve2"} {
				if _, err := os.Stat(filepath.Join(n.PMXCFS, "nodes", node, "qemu-server", "101.conf")); err == nil {
					file += node
				}
			}
			return list(t, n).IDs["101"].Node, file
		}
		done := make(chan error, 1)
		go func() { done <- c.Migrate(101, "pve1", pvesim.MigrateOptions{Gap: 40 * time.Second}) }()
		for _, want := range [][2]string{{"", "pve2"}, {"", "pve1"}, {"pve1", "pve1"}} {
			time.Sleep(15 * time.Second) //nolint:forbidigo // virtual time
			if listed, file := where(); listed != want[0] || file != want[1] {
				t.Errorf("listed at %q, file at %q, want %q", listed, file, want)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestMigrateChecks: what PVE finds when it looks closer, in the log of the task; the VM goes on where it is.
func TestMigrateChecks(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1") // 100 runs there
	for _, tc := range []struct {
		key, value, want string
	}{
		{"hostpci0", "0000:01:00.0", "can't migrate VM which uses local devices: hostpci0"},
		{"serial1", "/dev/ttyS0", "can't migrate VM which uses local devices: serial1"},
		{"ide3", "local:iso/x.iso,media=cdrom", "can't migrate VM - check log"},
		{"ide3", "cdrom,media=cdrom", "can't migrate VM - check log"},
		{"ide3", "none,media=cdrom", ""},
	} {
		if err := c.SetConfig(100, map[string]string{tc.key: tc.value}); err != nil {
			t.Fatal(err)
		}
		exit, log := cl.task("POST /nodes/pve1/qemu/100/migrate", "target=pve2&online=1&with-local-disks=1")
		if text := strings.Join(log, "\n"); (exit == "OK") != (tc.want == "") || !strings.Contains(text, tc.want) || !c.Running(100) {
			t.Errorf("%s %s: %s\n%s", tc.key, tc.value, exit, text)
		}
		if err := c.SetConfig(100, map[string]string{tc.key: ""}); err != nil {
			t.Fatal(err)
		}
	}
	if exit, log := newClient(t, c, "pve2").task("POST /nodes/pve2/qemu/100/snapshot", "snapname=before"); exit != "OK" {
		t.Fatal(log)
	}
	if exit, _ := newClient(t, c, "pve2").task("POST /nodes/pve2/qemu/100/migrate", "target=pve1&online=1&with-local-disks=1"); exit != "migration aborted" || !c.Running(100) {
		t.Errorf("a running VM with a snapshot on local storage: %s", exit)
	}
}

// TestMigrateTargetDies: the VM stays on the source, unlocked and running, and nothing of it is on the target.
func TestMigrateTargetDies(t *testing.T) {
	c := startCluster(t, nil)
	release := c.HoldTasksOn("pve1", "qmigrate")
	defer release()
	done := make(chan error, 1)
	go func() { done <- c.Migrate(100, "pve2", pvesim.MigrateOptions{}) }()
	eventually(t, "the migration is under way", func() bool {
		conf, err := c.Config(100)
		return err == nil && conf["lock"] == "migrate"
	})
	if err := c.KillNode("pve2"); err != nil {
		t.Fatal(err)
	}
	release()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "unable to reach the target node 'pve2'") {
		t.Error(err)
	}
	conf, err := c.Config(100)
	if owner, _ := c.Owner(100); owner != "pve1" || !c.Running(100) || err != nil || conf["lock"] != "" {
		t.Errorf("on %s, runs %v, %v, %v", owner, c.Running(100), conf, err)
	}
}
