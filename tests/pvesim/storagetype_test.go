package pvesim_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// blocks adds a storage of each block type.
func blocks(t *testing.T, c *pvesim.Cluster) {
	t.Helper()
	for name, kind := range map[string]string{
		"local-lvm": pvesim.TypeLVMThin, "zfs": pvesim.TypeZFS, "ceph": pvesim.TypeRBD, "thick": pvesim.TypeLVM,
	} {
		if err := c.AddStorage(pvesim.Storage{Name: name, Type: kind, Content: []string{"images", "rootdir"}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStorageTypes(t *testing.T) {
	c := lab(t, nil)
	blocks(t, c)
	cfg, err := os.ReadFile(filepath.Join(c.Node("pve1").PMXCFS, "storage.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lvmthin: local-lvm\n\tthinpool data\n", "zfspool: zfs\n\tpool zfs/data\n", "rbd: ceph\n", "lvm: thick\n"} {
		if !strings.Contains(string(cfg), want) {
			t.Errorf("storage.cfg lacks %q:\n%s", want, cfg)
		}
	}
	for _, x := range []struct{ storage, base, linked, refused string }{
		{"local-lvm", "local-lvm:base-950-disk-0", "local-lvm:vm-951-disk-0", ""},
		{"zfs", "zfs:base-950-disk-0", "zfs:base-950-disk-0/vm-951-disk-0", ""},
		{"ceph", "ceph:base-950-disk-0", "ceph:base-950-disk-0/vm-951-disk-0", ""},
		{"thick", "thick:vm-950-disk-0", "", "Linked clone feature is not supported for 'thick:vm-950-disk-0' (scsi0)"},
		{"local", "local:950/base-950-disk-0.raw", "local:950/base-950-disk-0.raw/951/vm-951-disk-0.qcow2", ""},
	} {
		t.Run(x.storage, func(t *testing.T) {
			cl := newClient(t, c, "pve1")
			cl.ends("POST /nodes/pve1/qemu", "vmid=950&scsi0="+x.storage+":1&ide2="+x.storage+":cloudinit", "OK")
			if x.storage != "local" {
				cl.says("PUT /nodes/pve1/qemu/950/config", "scsi1="+x.storage+":1,format=qcow2", 500, "does not support format 'qcow2'")
				cl.says("PUT /nodes/pve1/qemu/950/config", "scsi1="+x.storage+":950/vm-950-disk-0.qcow2", 500, "volume name '950/vm-950-disk-0.qcow2'")
			}
			if exit, _ := cl.task("POST /nodes/pve1/qemu/950/template", ""); exit != "OK" {
				t.Fatal(exit)
			}
			if got := strings.Split(conf(t, c, 950)["scsi0"], ",")[0]; got != x.base {
				t.Errorf("base %q", got)
			}
			if x.refused != "" {
				cl.says("POST /nodes/pve1/qemu/950/clone", "newid=951&full=0", 500, x.refused)
				cl.ends("DELETE /nodes/pve1/qemu/950", "", "OK")
				return
			}
			cl.ends("POST /nodes/pve1/qemu/950/clone", "newid=951&full=0", "OK")
			if got := conf(t, c, 951)["scsi0"]; got != x.linked+",size=1G" {
				t.Errorf("linked clone %q", got)
			}
			if thin := x.storage == "local-lvm"; !thin {
				cl.ends("DELETE /nodes/pve1/qemu/950", "", "base volume '"+x.base+"' is still in use by linked cloned")
			}
			var list []struct{ Volid, Format string }
			if err := json.Unmarshal(cl.must("GET /nodes/pve1/storage/"+x.storage+"/content", "vmid=951").Data, &list); err != nil || len(list) != 2 {
				t.Errorf("content %v, %v", list, err)
			}
			cl.ends("DELETE /nodes/pve1/qemu/951", "", "OK")
			cl.ends("DELETE /nodes/pve1/qemu/950", "", "OK")
		})
	}
}

// TestSnapshotsWhereTheyCanBe: raw files and TPM state on a directory refuse, block storages do not care.
func TestSnapshotsWhereTheyCanBe(t *testing.T) {
	c := lab(t, nil)
	blocks(t, c)
	cl := newClient(t, c, "pve1")
	can := func(want bool) {
		t.Helper()
		var f struct{ HasFeature int }
		if err := json.Unmarshal(cl.must("GET "+vm100+"/feature", "feature=snapshot").Data, &f); err != nil || (f.HasFeature == 1) != want {
			t.Errorf("feature: %+v, want %t", f, want)
		}
		exit := "OK"
		if !want {
			exit = "snapshot feature is not available"
		}
		cl.ends("POST "+vm100+"/snapshot", "snapname=s1", exit)
		if want {
			cl.ends("DELETE "+vm100+"/snapshot/s1", "", "OK")
		}
	}
	can(true)
	cl.must("PUT "+vm100+"/config", "scsi1=local:1") // raw, as PVE makes them where nobody asks for qcow2
	can(false)
	cl.must("PUT "+vm100+"/config", "delete=scsi1&scsi2=local:1,format=qcow2&scsi3=local-lvm:1&scsi4=zfs:1&scsi5=ceph:1&tpmstate0=ceph:1,version=v2.0")
	can(true)
	cl.must("PUT "+vm100+"/config", "tpmstate0=local:1,version=v2.0")
	expect(t, c, 100, map[string]string{"tpmstate0": "local:100/vm-100-disk-3.raw,size=4M,version=v2.0"})
	can(false)
	cl.says("PUT "+vm100+"/config", "tpmstate0=local:100/vm-100-disk-3.raw,version=v1.2", 500, "cannot change TPM state version after creation")
}

// TestCloneOfASnapshot: it has the size that the disk has now, where the storage can copy one at all.
func TestCloneOfASnapshot(t *testing.T) {
	c := lab(t, nil)
	blocks(t, c)
	cl := newClient(t, c, "pve1")
	cl.must("PUT "+vm100+"/config", "scsi1=ceph:1")
	cl.ends("POST "+vm100+"/snapshot", "snapname=s1", "OK")
	cl.ends("PUT "+vm100+"/resize", "disk=scsi0&size=%2B64M", "OK")
	cl.must("PUT "+vm100+"/config", "name=later")
	cl.ends("POST "+vm100+"/clone", "newid=140&full=1&snapname=s1", "OK")
	expect(t, c, 140, map[string]string{"scsi0": "local:140/vm-140-disk-0.qcow2,size=72M", "scsi1": "ceph:vm-140-disk-0,size=1G", "parent": "", "snaptime": ""})
	cl.says("POST "+vm100+"/clone", "newid=141&full=0&snapname=s1", 500, "Linked clone feature is not supported for a snapshot of 'local:100/vm-100-disk-0.qcow2' (scsi0)")
	cl.says("POST "+vm100+"/clone", "newid=141&full=1&snapname=s9", 500, "snapshot 's9' does not exist")
	cl.ends("DELETE "+vm100+"/snapshot/s1", "", "OK")
	cl.must("PUT "+vm100+"/config", "delete=scsi1&scsi2=zfs:1")
	cl.ends("POST "+vm100+"/snapshot", "snapname=s2", "OK")
	cl.says("POST "+vm100+"/clone", "newid=141&full=1&snapname=s2", 500, "Full clone feature is not supported for a snapshot of 'zfs:vm-100-disk-0' (scsi2)")
}

// TestSnapshotOfMemory: it has a volume of its own, which goes with it.
func TestSnapshotOfMemory(t *testing.T) {
	c := lab(t, nil)
	blocks(t, c)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "vmstatestorage=local-lvm")
	cl.ends("POST "+vm100+"/snapshot", "snapname=ram&vmstate=1", "OK")
	volumes := func() string { return cl.must("GET /nodes/pve1/storage/local-lvm/content", "").Body }
	if !strings.Contains(volumes(), "vm-100-state-ram") || !strings.Contains(cl.must("GET "+vm100+"/snapshot/ram/config", "").Body, `"vmstate":"local-lvm:vm-100-state-ram"`) {
		t.Errorf("no state volume: %s", volumes())
	}
	// Without room for it nothing is left, and nothing is locked.
	c.FailAllocation("", 1)
	if exit, _ := cl.task("POST "+vm100+"/snapshot", "snapname=ram2&vmstate=1"); !strings.Contains(exit, "free space") {
		t.Error(exit)
	}
	expect(t, c, 100, map[string]string{"lock": "", "parent": "ram"})
	cl.ends("DELETE "+vm100+"/snapshot/ram", "", "OK")
	if strings.Contains(volumes(), "state") {
		t.Errorf("the state volume stayed: %s", volumes())
	}
}
