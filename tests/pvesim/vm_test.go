package pvesim_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func TestProcessLooksLikeQEMU(t *testing.T) {
	c := startCluster(t, nil)
	n := c.Node("pve1")
	pidfile := filepath.Join(n.Run, "100.pid")
	b, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%s/cmdline", strings.TrimSpace(string(b))))
	if err != nil || !strings.Contains(string(cmdline), "-pidfile\x00"+pidfile+"\x00") {
		t.Errorf("%q %v", cmdline, err)
	}
	if _, err := os.Stat(filepath.Join(c.Node("pve2").Run, "101.pid")); err == nil {
		t.Error("VM 101 runs, but every other one should")
	}
}

func TestPendingUntilRestart(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "cores=2&description=at once&onboot=1")
	if got := conf(t, c, 100); got["cores"] != "1" || got["description"] != "at once" || got["onboot"] != "1" {
		t.Errorf("running: %v", got)
	}
	var items []map[string]any
	if err := json.Unmarshal(cl.must("GET "+vm100+"/pending", "").Data, &items); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(items, func(m map[string]any) bool { return m["key"] == "cores" })
	if i < 0 || items[i]["value"] != 1.0 || items[i]["pending"] != 2.0 {
		t.Errorf("pending: %v", items)
	}
	for params, want := range map[string]string{"": `"cores":2`, "current=1": `"cores":1`} {
		if r := cl.must("GET "+vm100+"/config", params); !strings.Contains(r.Body, want) {
			t.Errorf("config %s: %s", params, r.Body)
		}
	}
	cl.must("PUT "+vm100+"/config", "delete=agent")
	if exit, _ := cl.task("POST "+vm100+"/status/stop", ""); exit != "OK" {
		t.Fatal(exit)
	}
	if got := conf(t, c, 100); got["cores"] != "2" || got["agent"] != "" {
		t.Errorf("after the stop: %v", got)
	}
}

// TestStartAppliesWhatIsPending: as after a crash of the node, when nobody
// cleaned up.
func TestStartAppliesWhatIsPending(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	path := filepath.Join(c.Tree(), "nodes", "pve1", "qemu-server", "100.conf")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, "\n[PENDING]\ncores: 2\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	start("100")(t, c, cl)
	if got := conf(t, c, 100); got["cores"] != "2" {
		t.Errorf("cores %s", got["cores"])
	}
}

