package pvesim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// versions runs a test against each version of PVE, with its call schema where there is one.
func versions(t *testing.T, test func(t *testing.T, version string, c *pvesim.Cluster, cl *client)) {
	t.Helper()
	for _, version := range []string{"7.4", "8.4", "9.1"} {
		t.Run(version, func(t *testing.T) {
			c := lab(t, func(cfg *pvesim.Config) { cfg.Version = version })
			test(t, version, c, newClient(t, c, "pve1"))
		})
	}
}

// says checks that a request is refused with a status and a text.
func (cl *client) says(call, params string, status int, text string) {
	cl.t.Helper()
	r := cl.do(call, params)
	if r.Status != status || !strings.Contains(r.Body, strings.Trim(fmt.Sprintf("%q", text), `"`)) && !strings.Contains(r.Body, text) {
		cl.t.Errorf("%s %s: %d %s, want %d %s", call, params, r.Status, r.Body, status, text)
	}
}

// ends checks how a task ends.
func (cl *client) ends(call, params, exit string) []string {
	cl.t.Helper()
	got, log := cl.task(call, params)
	if got != exit {
		cl.t.Errorf("%s %s: %q, want %q\n%s", call, params, got, exit, strings.Join(log, "\n"))
	}
	return log
}

// expect compares options of a VM; "" means that it has none such, "*" any.
func expect(t *testing.T, c *pvesim.Cluster, vmid int, want map[string]string) {
	t.Helper()
	got := conf(t, c, vmid)
	for key, v := range want {
		if got[key] != v && (v != "*" || got[key] == "") {
			t.Errorf("VM %d: %s is %q, want %q", vmid, key, got[key], v)
		}
	}
}

func TestVersionsDiffer(t *testing.T) {
	versions(t, func(t *testing.T, version string, c *pvesim.Cluster, cl *client) {
		old := version == "7.4"
		grown := cl.do("PUT "+vm100+"/resize", "disk=scsi0&size=%2B64M")
		if sync := string(grown.Data) == "null"; grown.Status != http.StatusOK || sync != old {
			t.Errorf("resize: %d %s", grown.Status, grown.Body)
		}
		if !old {
			_, _ = cl.wait(strings.Trim(string(grown.Data), `"`))
		}
		expect(t, c, 100, map[string]string{"scsi0": "local:100/vm-100-disk-0.qcow2,size=72M"})

		if os.Getenv("PVE_API_SCHEMA") == "" {
			t.Skip("skipped: needs PVE's call schema; enable with: export PVE_API_SCHEMA=<directory>/9.1.json")
		}
		unknown := func(call, params string, is bool) {
			t.Helper()
			r := cl.do(call, params)
			if got := strings.Contains(r.Body, "not defined in schema") || strings.Contains(r.Body, "is not defined (missing"); got != is {
				t.Errorf("%s %s: %s", call, params, r.Body)
			}
		}
		unknown("PUT "+vm100+"/config", "ciupgrade=0", old)
		unknown("PUT "+vm100+"/config", "allow-ksm=1", version != "9.1")
		unknown("PUT "+vm100+"/config", "cpu=x86-64-v2-AES", old)
		unknown("PUT "+vm100+"/config", "cpu=nonsense", true)
		unknown("PUT "+vm100+"/config", "cpu=host", false)
		unknown("GET /pools", "poolid=x", old)
		c.ForgetSchemaErrors()
	})
}

