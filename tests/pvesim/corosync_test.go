package pvesim_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/pmxfuse"
)

// look is what the nodes' .members say: who is online for whom, with a "!"
// where there is no quorum.
func look(t *testing.T, c *pvesim.Cluster) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, n := range c.Nodes() {
		m := readMembers(t, n)
		var online []string
		for name, e := range m.Nodelist {
			if e.Online == 1 {
				online = append(online, strings.TrimPrefix(name, "pve"))
			}
		}
		slices.Sort(online)
		s := strings.Join(online, "")
		if m.Cluster.Quorate == 0 {
			s += "!"
		}
		out[n.Name] = s
	}
	return out
}

func ring(views ...string) map[string]string {
	out := map[string]string{}
	for i, v := range views {
		out[fmt.Sprintf("pve%d", i+1)] = v
	}
	return out
}

func TestPartitions(t *testing.T) {
	three := []struct {
		name string
		do   func(*pvesim.Cluster) error
		want map[string]string
	}{
		{"2|1", func(c *pvesim.Cluster) error { return c.Partition([][]string{{"pve1"}, {"pve2", "pve3"}}) }, ring("1!", "23", "23")},
		{"1|1|1", func(c *pvesim.Cluster) error { return c.Partition(nil) }, ring("1!", "2!", "3!")},
		{"one pair", func(c *pvesim.Cluster) error { return c.Cut("pve1", "pve2") }, ring("13", "2!", "13")},
		{"one direction", func(c *pvesim.Cluster) error { return c.CutOneWay("pve2", "pve1") }, ring("13", "2!", "13")},
		{"agents only", func(c *pvesim.Cluster) error { return c.CutAgents("pve1", "pve2") }, ring("123", "123", "123")},
		{"quorum of one", func(c *pvesim.Cluster) error { return c.SetNodeQuorate("pve1", false) }, ring("123!", "123", "123")},
		{"read-only", func(c *pvesim.Cluster) error { return c.SetReadOnly("pve1", true) }, ring("123", "123", "123")},
	}
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 0 })
	for _, tc := range three {
		if err := tc.do(c); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, look(t, c)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
		if err := errors.Join(c.Heal(), c.SetQuorate(true), c.SetReadOnly("pve1", false)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ring("123", "123", "123"), look(t, c)); diff != "" {
			t.Errorf("%s, healed (-want +got):\n%s", tc.name, diff)
		}
	}
	four := startCluster(t, func(cfg *pvesim.Config) { cfg.Nodes, cfg.VMs = 4, 0 })
	if err := four.Partition([][]string{{"pve1", "pve2"}, {"pve3", "pve4"}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ring("12!", "12!", "34!", "34!"), look(t, four)); diff != "" {
		t.Errorf("2|2 (-want +got):\n%s", diff)
	}
	for _, err := range []error{
		c.Partition([][]string{{"pve1", "pve1"}}), c.Partition([][]string{{"pve9"}}), c.Cut("pve1", "x"), c.CutOneWay("x", "pve1"),
		c.CutAgents("x", "pve1"), c.SetReadOnly("x", true), c.SetNodeQuorate("x", true), c.LagVMList("x", 0), c.KillNode("x"), c.ReviveNode("x"),
	} {
		if err == nil {
			t.Error("a node that is not there, or twice, is taken")
		}
	}
}