func TestHotVCPUs(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	cl.must("PUT "+vm100+"/config", "vcpus=1&cores=2")
	start("100")(t, c, cl)
	q, ok := c.QEMU(100)
	if !ok || q.VCPUs() != 1 {
		t.Fatalf("%v %v", ok, q)
	}
	for _, n := range []int{3, 2} {
		cl.must("PUT "+vm100+"/config", fmt.Sprintf("vcpus=%d", n))
		if q.VCPUs() != n || conf(t, c, 100)["vcpus"] != fmt.Sprint(n) {
			t.Errorf("vcpus %d, config %s, want %d", q.VCPUs(), conf(t, c, 100)["vcpus"], n)
		}
	}
	// Somebody plugged without telling the config.
	q.SetVCPUs(4)
	r := cl.do("PUT "+vm100+"/config", "vcpus=3")
	if want := "hotplug problem - vcpus in running vm does not match its configuration\n"; r.Status != 400 || r.Errors["vcpus"] != want {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

func TestHotDisk(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "scsi1=local:1,format=qcow2&sata0=local:1")
	got := conf(t, c, 100)
	if got["scsi1"] != "local:100/vm-100-disk-1.qcow2,size=1G" && got["scsi1"] != "local:100/vm-100-disk-2.qcow2,size=1G" {
		t.Errorf("scsi1: %q", got["scsi1"])
	}
	if got["sata0"] != "" {
		t.Errorf("sata0 cannot be plugged: %q", got["sata0"])
	}
	cl.must("PUT "+vm100+"/config", "delete=scsi1")
	if got := conf(t, c, 100); got["scsi1"] != "" || got["unused0"] == "" {
		t.Errorf("detached: %v", got)
	}
	cl.must("PUT "+vm100+"/config", "delete=unused0")
	if got := conf(t, c, 100); got["unused0"] != "" {
		t.Errorf("freed: %v", got)
	}
}

func TestGuestThatIgnoresShutdown(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	c.SetDeaf(100, true)
	if exit, _ := cl.task("POST "+vm100+"/status/shutdown", "timeout=1"); exit != "VM quit/powerdown failed - got timeout" {
		t.Errorf("%q", exit)
	}
	if exit, _ := cl.task("POST "+vm100+"/status/reboot", "timeout=1"); exit != "VM quit/powerdown failed - got timeout" {
		t.Errorf("reboot: %q", exit)
	}
	exit, log := cl.task("POST "+vm100+"/status/shutdown", "timeout=1&forceStop=1")
	if exit != "OK" || !slices.Contains(log, "VM still running - terminating now with SIGTERM") {
		t.Errorf("%q %q", exit, log)
	}
	if c.Running(100) {
		t.Error("still running")
	}
}

func TestShutdownWithoutAgentFallsBack(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	q, _ := c.QEMU(100)
	q.SetAgentSilent(true)
	if r := cl.do("GET "+vm100+"/agent/network-get-interfaces", ""); r.Status != 500 || r.Reason != "QEMU guest agent is not running" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	exit, log := cl.task("POST "+vm100+"/status/shutdown", "")
	if exit != "OK" || log[0] != "QEMU Guest Agent is not running - VM 100 qga command 'guest-ping' failed - got timeout" {
		t.Errorf("%q %q", exit, log)
	}
}

func TestReboot(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	if r := cl.do("POST "+vm100+"/status/reboot", ""); r.Reason != "VM 100 not running" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "cores=2")
	if exit, _ := cl.task("POST "+vm100+"/status/reboot", ""); exit != "OK" {
		t.Fatal(exit)
	}
	eventually(t, "a start by root@pam", func() bool {
		i := slices.IndexFunc(c.Tasks(), func(t *pvesim.Task) bool {
			return t.Type() == "qmstart" && strings.HasSuffix(t.UPID, ":root@pam:") && t.Exit() == "OK"
		})
		return i >= 0 && c.Running(100)
	})
	if got := conf(t, c, 100); got["cores"] != "2" {
		t.Errorf("cores %s: a reboot applies what is pending", got["cores"])
	}
}

func TestGuestPowersItselfOff(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	cl.must("PUT "+vm100+"/config", "cores=2")
	q, _ := c.QEMU(100)
	q.PowerOff()
	eventually(t, "QEMU was told to quit, and cleaned up after", func() bool {
		return !c.Running(100) && conf(t, c, 100)["cores"] == "2"
	})
}

func TestSuspend(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	if exit, _ := cl.task("POST "+vm100+"/status/suspend", ""); exit != "OK" {
		t.Fatal(exit)
	}
	if r := cl.must("GET "+vm100+"/status/current", ""); !strings.Contains(r.Body, `"qmpstatus":"paused"`) || !strings.Contains(r.Body, `"status":"running"`) {
		t.Errorf("%s", r.Body)
	}
	if r := cl.do("POST "+vm100+"/status/shutdown", ""); r.Reason != "VM is paused - cannot shutdown" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	for _, what := range []string{"resume", "reset"} {
		if exit, _ := cl.task("POST "+vm100+"/status/"+what, ""); exit != "OK" {
			t.Errorf("%s: %s", what, exit)
		}
	}
}

func TestAgentCalls(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	if r := cl.do("POST /nodes/pve1/qemu/100/agent/ping", ""); r.Body != `{"data":{"result":{}}}` {
		t.Errorf("ping: %s", r.Body)
	}
	r := cl.do("GET /nodes/pve1/qemu/100/agent/network-get-interfaces", "")
	if !strings.Contains(r.Body, `"ip-address":"10.77.0.100"`) || !strings.Contains(r.Body, `{"data":{"result":[`) {
		t.Errorf("interfaces: %s", r.Body)
	}
}

// TestHeldMonitor: while somebody holds VMID.qmp the status takes its time and says little.
func TestHeldMonitor(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	q, _ := c.QEMU(100)
	q.SetHung(true)
	r := cl.must("GET /nodes/pve1/qemu/100/status/current", "")
	if strings.Contains(r.Body, "blockstat") || !strings.Contains(r.Body, `"qmpstatus":"running"`) {
		t.Errorf("%s", r.Body)
	}
}