func TestManyKeysAtOnce(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "name=new&description=d&tags=B,a,b&cpulimit=1.5&cpuunits=20000&cores=4&sockets=1&numa=1&"+
		"scsi1=local:1,format=qcow2,serial=data,discard=on&virtio1=shared:2&net1=virtio,bridge=vmbr1&ide1=local:1&bios=ovmf&agent=0&boot=order=scsi0")
	expect(t, c, 100, map[string]string{
		"name": "new", "description": "d", "tags": "a;b", "cpulimit": "1.5", "cpuunits": "10000",
		"scsi1": "local:100/vm-100-disk-2.qcow2,discard=on,serial=data,size=1G", "virtio1": "shared:100/vm-100-disk-0.raw,size=2G",
		"net1": "*", "ide1": "", "bios": "", "cores": "1", "sockets": "2", "agent": "1",
	})
	if got := pending(t, cl); got["ide1"] != "local:100/vm-100-disk-1.raw,size=1G" || got["bios"] != "ovmf" || got["cores"] != "4" || got["agent"] != "0" || got["scsi1"] != "" {
		t.Errorf("pending: %v", got)
	}
	// What the guest has was not taken away: a NIC of the same kind on another bridge goes on, one with another address does not.
	mac := strings.Split(strings.TrimPrefix(conf(t, c, 100)["net1"], "virtio="), ",")[0]
	cl.must("PUT "+vm100+"/config", "net1=virtio="+mac+",bridge=vmbr0,tag=7,firewall=1")
	expect(t, c, 100, map[string]string{"net1": "virtio=" + mac + ",bridge=vmbr0,firewall=1,tag=7"})
	cl.says("PUT "+vm100+"/config", "net1=virtio="+mac+",bridge=vmbr9", 400, "bridge 'vmbr9' does not exist")
	// A drive's throttle is changed live, its cache is not.
	cl.must("PUT "+vm100+"/config", "scsi1=local:100/vm-100-disk-2.qcow2,serial=data,discard=on,mbps_rd=5")
	expect(t, c, 100, map[string]string{"scsi1": "local:100/vm-100-disk-2.qcow2,discard=on,mbps_rd=5,serial=data,size=1G"})
	cl.must("PUT "+vm100+"/config", "scsi1=local:100/vm-100-disk-2.qcow2,serial=data,discard=on,cache=writeback")
	if got := pending(t, cl)["scsi1"]; !strings.Contains(got, "cache=writeback") {
		t.Errorf("cache: pending %q", got)
	}
	// Another volume takes its place, and the old one becomes unused; revert drops what is pending.
	cl.must("PUT "+vm100+"/config", "virtio1=shared:1&revert=scsi1,cores,sockets")
	expect(t, c, 100, map[string]string{"virtio1": "shared:100/vm-100-disk-1.raw,size=1G", "unused0": "shared:100/vm-100-disk-0.raw"})
	if got := pending(t, cl); got["scsi1"] != "" || got["cores"] != "" {
		t.Errorf("reverted: %v", got)
	}
	// The boot order forgets a device that goes.
	cl.must("PUT "+vm100+"/config", "boot=order=scsi0%3Bnet1")
	cl.must("POST "+vm100+"/status/stop", "")
	eventually(t, "the stop", func() bool { return !c.Running(100) })
	cl.must("PUT "+vm100+"/config", "delete=net1")
	expect(t, c, 100, map[string]string{"boot": "order=scsi0", "net1": ""})
	cl.must("PUT "+vm100+"/config", "ide2=local:cloudinit")
	expect(t, c, 100, map[string]string{"boot": "order=scsi0;ide2"})
	cl.says("PUT "+vm100+"/config", "ide0=local:cloudinit", 500, "ide0 - cloud-init drive is already attached at 'ide2'")
}

// pending are the options of VM 100 that wait for a restart.
func pending(t *testing.T, cl *client) map[string]string {
	t.Helper()
	out := map[string]string{}
	r := cl.must("GET "+vm100+"/pending", "")
	var list []struct {
		Key     string
		Pending any
	}
	if err := json.Unmarshal(r.Data, &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Pending != nil {
			out[e.Key] = fmt.Sprint(e.Pending)
		}
	}
	return out
}

func TestTagsAreCheckedAndNormalised(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	cl.must("PUT "+vm100+"/config", "tags="+url.QueryEscape("Web Prod_1;web,a+b.c"))
	expect(t, c, 100, map[string]string{"tags": "a+b.c;prod_1;web"})
	if os.Getenv("PVE_API_SCHEMA") != "" {
		cl.says("PUT "+vm100+"/config", "tags="+url.QueryEscape("größe"), 400, "invalid characters in tag")
		cl.says("PUT "+vm100+"/config", "tags=a:b", 400, "invalid characters in tag")
	}
	cl.must("PUT "+vm100+"/config", "delete=tags")
	expect(t, c, 100, map[string]string{"tags": ""})
}