// mountable skips where there is no FUSE.
func mountable(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	m, err := pmxfuse.Mount(t.Context(), pmxfuse.Config{Source: dir, MountPoint: t.TempDir()})
	var missing *pmxfuse.MissingError
	if errors.As(err, &missing) {
		t.Skipf("skipped: needs %s; enable with: %s", missing.Needs, missing.Enable)
	}
	if err == nil {
		err = m.Unmount(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCutOffNode: who is not in the quorate part reads what was, and writes nothing; then it reads what is.
func TestCutOffNode(t *testing.T) {
	for _, how := range []pvesim.PMXCFS{pvesim.Dir, pvesim.FUSE} {
		t.Run(string(how), func(t *testing.T) {
			if how == pvesim.FUSE {
				mountable(t)
			}
			c := startCluster(t, func(cfg *pvesim.Config) { cfg.PMXCFS = how })
			one, two := c.Node("pve1"), c.Node("pve2")
			record := filepath.Join("priv", "record")
			write := func(n *pvesim.Node, name, text string) error {
				return os.WriteFile(filepath.Join(n.PMXCFS, name), []byte(text), 0o600)
			}
			read := func(n *pvesim.Node, name string) string {
				b, err := os.ReadFile(filepath.Join(n.PMXCFS, name))
				if err != nil {
					return err.Error()
				}
				return string(b)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(write(two, record, "old"))
			held, err := os.OpenFile(filepath.Join(one.PMXCFS, "priv", "held"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			must(err)
			defer func() { _ = held.Close() }()
			was := list(t, one)
			must(c.Cut("pve1", "pve2"))
			must(c.Cut("pve1", "pve3"))

			must(write(two, record, "new"))
			newClient(t, c, "pve2").must("PUT /nodes/pve2/qemu/101/config", "name=renamed")
			must(c.AddVM(500, "pve3", nil))
			if got := read(one, record); got != "old" {
				t.Errorf("cut off, the record reads %q", got)
			}
			if got := list(t, one); !cmp.Equal(was, got) {
				t.Errorf("cut off, .vmlist changed:\n%s", cmp.Diff(was, got))
			}
			if got := read(one, "nodes/pve2/qemu-server/101.conf"); strings.Contains(got, "renamed") {
				t.Error("cut off, it sees another node's new config")
			}
			cl := newClient(t, c, "pve1")
			if r := cl.do("PUT /nodes/pve1/qemu/100/config", "cores=2"); r.Status != 500 || !strings.Contains(r.Reason, "Permission denied") {
				t.Errorf("cut off, a change of a config: %d %s", r.Status, r.Reason)
			}
			if r := cl.do("POST /nodes/pve1/qemu/9000/clone", "newid=600"); r.Status != 500 || !strings.Contains(r.Reason, "no quorum") {
				t.Errorf("cut off, a clone: %d %s", r.Status, r.Reason)
			}
			if r := cl.do("POST /cluster/ha/resources", "sid=vm:100"); r.Status != 500 {
				t.Errorf("cut off, a VM given to HA: %d %s", r.Status, r.Reason)
			}
			cl.must("GET /nodes/pve1/qemu/100/config", "")
			if r := cl.do("GET /nodes/pve2/qemu/101/config", ""); r.Status != 595 {
				t.Errorf("the other side through the API: %d %s", r.Status, r.Reason)
			}
			if how == pvesim.FUSE {
				for what, err := range map[string]error{
					"write":  write(one, record, "mine"),
					"create": write(one, "priv/mine", "mine"),
					"excl":   second(os.OpenFile(filepath.Join(one.PMXCFS, "priv", "claim"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)),
					"held":   second(held.WriteString("text")),
					"remove": os.Remove(filepath.Join(one.PMXCFS, record)),
					"mkdir":  os.Mkdir(filepath.Join(one.PMXCFS, "priv", "lock", "x"), 0o755),
				} {
					if !errors.Is(err, syscall.EACCES) {
						t.Errorf("cut off, %s: %v", what, err)
					}
				}
			}

			must(c.Heal())
			if got := read(one, record); got != "new" {
				t.Errorf("healed, the record reads %q", got)
			}
			if got := list(t, one); got.IDs["500"].Node != "pve3" || got.Version <= was.Version {
				t.Errorf("healed: %+v", got)
			}
			must(write(one, "priv/mine", "mine"))
			if got := read(two, "priv/mine"); got != "mine" {
				t.Errorf("healed, the others read %q", got)
			}
			left, err := filepath.Glob(filepath.Join(filepath.Dir(one.AgentYAML), "cut-*"))
			if err != nil || len(left) > 1 {
				t.Errorf("copies are left: %q %v", left, err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// TestReadOnlyNode: pmxcfs that takes no writes, while .members says that all is well.
func TestReadOnlyNode(t *testing.T) {
	mountable(t)
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.PMXCFS, cfg.VMs = pvesim.FUSE, 0 })
	if err := c.SetReadOnly("pve2", true); err != nil {
		t.Fatal(err)
	}
	at := func(node, name string) string { return filepath.Join(c.Node(node).PMXCFS, "priv", name) }
	if err := os.WriteFile(at("pve2", "x"), nil, 0o600); !errors.Is(err, syscall.EACCES) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(at("pve1", "x"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(at("pve2", "x")); string(b) != "text" {
		t.Errorf("what others write is not seen: %q %v", b, err)
	}
	if err := c.SetReadOnly("pve2", false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("pve2", "x"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// TestCorosyncDelay: packets are lost at once, .members says so later.
func TestCorosyncDelay(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs, cfg.CorosyncDelay = 0, 100*time.Millisecond })
	if err := c.Cut("pve1", "pve3"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ring("123", "123", "123"), look(t, c)); diff != "" {
		t.Errorf("at once (-want +got):\n%s", diff)
	}
	if r := newClient(t, c, "pve3").do("POST /nodes/pve3/qemu", "vmid=500"); r.Status != 500 {
		t.Errorf("a write meanwhile: %d %s", r.Status, r.Reason)
	}
	eventually(t, "the nodes notice", func() bool { return cmp.Equal(ring("12", "12", "3!"), look(t, c)) })
	if err := c.Heal(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ring("12", "12", "3!"), look(t, c)); diff != "" {
		t.Errorf("healed, at once (-want +got):\n%s", diff)
	}
	eventually(t, "the nodes notice", func() bool { return cmp.Equal(ring("123", "123", "123"), look(t, c)) })
}

func TestCutHooks(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 0 })
	var got []string
	c.OnCut(func(from, to string, cut bool) { got = append(got, fmt.Sprintf("%s>%s %v", from, to, cut)) })
	c.OnPower(func(node string, on bool) { got = append(got, fmt.Sprintf("%s %v", node, on)) })
	for _, err := range []error{
		c.CutOneWay("pve1", "pve2"), c.CutAgents("pve2", "pve1"), c.Heal(), c.CutAgentsOneWay("pve3", "pve1"), c.Heal(),
		c.KillNode("pve3"), c.KillNode("pve3"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if c.Reaches("pve1", "pve3") || !c.Reaches("pve1", "pve2") {
		t.Error("who reaches whom after a power loss")
	}
	if err := c.ReviveNode("pve3"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"pve1>pve2 true", "pve2>pve1 true", "pve1>pve2 false", "pve2>pve1 false", "pve3>pve1 true", "pve3>pve1 false", "pve3 false", "pve3 true",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestDeadNode: a node that comes back has what is, with counters that begin anew.
func TestDeadNode(t *testing.T) {
	for _, how := range []pvesim.PMXCFS{pvesim.Dir, pvesim.FUSE} {
		t.Run(string(how), func(t *testing.T) {
			if how == pvesim.FUSE {
				mountable(t)
			}
			c := startCluster(t, func(cfg *pvesim.Config) { cfg.PMXCFS = how })
			n := c.Node("pve3")
			start, was := counter(t, n, "starttime"), list(t, n)
			if !c.Running(102) {
				t.Fatal("102 does not run")
			}
			if err := c.KillNode("pve3"); err != nil {
				t.Fatal(err)
			}
			if c.Running(102) {
				t.Error("a VM outlives its node")
			}
			if entries, err := os.ReadDir(n.PMXCFS); err != nil || len(entries) > 0 {
				t.Errorf("/etc/pve of a dead node: %v %v", entries, err)
			}
			if got := readMembers(t, c.Node("pve1")); got.Nodelist["pve3"].Online != 0 || got.Cluster.Quorate != 1 {
				t.Errorf("%+v", got)
			}
			if err := c.SetConfig(101, map[string]string{"name": "renamed"}); err != nil {
				t.Fatal(err)
			}
			if err := c.ReviveNode("pve3"); err != nil {
				t.Fatal(err)
			}
			if got := counter(t, n, "starttime"); got <= start {
				t.Errorf("starttime %d, before %d", got, start)
			}
			if got := list(t, n); got.Version >= was.Version || got.IDs["101"].Version <= got.IDs["100"].Version || len(got.IDs) != len(was.IDs) {
				t.Errorf("%+v", got)
			}
			if got := readMembers(t, n); got.Cluster.Quorate != 1 {
				t.Errorf("%+v", got)
			}
			before := list(t, n)
			newClient(t, c, "pve3").must("PUT /nodes/pve3/qemu/102/config", "cores=2")
			if got := list(t, n); got.IDs["102"].Version <= before.IDs["102"].Version || counter(t, n, "vmlist") <= before.Version {
				t.Errorf("a change after the return is not counted: %+v", got)
			}
		})
	}
}

// TestPowerLossEndsTasks: nobody cleans up behind a task whose node died.
func TestPowerLossEndsTasks(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 0 })
	c.HoldTasks("qmclone")
	upid := newClient(t, c, "pve1").upidOf("POST /nodes/pve1/qemu/9000/clone", "newid=600")
	eventually(t, "the clone has a config", func() bool { _, ok := c.Owner(600); return ok })
	if err := c.KillNode("pve1"); err != nil {
		t.Fatal(err)
	}
	for _, task := range c.Tasks() {
		if task.UPID == upid {
			<-task.Done()
			if task.Exit() != "unexpected status" {
				t.Errorf("%s", task.Exit())
			}
		}
	}
	if conf, err := c.Config(600); err != nil || conf["lock"] != "clone" {
		t.Errorf("half a VM is left: %v %v", conf, err)
	}
}

func TestLag(t *testing.T) {
	c := startCluster(t, nil)
	slow, quick := c.Node("pve3"), c.Node("pve1")
	if err := c.LagVMList("pve3", time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := c.VanishVM(101); err != nil {
		t.Fatal(err)
	}
	if _, ok := list(t, quick).IDs["101"]; ok {
		t.Error("pve1 still lists 101")
	}
	if _, ok := list(t, slow).IDs["101"]; !ok || counter(t, slow, "vmlist") >= counter(t, quick, "vmlist") {
		t.Error("pve3 does not lag")
	}
	if _, err := os.Stat(filepath.Join(slow.PMXCFS, "nodes", "pve2", "qemu-server", "101.conf")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
	if err := c.LagVMList("pve3", 0); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list(t, quick), list(t, slow)); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(c.LagVMList("pve3", 20*time.Millisecond), c.VanishVM(100)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pve3 catches up", func() bool { _, ok := list(t, slow).IDs["100"]; return !ok })
}

// TestTakeOver: HA starts a dead node's VM elsewhere.
func TestTakeOver(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.FencingDelay = 50 * time.Millisecond })
	if err := errors.Join(c.AddVM(500, "pve3", map[string]string{"scsi0": "", "boot": ""}), c.SetConfig(500, map[string]string{"scsi0": ""}),
		c.AddHA(500, "started"), c.AddHA(102, "ignored")); err != nil {
		t.Fatal(err)
	}
	if err := c.KillNode("pve3"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "500 runs elsewhere", func() bool { owner, _ := c.Owner(500); return owner != "pve3" && c.Running(500) })
	if owner, _ := c.Owner(102); owner != "pve3" {
		t.Errorf("102 is not HA's and moved to %s", owner)
	}
}

// TestSelfFence: a node with a VM under HA that is cut off is reset by its watchdog.
func TestSelfFence(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.FencingDelay = 50 * time.Millisecond })
	if err := errors.Join(c.SetConfig(102, map[string]string{"scsi0": ""}), c.AddHA(102, "started")); err != nil {
		t.Fatal(err)
	}
	off := make(chan string, 1)
	c.OnPower(func(node string, _ bool) { off <- node })
	if err := c.Partition([][]string{{"pve1", "pve2"}, {"pve3"}}); err != nil {
		t.Fatal(err)
	}
	if got := <-off; got != "pve3" {
		t.Errorf("%s was fenced", got)
	}
	eventually(t, "102 runs elsewhere", func() bool { owner, _ := c.Owner(102); return owner != "pve3" && c.Running(102) })
}
