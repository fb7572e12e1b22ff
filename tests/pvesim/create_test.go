package pvesim_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func TestCreateWithEverything(t *testing.T) {
	versions(t, func(t *testing.T, version string, c *pvesim.Cluster, cl *client) {
		dir, err := c.StorageDir("pve1", "local")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "template/iso/x.iso"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.AddPool("tenants"); err != nil {
			t.Fatal(err)
		}
		release := c.HoldTasks("qmcreate")
		r := cl.must("POST /nodes/pve1/qemu", "vmid=131&name=web&scsihw=virtio-scsi-single&scsi0=local:8,discard=on,format=qcow2&virtio0=shared:1&"+
			"scsi1=local:0,import-from=local:100/vm-100-disk-0.qcow2&ide2=local:iso/x.iso,media=cdrom&net0=virtio,bridge=vmbr0&"+
			"bios=ovmf&machine=q35&efidisk0=local:1,efitype=4m,pre-enrolled-keys=1&tpmstate0=local:1,version=v2.0&pool=tenants&"+
			"tags=B,a&smbios1=uuid=11111111-2222-3333-4444-555555555555&ostype=l26&sshkeys="+"ssh-ed25519%2520AAAA")
		if got := conf(t, c, 131); got["lock"] != "create" || len(got) != 1 {
			t.Errorf("while it is made: %v", got)
		}
		release()
		if exit, log := cl.wait(strings.Trim(string(r.Data), `"`)); exit != "OK" {
			t.Fatal(exit, log)
		}
		efi := "local:131/vm-131-disk-0.raw,efitype=4m,pre-enrolled-keys=1,size=528K"
		if version == "9.1" {
			efi = "local:131/vm-131-disk-0.raw,efitype=4m,ms-cert=2023k,pre-enrolled-keys=1,size=528K"
		}
		expect(t, c, 131, map[string]string{
			"lock": "", "name": "web", "scsi0": "local:131/vm-131-disk-1.qcow2,discard=on,size=8G", "virtio0": "shared:131/vm-131-disk-0.raw,size=1G",
			"scsi1": "local:131/vm-131-disk-2.qcow2,size=8M", "ide2": "local:iso/x.iso,media=cdrom,size=1M", "efidisk0": efi,
			"tpmstate0": "local:131/vm-131-disk-3.raw,size=4M,version=v2.0", "tags": "a;b", "smbios1": "uuid=11111111-2222-3333-4444-555555555555",
			"boot": "order=scsi0;ide2;net0", "vmgenid": "*", "meta": "*", "net0": "*", "machine": "q35",
		})
		if got := c.PoolMembers("tenants"); !slices.Equal(got, []int{131}) {
			t.Errorf("pool: %v", got)
		}
		cl.ends("POST /nodes/pve1/qemu/131/status/start", "", "OK")
		if version != "7.4" {
			cl.says("POST /nodes/pve1/qemu/131/clone", "newid=132&full=1", 500, "cannot clone TPM state while VM is running")
		}
		cl.ends("POST /nodes/pve1/qemu/131/status/stop", "", "OK")
		cl.ends("POST /nodes/pve1/qemu/131/clone", "newid=132&full=1&pool=tenants&storage=shared", "OK")
		clone := conf(t, c, 132)
		if clone["smbios1"] == conf(t, c, 131)["smbios1"] || clone["vmgenid"] == conf(t, c, 131)["vmgenid"] || clone["net0"] == conf(t, c, 131)["net0"] {
			t.Errorf("the clone has what has to be its own: %v", clone)
		}
		expect(t, c, 132, map[string]string{
			"efidisk0": strings.ReplaceAll(strings.ReplaceAll(efi, "131", "132"), "local", "shared"), "tpmstate0": "*", "tags": "a;b", "bios": "ovmf",
			"ide2": "local:iso/x.iso,media=cdrom,size=1M", "unused0": "", "lock": "",
		})
		if got := c.PoolMembers("tenants"); !slices.Equal(got, []int{131, 132}) {
			t.Errorf("pool: %v", got)
		}
		cl.ends("DELETE /nodes/pve1/qemu/132", "", "OK")
		if got := c.PoolMembers("tenants"); !slices.Equal(got, []int{131}) {
			t.Errorf("pool after the delete: %v", got)
		}
	})
}

func TestCreateRefuses(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	const post = "POST /nodes/pve1/qemu"
	cl.says(post, "vmid=131&pool=none", 500, "pool 'none' does not exist")
	cl.says(post, "vmid=131&args=-s", 500, "only root can set 'args' config")
	cl.says(post, "vmid=131&hookscript=local:snippets/x", 500, "only root can set 'hookscript' config")
	cl.says(post, "vmid=131&serial0=/dev/ttyS0", 500, "only root can set 'serial0' config for real devices")
	cl.ends(post, "vmid=131&ide2=local:iso/none.iso,media=cdrom", "unable to create VM 131 - volume 'local:iso/none.iso' does not exist")
	cl.ends(post, "vmid=131&scsi0=local:0,import-from=local:import/none.qcow2",
		"unable to create VM 131 - cannot import from 'local:import/none.qcow2' - volume 'local:import/none.qcow2' does not exist")
	if err := c.AddStorage(pvesim.Storage{Name: "isos", Content: []string{"iso"}}); err != nil {
		t.Fatal(err)
	}
	cl.says(post, "vmid=131&scsi0=isos:1", 400, "storage 'isos' does not support vm images")
	if _, ok := c.Owner(131); ok {
		t.Error("VM 131 stayed")
	}
}

