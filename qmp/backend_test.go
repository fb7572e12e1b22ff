package qmp_test

import (
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest/realqemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a QEMU that the tests say the same of, real or not: two places
// for CPUs of which one is plugged, 64 MiB, run state prelaunch.
type machine struct {
	path string
	hang func(hung bool) // as a stopped process
	kill func()          // as SIGKILL
}

// backends are the ways to have a machine.
var backends = []struct {
	name  string
	start func(testing.TB) machine
}{
	{"simulated", simulated},
	{"real", genuine},
}

func simulated(tb testing.TB) machine {
	tb.Helper()
	q := newQEMU(tb, qmptest.Config{
		Dir: shortDir(tb), VMID: 100, Sockets: 2, VCPUs: 1, MemoryMiB: 64, Runstate: "prelaunch",
	})
	return machine{path: q.QMPPath(), hang: q.SetHung, kill: q.Kill}
}

func genuine(tb testing.TB) machine {
	tb.Helper()
	vm := realqemu.Start(tb, realqemu.Config{Dir: shortDir(tb), VMID: 100, Sockets: 2})
	return machine{path: vm.QMP, kill: vm.Kill, hang: func(hung bool) { vm.Hang(tb, hung) }}
}

func newQEMU(tb testing.TB, cfg qmptest.Config) *qmptest.QEMU {
	tb.Helper()
	q, err := qmptest.NewQEMU(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = q.Close() })
	return q
}

// shortDir is a directory whose sockets' paths fit into 108 bytes.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(tb testing.TB, path string, opts qmp.Options) *qmp.Session {
	tb.Helper()
	s, err := qmp.Open(tb.Context(), path, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// dial connects and says nothing.
func dial(t *testing.T, path string) (net.Conn, error) {
	t.Helper()
	var d net.Dialer
	return d.DialContext(t.Context(), "unix", path)
}
