package pvesim_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/pmxfuse"
)

// vmlist is .vmlist as a reader sees it.
type vmlist struct {
	Version int
	IDs     map[string]struct {
		Node, Type string
		Version    int
	}
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, b)
	}
}

func list(t *testing.T, n *pvesim.Node) vmlist {
	t.Helper()
	var l vmlist
	readJSON(t, filepath.Join(n.PMXCFS, ".vmlist"), &l)
	return l
}

func counter(t *testing.T, n *pvesim.Node, name string) int {
	t.Helper()
	var v map[string]any
	readJSON(t, filepath.Join(n.PMXCFS, ".version"), &v)
	f, _ := v[name].(float64)
	return int(f)
}

func TestVMListFollowsConfigs(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	n := c.Node("pve3")
	before := list(t, n)
	if len(before.IDs) != 6 || before.IDs["101"].Node != "pve2" || before.IDs["9000"].Node != "pve1" {
		t.Fatalf("%+v", before)
	}
	if got := counter(t, n, "vmlist"); got != before.Version {
		t.Errorf(".version says %d, .vmlist %d", got, before.Version)
	}
	cl.must("PUT /nodes/pve2/qemu/101/config", "cores=2")
	after := list(t, n)
	if after.IDs["101"].Version <= before.IDs["101"].Version || after.IDs["100"] != before.IDs["100"] || after.Version <= before.Version {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	if err := c.MoveVM(101, "pve3"); err != nil {
		t.Fatal(err)
	}
	if got := list(t, n).IDs["101"].Node; got != "pve3" {
		t.Errorf("after the move: %s", got)
	}
	if err := c.AddContainer(150, "pve1"); err != nil {
		t.Fatal(err)
	}
	if got := list(t, n).IDs["150"]; got.Type != "lxc" {
		t.Errorf("container: %+v", got)
	}
}

func TestForeignWritesAreSeen(t *testing.T) {
	c := startCluster(t, nil)
	n := c.Node("pve2")
	conf := filepath.Join(n.PMXCFS, "nodes", "pve1", "qemu-server", "100.conf")
	was := list(t, n).IDs["100"].Version
	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(conf+".tmp", append(b, "vcpus: 1\n"...), 0o600), os.Rename(conf+".tmp", conf)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "100's version grows", func() bool { return list(t, n).IDs["100"].Version > was })
	if err := os.WriteFile(filepath.Join(filepath.Dir(conf), "777.conf"), []byte("name: new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "777 is listed", func() bool { return list(t, n).IDs["777"].Node == "pve1" })
	if err := os.Remove(filepath.Join(filepath.Dir(conf), "777.conf")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "777 is gone", func() bool { _, ok := list(t, n).IDs["777"]; return !ok })
	// What is not listed does not change for nothing.
	if now := list(t, n); now.IDs["101"].Version > now.IDs["100"].Version {
		t.Errorf("%+v", now)
	}
	was = counter(t, n, "ha/resources.cfg")
	if err := os.WriteFile(filepath.Join(n.PMXCFS, "ha", "resources.cfg"), []byte("vm: 100\n\tstate started\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ha/resources.cfg is counted", func() bool { return counter(t, n, "ha/resources.cfg") > was })
}

// TestClaims: O_EXCL below priv/ has one winner, on whichever node it is asked for.
func TestClaims(t *testing.T) {
	c := startCluster(t, nil)
	dir := filepath.Join("priv", "pve-rigaud", "vms")
	if err := os.MkdirAll(filepath.Join(c.Node("pve1").PMXCFS, dir), 0o700); err != nil {
		t.Fatal(err)
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		winners []string
	)
	for _, n := range c.Nodes() {
		wg.Go(func() {
			f, err := os.OpenFile(filepath.Join(n.PMXCFS, dir, "claim"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, os.ErrExist) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			_ = f.Close()
			mu.Lock()
			defer mu.Unlock()
			winners = append(winners, n.Name)
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Errorf("winners: %q", winners)
	}
}

// TestReadersNeverSeeHalfAFile reads while configs are written.
func TestReadersNeverSeeHalfAFile(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				list(t, c.Node("pve1"))
				_ = counter(t, c.Node("pve2"), "vmlist")
			}
		}
	})
	for range 15 {
		cl.must("PUT /nodes/pve2/qemu/101/config", "description=x")
		cl.must("PUT /nodes/pve2/qemu/101/config", "delete=description")
	}
	close(stop)
	wg.Wait()
}

func TestMembersAndQuorum(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	type members struct {
		Nodename string
		Cluster  struct{ Quorate, Nodes int }
		Nodelist map[string]struct {
			ID, Online int
			IP         string
		}
	}
	read := func(node string) (m members) {
		t.Helper()
		readJSON(t, filepath.Join(c.Node(node).PMXCFS, ".members"), &m)
		return m
	}
	if m := read("pve2"); m.Nodename != "pve2" || m.Cluster.Quorate != 1 || m.Nodelist["pve3"].ID != 3 || m.Nodelist["pve3"].Online != 1 {
		t.Errorf("%+v", m)
	}
	if err := errors.Join(c.SetOnline("pve3", false), c.SetQuorate(false)); err != nil {
		t.Fatal(err)
	}
	if m := read("pve1"); m.Cluster.Quorate != 0 || m.Nodelist["pve3"].Online != 0 {
		t.Errorf("%+v", m)
	}
	r := cl.do("PUT /nodes/pve1/qemu/103/config", "description=noquorum")
	if !strings.HasPrefix(r.Reason, "unable to open file '/etc/pve/nodes/pve1/qemu-server/103.conf.tmp.") || !strings.HasSuffix(r.Reason, "' - Permission denied") {
		t.Errorf("PUT config: %d %s", r.Status, r.Reason)
	}
	for _, call := range []string{"POST /nodes/pve1/qemu/103/status/start", "POST /nodes/pve1/qemu/9000/clone"} {
		if r := cl.do(call, "newid=500"[:9*strings.Count(call, "clone")]); r.Reason != "cluster not ready - no quorum?" {
			t.Errorf("%s: %d %s", call, r.Status, r.Reason)
		}
	}
	if r := cl.must("GET /cluster/status", ""); !strings.Contains(r.Body, `"quorate":0`) {
		t.Errorf("%s", r.Body)
	}
	if exit, _ := cl.task("POST /nodes/pve1/qemu/100/status/shutdown", ""); exit != "OK" {
		t.Errorf("shutdown without quorum: %s", exit)
	}
}

func TestAgentConfiguration(t *testing.T) {
	for _, tls := range []bool{false, true} {
		c := startCluster(t, func(cfg *pvesim.Config) { cfg.TLS = tls })
		for _, n := range c.Nodes() {
			got, err := config.Load([]string{"--config", n.AgentYAML}, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{n.Name, n.API(), n.PMXCFS, n.Run, n.Lock, n.Proc, n.Sys, n.State, n.GRPC, n.Metrics, n.Gossip, n.Socket, pvesim.TokenID}
			have := []string{
				got.Node, got.PVE.Endpoint, got.Paths.PMXCFS, got.Paths.Run, got.Paths.Lock, got.Paths.Proc, got.Paths.Sys, got.StateDir,
				got.Listen.GRPC, got.Metrics, got.Gossip.Bind, got.Socket, got.PVE.TokenID,
			}
			if diff := cmp.Diff(want, have); diff != "" {
				t.Errorf("%s (-want +got):\n%s", n.Name, diff)
			}
			if got.Listen.Plaintext == tls || (got.Listen.Cert == "") == tls {
				t.Errorf("%s: %+v", n.Name, got.Listen)
			}
		}
	}
}

func TestEnv(t *testing.T) {
	dir := ""
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.TLS, dir = true, cfg.Dir })
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[k] = strings.Trim(v, "'")
	}
	for k, want := range map[string]string{
		"PVE1_API": c.Node("pve1").API(), "PVE3_GRPC": c.Node("pve3").GRPC, "PVE2_METRICS": c.Node("pve2").Metrics,
		"PVE2_SOCKETS": c.Node("pve2").Run, "PVE_CA_FILE": c.CAFile(), "PVE_TOKEN_ID": pvesim.TokenID, "PVE_TOKEN_SECRET": pvesim.TokenSecret,
		"TEMPLATE_ID": "9000", "TEMPLATE_NAME": "linux-template", "VM_IDS": "100-103", "BRIDGE": "vmbr0",
		"STORAGE_LOCAL": "local", "STORAGE_SHARED": "shared", "CLIENT_CERT": filepath.Join(dir, "tls", "client.crt"),
	} {
		if vars[k] != want {
			t.Errorf("%s=%q, want %q", k, vars[k], want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); err != nil {
		t.Error(err)
	}
}

func TestStorageConfigNamesRealDirectories(t *testing.T) {
	c := startCluster(t, nil)
	for _, n := range c.Nodes() {
		b, err := os.ReadFile(filepath.Join(n.PMXCFS, "storage.cfg"))
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for line := range strings.Lines(string(b)) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(line), "path "); ok {
				paths = append(paths, p)
			}
		}
		want, err := c.StorageDir(n.Name, pvesim.StorageLocal)
		if err != nil || len(paths) != 2 || paths[0] != want || !strings.Contains(paths[0], n.Name) {
			t.Errorf("%s: %q, want %q first (%v)", n.Name, paths, want, err)
		}
	}
	was := counter(t, c.Node("pve2"), "storage.cfg")
	if err := c.ChangeStorage(pvesim.StorageShared, func(s *pvesim.Storage) { s.Disabled = true }); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(c.Node("pve2").PMXCFS, "storage.cfg"))
	if err != nil || !strings.Contains(string(b), "\tdisable\n") || counter(t, c.Node("pve2"), "storage.cfg") <= was {
		t.Errorf("%s %v", b, err)
	}
	r := newClient(t, c, "pve2").do("GET /nodes/pve2/storage/shared/content", "")
	if r.Reason != "storage 'shared' is disabled" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
}