func TestPVEsOwnChecks(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	put := "PUT " + vm100 + "/config"
	cl.says(put, "memory=512&balloon=1024", 500, "balloon value too large")
	cl.says(put, "balloon=2048", 500, "balloon value too large")
	cl.says(put, "delete=nosuch", 400, "unknown option 'nosuch'")
	cl.says(put, "delete=name&name=x", 400, "you can't use '-name' and -delete name' at the same time")
	cl.says(put, "boot=order=scsi7", 500, "invalid bootorder: device 'scsi7' does not exist'")
	cl.says(put, "ide2=local:iso/none.iso", 400, "explicit 'media=cdrom' is required for iso images")
	cl.says(put, "ide2=local:iso/none.iso,media=cdrom", 500, "volume 'local:iso/none.iso' does not exist")
	cl.says(put, "scsi3=local:2,import-from=local:import/x.qcow2", 400, "'import-from' requires special syntax")
	cl.says(put, "scsi3=local:0,import-from=local:import/none.qcow2", 500, "cannot import from 'local:import/none.qcow2'")
	cl.says(put, "scsi3=local:snippets/x.yaml", 500, "content type needs to be 'images' or 'iso'")
	if os.Getenv("PVE_API_SCHEMA") != "" {
		cl.says(put, "scsi3=local:1,serial="+strings.Repeat("x", 61), 400, "value may only be 60 characters long")
		cl.says(put, "cicustom=user=nonsense", 400, "unable to parse volume ID 'nonsense'")
		c.ForgetSchemaErrors()
	}
	for _, key := range []string{"args", "hookscript", "affinity", "vmgenid", "lock", "hostpci0=0000:01:00.0", "serial1=/dev/ttyS0", "usb0=host=1234:5678"} {
		key, v, ok := strings.Cut(key, "=")
		if !ok {
			v = map[string]string{"affinity": "0-1", "hookscript": "local:snippets/x", "vmgenid": "1", "lock": "backup"}[key]
		}
		cl.says(put, key+"="+url.QueryEscape(v), 500, "only root can ")
	}
	cl.must(put, "serial1=socket")
	expect(t, c, 100, map[string]string{"serial1": "socket"})
}

// TestPrivilegesOfOptions: which privilege is missing is told, for options and for the values of drives.
func TestPrivilegesOfOptions(t *testing.T) {
	c := lab(t, nil)
	for key, priv := range map[string]string{
		"cores=2": "VM.Config.CPU", "memory=2048": "VM.Config.Memory", "hotplug=1": "VM.Config.HWType", "smbios1=": "VM.Config.HWType",
		"name=x": "VM.Config.Options", "tags=x": "VM.Config.Options", "boot=": "VM.Config.Disk", "net0=virtio,bridge=vmbr0": "VM.Config.Network",
		"scsi1=local:1": "VM.Config.Disk", "ide2=none,media=cdrom": "VM.Config.CDROM", "ide2=local:cloudinit": "VM.Config.Cloudinit",
	} {
		all := []string{"VM.Config.CPU", "VM.Config.Memory", "VM.Config.HWType", "VM.Config.Options", "VM.Config.Disk", "VM.Config.Network", "VM.Config.CDROM", "VM.Config.Cloudinit"}
		var others []string
		for _, p := range all {
			if p != priv {
				others = append(others, p)
			}
		}
		c.AddToken("virtrigaud@pve!few", "secret", pvesim.ACL{"/vms": others, "/storage": {"Datastore.AllocateSpace"}, "/sdn": {"SDN.Use"}})
		cl := newClient(t, c, "pve1")
		cl.token = "virtrigaud@pve!few=secret"
		cl.says("PUT "+vm100+"/config", key, 403, priv)
	}
}