func TestLockFile(t *testing.T) {
	c := lab(t, func(cfg *pvesim.Config) { cfg.LockTimeout = 50 * time.Millisecond })
	cl := newClient(t, c, "pve1")
	f, err := os.OpenFile(filepath.Join(c.Node("pve1").Lock, "lock-100.conf"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	const timeout = "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"
	if r := cl.do("PUT "+vm100+"/config", "cores=2"); r.Status != 500 || r.Reason != timeout {
		t.Errorf("PUT: %d %s", r.Status, r.Reason)
	}
	exit, log := cl.task("POST "+vm100+"/status/start", "")
	if exit != timeout || !slices.Equal(log, []string{"trying to acquire lock...", "TASK ERROR: " + timeout}) {
		t.Errorf("start: %q %q", exit, log)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if r := cl.do("PUT "+vm100+"/config", "cores=2"); r.Status != 200 {
		t.Errorf("after the lock went: %d %s", r.Status, r.Reason)
	}
}

func TestCloudInit(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	cl.must("PUT "+vm100+"/config", "ide2=local:cloudinit&ciuser=lab&cipassword=secret&ipconfig0=ip=10.0.0.5/24,gw=10.0.0.1&sshkeys=ssh-ed25519%2520AAAA%2520x%2540y")
	if got := conf(t, c, 100)["ide2"]; got != "local:100/vm-100-cloudinit.qcow2,media=cdrom" {
		t.Errorf("ide2: %q", got)
	}
	if r := cl.must("GET "+vm100+"/config", ""); !strings.Contains(r.Body, `"cipassword":"**********"`) || strings.Contains(r.Body, "secret") {
		t.Errorf("%s", r.Body)
	}
	for kind, want := range map[string]string{"user": "  - ssh-ed25519 AAAA x@y\n", "network": "        netmask: '255.255.255.0'\n        gateway: '10.0.0.1'\n"} {
		var text string
		if err := json.Unmarshal(cl.must("GET "+vm100+"/cloudinit/dump", "type="+kind).Data, &text); err != nil || !strings.Contains(text, want) {
			t.Errorf("%s: %q %v", kind, text, err)
		}
	}
	exit, log := cl.task("POST "+vm100+"/status/start", "")
	if exit != "OK" || log[0] != "generating cloud-init ISO" {
		t.Errorf("%s %q", exit, log)
	}
}

func TestMissingSnippet(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	cl.must("PUT "+vm100+"/config", "ide2=local:cloudinit")
	cl.must("PUT "+vm100+"/config", "cicustom=user=local:snippets/mine.yaml")
	dir, err := c.StorageDir("pve1", pvesim.StorageLocal)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "snippets", "mine.yaml")
	if exit, _ := cl.task("POST "+vm100+"/status/start", ""); exit != "can't open '"+file+"' - No such file or directory" {
		t.Errorf("%q", exit)
	}
	if err := os.WriteFile(file, []byte("#cloud-config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, _ := cl.task("POST "+vm100+"/status/start", ""); exit != "OK" {
		t.Errorf("%q", exit)
	}
	if r := cl.must("GET /nodes/pve1/storage/local/content", "content=snippets"); !strings.Contains(r.Body, `"volid":"local:snippets/mine.yaml"`) {
		t.Errorf("%s", r.Body)
	}
}

func TestHA(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	cl.must("PUT /nodes/pve2/qemu/200/config", "delete=scsi0&boot=order=net0")
	if err := c.AddHA(200, "stopped"); err != nil {
		t.Fatal(err)
	}
	c.HAMove(200, "pve3")
	exit, log := cl.task("POST /nodes/pve2/qemu/200/status/start", "")
	if exit != "OK" || log[0] != "Requesting HA start for VM 200" {
		t.Errorf("%s %q", exit, log)
	}
	eventually(t, "HA moved and started it", func() bool {
		node, _ := c.Owner(200)
		return node == "pve3" && c.Running(200)
	})
	if c.TaskCount("hastart") != 1 {
		t.Errorf("%d hastart", c.TaskCount("hastart"))
	}
	if r := cl.must("GET /nodes/pve3/qemu/200/status/current", ""); !strings.Contains(r.Body, `"ha":{"managed":1}`) {
		t.Errorf("%s", r.Body)
	}
	if exit, _ := cl.task("POST /nodes/pve3/qemu/200/status/stop", ""); exit != "OK" {
		t.Error(exit)
	}
	eventually(t, "HA stopped it", func() bool { return !c.Running(200) })
	eventually(t, "the stop's own task ended", func() bool {
		return slices.IndexFunc(c.Tasks(), func(t *pvesim.Task) bool { return t.Type() == "qmshutdown" && t.Exit() == "OK" }) >= 0
	})
	if r := cl.do("DELETE /nodes/pve3/qemu/200", ""); r.Reason != "unable to remove VM 200 - used in HA resources and purge parameter not set." {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	if exit, log := cl.task("DELETE /nodes/pve3/qemu/200", "purge=1"); exit != "OK" || !slices.Contains(log, "NOTE: removed VM 200 from HA resource configuration.") {
		t.Errorf("%s %q", exit, log)
	}
	if r := cl.must("GET /cluster/ha/resources", ""); string(r.Data) != "[]" {
		t.Errorf("%s", r.Data)
	}
}

func TestTaskList(t *testing.T) {
	c := lab(t, nil)
	cl := newClient(t, c, "pve1")
	release := c.HoldTasks("qmstart")
	defer release()
	upid := cl.upidOf("POST "+vm100+"/status/start", "")
	if r := cl.must("GET /nodes/pve1/tasks/"+upid+"/status", ""); !strings.Contains(r.Body, `"status":"running"`) || strings.Contains(r.Body, "exitstatus") {
		t.Errorf("%s", r.Body)
	}
	list := func(params string) (upids []string, total int, statuses []string) {
		t.Helper()
		r := cl.must("GET /nodes/pve1/tasks", params)
		var items []struct{ UPID, Status string }
		if err := json.Unmarshal(r.Data, &items); err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			upids, statuses = append(upids, i.UPID), append(statuses, i.Status)
		}
		return upids, r.Total, statuses
	}
	if ids, _, st := list("source=active"); !slices.Equal(ids, []string{upid}) || st[0] != "RUNNING" {
		t.Errorf("active: %q %q", ids, st)
	}
	if ids, _, _ := list("vmid=100"); slices.Contains(ids, upid) {
		t.Errorf("archive has a running task: %q", ids)
	}
	release()
	cl.wait(upid)
	for params, want := range map[string]int{
		"vmid=100&typefilter=qmstart": 1, "vmid=100&typefilter=qmstop": 0, "typefilter=qmtemplate": 2,
		"typefilter=qmtemplate&limit=1": 1, "userfilter=nobody": 0, "errors=1": 0, "since=4000000000": 0, "source=all&vmid=900": 1,
	} {
		if ids, _, _ := list(params); len(ids) != want {
			t.Errorf("%s: %d, want %d", params, len(ids), want)
		}
	}
	if _, total, _ := list("typefilter=qmtemplate&limit=1"); total != 2 {
		t.Errorf("total %d, want 2", total)
	}
}

func TestVanish(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	if err := c.VanishVM(100); err != nil {
		t.Fatal(err)
	}
	if r := cl.do("GET /nodes/pve1/qemu/100/config", ""); r.Reason != "Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
	if exit, _ := cl.task("POST /nodes/pve1/qemu/100/status/stop", ""); exit != "unable to find configuration file for VM 100 on node 'pve1'" {
		t.Errorf("%q", exit)
	}
}

// TestStartRightAfterStop: the clean-up of the old process holds the lock
// while the new one runs.
func TestStartRightAfterStop(t *testing.T) {
	c := lab(t, func(cfg *pvesim.Config) {
		cfg.CleanupDelay, cfg.CleanupHold, cfg.LockTimeout = 200*time.Millisecond, time.Minute, 300*time.Millisecond
	})
	cl := newClient(t, c, "pve1")
	start("100")(t, c, cl)
	if exit, _ := cl.task("POST "+vm100+"/status/stop", ""); exit != "OK" {
		t.Fatal(exit)
	}
	start("100")(t, c, cl)
	eventually(t, "a change meets the lock", func() bool {
		return cl.do("PUT "+vm100+"/config", "description=x").Reason == "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"
	})
}