func TestNewNumbersStartAtTheLowest(t *testing.T) {
	c := startCluster(t, nil)
	if r := newClient(t, c, "pve1").must("GET /cluster/nextid", ""); string(r.Data) != `"104"` {
		t.Errorf("%s", r.Data)
	}
	if ids := c.VMIDs(); !slices.Equal(ids, []int{100, 101, 102, 103, 9000, 9001}) {
		t.Errorf("%v", ids)
	}
}

// kinds runs a test with both kinds of /etc/pve.
func kinds(t *testing.T, test func(t *testing.T, c *pvesim.Cluster)) {
	t.Run("dir", func(t *testing.T) { test(t, startCluster(t, nil)) })
	t.Run("fuse", func(t *testing.T) {
		dir, err := os.MkdirTemp("/tmp", "pr")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		c, err := pvesim.New(pvesim.Config{Dir: dir, VMs: 4, QEMU: pvesim.Fake, PMXCFS: pvesim.FUSE, ReadDelay: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Start(t.Context())
		if missing := (*pmxfuse.MissingError)(nil); errors.As(err, &missing) {
			t.Skipf("skipped: %v", missing)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		test(t, c)
	})
}

func TestUnmountAndMount(t *testing.T) {
	kinds(t, func(t *testing.T, c *pvesim.Cluster) {
		n := c.Node("pve2")
		if l := list(t, n); l.IDs["101"].Node != "pve2" {
			t.Errorf("%+v", l)
		}
		if err := c.SetMounted("pve2", false); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(n.PMXCFS); err != nil || len(entries) != 0 {
			t.Errorf("unmounted: %v %v", entries, err)
		}
		if l := list(t, c.Node("pve1")); len(l.IDs) != 6 {
			t.Errorf("the other node: %+v", l)
		}
		if err := c.SetMounted("pve2", true); err != nil {
			t.Fatal(err)
		}
		if l := list(t, n); l.IDs["101"].Node != "pve2" {
			t.Errorf("mounted again: %+v", l)
		}
		var m struct{ Nodename string }
		if readJSON(t, filepath.Join(n.PMXCFS, ".members"), &m); m.Nodename != "pve2" {
			t.Errorf("%+v", m)
		}
	})
}

func TestFUSERefusesWritesWithoutQuorum(t *testing.T) {
	kinds(t, func(t *testing.T, c *pvesim.Cluster) {
		if c.PMXCFS() != "fuse" {
			return // a directory cannot refuse root anything
		}
		if err := c.SetQuorate(false); err != nil {
			t.Fatal(err)
		}
		for _, mounted := range []bool{false, true} {
			err := os.WriteFile(filepath.Join(c.Node("pve1").PMXCFS, "priv", "x"), nil, 0o600)
			if !errors.Is(err, os.ErrPermission) {
				t.Errorf("%v", err)
			}
			if mounted {
				return
			}
			if err := errors.Join(c.SetMounted("pve1", false), c.SetMounted("pve1", true)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