func TestMemoryIsPlugged(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	q, _ := c.QEMU(100)
	// The ladder gives more than asked for, and the config says what is there.
	cl.must("PUT "+vm100+"/config", "memory=1700")
	expect(t, c, 100, map[string]string{"memory": "2048"})
	if got := q.Balloon() >> 20; got != 2048 {
		t.Errorf("the machine has %d MiB", got)
	}
	cl.must("PUT "+vm100+"/config", "memory=1536")
	expect(t, c, 100, map[string]string{"memory": "1536"})
	cl.says("PUT "+vm100+"/config", "memory=512", 400, "memory can't be lower than 1024 MB")
	expect(t, c, 100, map[string]string{"memory": "1536"})
}

// TestDiskFullInTheMiddle: what was made before stays pending, nothing after it is made.
func TestDiskFullInTheMiddle(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	c.FailAllocation("local", 2)
	cl.says("PUT "+vm100+"/config", "scsi1=local:1&scsi2=local:1&scsi3=local:1", 500, "No space left on device")
	expect(t, c, 100, map[string]string{"scsi1": "", "scsi2": "", "scsi3": ""})
	if got := pending(t, cl); got["scsi1"] == "" || got["scsi2"] != "" {
		t.Errorf("pending: %v", got)
	}
	// The same once more makes another volume; the first is unused.
	cl.must("PUT "+vm100+"/config", "scsi1=local:1&scsi2=local:1&scsi3=local:1")
	expect(t, c, 100, map[string]string{"scsi1": "*", "scsi2": "*", "scsi3": "*", "unused0": "local:100/vm-100-disk-1.raw"})
	// Of a task it is the end; a new VM leaves nothing.
	c.FailAllocation("", 2)
	exit, _ := cl.task("POST /nodes/pve1/qemu", "vmid=131&memory=512&scsi0=local:1&scsi1=local:1")
	if !strings.HasPrefix(exit, "unable to create VM 131 - ") || !strings.Contains(exit, "No space left") {
		t.Error(exit)
	}
	if _, ok := c.Owner(131); ok || strings.Contains(cl.must("GET /nodes/pve1/storage/local/content", "").Body, "vm-131") {
		t.Error("the failed VM left something")
	}
}

func TestLockFileIsHeld(t *testing.T) {
	c := lab(t, func(cfg *pvesim.Config) { cfg.LockTimeout = 1 })
	cl := newClient(t, c, "pve1")
	release, err := c.HoldLock(100)
	if err != nil {
		t.Fatal(err)
	}
	cl.says("PUT "+vm100+"/config", "name=x", 500, "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout")
	release()
	release()
	cl.must("PUT "+vm100+"/config", "name=x")
}

func TestGuestVerbs(t *testing.T) {
	c := lab(t, func(cfg *pvesim.Config) { cfg.Fake = kvm.FakeConfig{} })
	cl := newClient(t, c, "pve2")
	if exit, _ := cl.task("POST /nodes/pve2/qemu/200/status/start", ""); exit != "OK" {
		t.Fatal(exit)
	}
	run(t, c, "guest-agent 200 off")
	cl.says("GET /nodes/pve2/qemu/200/agent/network-get-interfaces", "", 500, "QEMU guest agent is not running")
	run(t, c, "guest-agent 200 on", "balloon-driver 200 off", "keep-cpus 200 on")
	cl.must("GET /nodes/pve2/qemu/200/agent/network-get-interfaces", "")
	cl.must("PUT /nodes/pve2/qemu/200/config", "balloon=256&shares=0")
	if q, _ := c.QEMU(200); q.Balloon()>>20 != 512 {
		t.Errorf("a guest without driver gave memory: %d", q.Balloon())
	}
	run(t, c, "lock 200 backup")
	cl.says("PUT /nodes/pve2/qemu/200/config", "name=x", 500, "VM is locked (backup)")
	run(t, c, "lock 200 none", "disk-full 1 local")
	cl.says("PUT /nodes/pve2/qemu/200/config", "scsi1=local:1", 500, "No space left on device")
}