// TestCreateInAPool: who may allocate in a pool may make VMs there, and has then on the VM what it has on the pool.
func TestCreateInAPool(t *testing.T) {
	c := lab(t, nil)
	if err := c.AddPool("tenants"); err != nil {
		t.Fatal(err)
	}
	c.AddToken("virtrigaud@pve!pool", "secret", pvesim.ACL{
		"/pool/tenants": {"VM.Allocate", "VM.Audit", "VM.Clone", "VM.Config.Memory", "VM.PowerMgmt", "Pool.Audit"},
		"/storage":      {"Datastore.AllocateSpace"},
	})
	cl := newClient(t, c, "pve1")
	cl.token = "virtrigaud@pve!pool=secret"
	cl.says("POST /nodes/pve1/qemu", "vmid=131&memory=512", 403, "Permission check failed")
	cl.says("POST /nodes/pve1/qemu", "vmid=131&memory=512&cores=1&pool=tenants", 403, "/vms/131, VM.Config.CPU")
	cl.ends("POST /nodes/pve1/qemu", "vmid=131&memory=512&scsi0=local:1&pool=tenants", "OK")
	cl.must("PUT /nodes/pve1/qemu/131/config", "memory=1024")
	cl.says("PUT /nodes/pve1/qemu/131/config", "cores=2", 403, "Permission check failed")
	cl.says("GET /nodes/pve1/qemu/100/config", "", 403, "VM.Audit")
	cl.says("POST /nodes/pve1/qemu/131/clone", "newid=132", 403, "Permission check failed")
	cl.ends("POST /nodes/pve1/qemu/131/clone", "newid=132&pool=tenants", "OK")
	if body := cl.must("GET /cluster/resources", "type=vm").Body; !strings.Contains(body, `"pool":"tenants"`) {
		t.Errorf("resources: %s", body)
	}
}

func TestPools(t *testing.T) {
	versions(t, func(t *testing.T, version string, c *pvesim.Cluster, cl *client) {
		cl.must("POST /pools", "poolid=a&comment=first")
		cl.says("POST /pools", "poolid=a", 500, "pool 'a' already exists")
		cl.must("POST /pools", "poolid=b")
		cl.must("PUT /pools/a", "vms=100,200&storage=local")
		cl.says("PUT /pools/a", "vms=100", 500, "VM 100 is already a pool member")
		cl.says("PUT /pools/b", "vms=100", 500, "VM 100 belongs already to pool 'a'")
		if version != "7.4" {
			cl.must("PUT /pools", "poolid=b&vms=100&allow-move=1")
			cl.must("PUT /pools", "poolid=a&vms=100&allow-move=1")
		}
		cl.says("DELETE /pools/a", "", 500, "pool 'a' is not empty")
		file, err := os.ReadFile(filepath.Join(c.Node("pve2").PMXCFS, "user.cfg"))
		if err != nil || !strings.Contains(string(file), "\npool:a:first:100,200:local:\npool:b::::\n") {
			t.Errorf("user.cfg: %v\n%s", err, file)
		}
		if !strings.Contains(string(file), "token:virtrigaud@pve!agent:0:1::\n") || !strings.Contains(string(file), "acl:1:/:virtrigaud@pve!agent:Role1:\n") {
			t.Errorf("user.cfg has no token:\n%s", file)
		}
		var a struct {
			Members []struct {
				ID   string
				VMID int
				Node string
			}
		}
		if err := json.Unmarshal(cl.must("GET /pools/a", "").Data, &a); err != nil || len(a.Members) != 3 || a.Members[1].Node != "pve2" {
			t.Errorf("members: %+v, %v", a, err)
		}
		cl.must("PUT /pools/a", "vms=100,200&storage=local&delete=1")
		cl.must("DELETE /pools/a", "")
		if body := cl.must("GET /pools", "").Body; strings.Contains(body, `"a"`) || !strings.Contains(body, `"b"`) {
			t.Error(body)
		}
		c.ForgetSchemaErrors()
	})
}

func TestCapabilities(t *testing.T) {
	versions(t, func(t *testing.T, version string, _ *pvesim.Cluster, cl *client) {
		var machines []struct{ ID, Type, Version string }
		if err := json.Unmarshal(cl.must("GET /nodes/pve1/capabilities/qemu/machines", "").Data, &machines); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"7.4": "pc-q35-7.2", "8.4": "pc-q35-9.2", "9.1": "pc-q35-10.1"}[version]
		if !slices.ContainsFunc(machines, func(m struct{ ID, Type, Version string }) bool { return m.ID == want && m.Type == "q35" }) {
			t.Errorf("%v", machines)
		}
		body := cl.must("GET /nodes/pve1/capabilities/qemu/cpu", "").Body
		if strings.Contains(body, `"x86-64-v3"`) == (version == "7.4") || !strings.Contains(body, `"host"`) {
			t.Error(body)
		}
	})
}
