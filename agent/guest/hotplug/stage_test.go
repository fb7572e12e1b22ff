package hotplug_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest/realqemu"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

const (
	vmid = 100
	node = "pve1"
	uuid = "880d09f7-f1fc-44c7-a077-eb1c4edb01da"
)

// usual is the config of a VM with four places for vCPUs of which one is used.
const usual = "#a description\ncores: 1\nhotplug: cpu,disk,network,usb\nmemory: 64\nsmbios1: uuid=" + uuid + "\nsockets: 4\nvcpus: 1\n"

// target is the VM of all tests.
var target = hotplug.Target{VMID: vmid, Is: func(c *pmxcfs.Conf) bool { return c.SMBIOSUUID() == uuid }}

// quick are limits for tests in which something is waited for in vain.
var quick = hotplug.Limits{Lock: 50 * time.Millisecond, Unplug: 100 * time.Millisecond, Still: 150 * time.Millisecond}

// stage is a node with one VM: its config, PVE's lock of it, and its QEMU.
type stage struct {
	testing.TB
	dir    string
	tree   *pmxcfs.Tree
	gate   *qmp.Gate
	vm     machine
	limits hotplug.Limits
}

// machine is a QEMU that the tests say the same of, real or not: four places for CPUs of which one is used, 64 MiB, and no guest
// that cares.
type machine struct {
	qmp  string          // path of the socket
	fake *qmptest.QEMU   // nil for a real one
	hang func(hung bool) // as SIGSTOP
	kill func()          // as SIGKILL
}

var backends = []struct {
	name  string
	start func(testing.TB, string) machine
}{
	{"simulated", func(tb testing.TB, dir string) machine {
		return simulated(tb, dir, qmptest.Config{IgnoreUnplug: true, Runstate: "prelaunch"}, func(q *qmptest.QEMU) { q.SetBalloonDriver(false) })
	}},
	{"real", func(tb testing.TB, dir string) machine {
		vm := realqemu.Start(tb, realqemu.Config{Dir: dir, VMID: vmid, Sockets: 4})
		return machine{qmp: vm.QMP, kill: vm.Kill, hang: func(hung bool) { vm.Hang(tb, hung) }}
	}},
}

func simulated(tb testing.TB, dir string, cfg qmptest.Config, change ...func(*qmptest.QEMU)) machine {
	tb.Helper()
	cfg.Dir, cfg.VMID, cfg.CPUHotplug = dir, vmid, true
	if cfg.Sockets == 0 {
		cfg.Sockets, cfg.VCPUs = 4, max(cfg.VCPUs, 1)
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 64
	}
	q, err := qmptest.NewQEMU(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = q.Close() })
	for _, f := range change {
		f(q)
	}
	return machine{qmp: q.QMPPath(), fake: q, kill: q.Kill, hang: q.SetHung}
}

// on runs a test with each kind of QEMU.
func on(t *testing.T, test func(*stage)) {
	t.Helper()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			dir := prepare(t, usual)
			test(newStage(t, dir, b.start(t, dir)))
		})
	}
}

// with makes a stage with a simulated QEMU and such a config.
func with(tb testing.TB, conf string, cfg qmptest.Config) *stage {
	tb.Helper()
	dir := prepare(tb, conf)
	return newStage(tb, dir, simulated(tb, dir, cfg))
}

// prepare makes the files of a node. Its path is short, because those of sockets must be.
func prepare(tb testing.TB, conf string) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	for path, content := range map[string]string{".version": `{"starttime":1,"clinfo":1,"vmlist":1}`, confPath: conf} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

const confPath = "nodes/pve1/qemu-server/100.conf"

func newStage(tb testing.TB, dir string, vm machine) *stage {
	s := &stage{TB: tb, dir: dir, tree: pmxcfs.Open(dir), vm: vm, limits: hotplug.Limits{Unplug: 100 * time.Millisecond, Still: 150 * time.Millisecond}}
	s.gate = qmp.NewGate(qmp.GateConfig{})
	return s
}

func (s *stage) plugger() *hotplug.Plugger {
	return hotplug.New(hotplug.Config{
		Node: node, Tree: s.tree, RunDir: s.dir, LockDir: s.dir, Gate: s.gate, Log: slog.New(slog.DiscardHandler), Limits: s.limits,
	})
}

// cpus changes the number of vCPUs.
func (s *stage) cpus(want int) (hotplug.CPUs, error) {
	return s.plugger().CPUs(s.Context(), target, want)
}

// become changes the number of vCPUs, which must work.
func (s *stage) become(from, want int) {
	s.Helper()
	got, err := s.cpus(want)
	if err != nil || got != (hotplug.CPUs{From: from, To: want}) {
		s.Errorf("to %d vCPUs: %+v, %v", want, got, err)
	}
	s.true(want)
}

// conf is the config's text.
func (s *stage) conf() string {
	s.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, confPath))
	if err != nil {
		s.Fatal(err)
	}
	return string(raw)
}

func (s *stage) setConf(text string) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, confPath), []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

// says checks the whole config: usual, but for the number of vCPUs.
func (s *stage) says(vcpus string) {
	s.Helper()
	if got, want := s.conf(), strings.Replace(usual, "vcpus: 1", "vcpus: "+vcpus, 1); got != want {
		s.Errorf("config:\n%s\nwant:\n%s", got, want)
	}
}

// true checks that so many vCPUs run, that the config says so, and that nothing lies beside it.
func (s *stage) true(vcpus int) {
	s.Helper()
	conf, err := s.tree.Conf(node, vmid)
	if err != nil {
		s.Fatal(err)
	}
	if _, said := conf.CPUs(); said != vcpus {
		s.Errorf("the config says %d vCPUs, want %d", said, vcpus)
	}
	if n := len(s.running()); n != vcpus {
		s.Errorf("%d vCPUs run, want %d", n, vcpus)
	}
	s.tidy()
}

// tidy checks that nothing lies beside the config.
func (s *stage) tidy() {
	s.Helper()
	files, err := os.ReadDir(filepath.Dir(filepath.Join(s.dir, confPath)))
	if err != nil || len(files) != 1 {
		s.Errorf("beside the config: %v, %v", files, err)
	}
}

// running lists the vCPUs by the paths of their devices.
func (s *stage) running() []string {
	s.Helper()
	var cpus []struct {
		Path  string `json:"qom-path"`
		Props struct {
			Socket int `json:"socket-id"`
		} `json:"props"`
	}
	s.ask("query-cpus-fast", nil, &cpus)
	var paths []string
	for _, c := range cpus {
		paths = append(paths, c.Path)
	}
	return paths
}

// ask has a conversation of the test's own.
func (s *stage) ask(command string, args, out any) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	defer cancel()
	monitor, err := qmp.Open(ctx, s.vm.qmp, qmp.Options{Greeting: 10 * time.Second, Command: 10 * time.Second, Hold: time.Minute, RetryBusy: 10 * time.Second})
	if err != nil {
		s.Fatal(err)
	}
	defer monitor.Close()
	if err := monitor.Execute(ctx, command, args, out); err != nil {
		s.Fatal(err)
	}
}
