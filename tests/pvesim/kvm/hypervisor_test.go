package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// machine is one under test, with its events.
type machine struct {
	Process
	spec   Spec
	events chan string // "NAME {data}"
}

// start starts a machine that lives as long as the test at most.
func start(t *testing.T, h Hypervisor, spec Spec) *machine {
	t.Helper()
	m := &machine{spec: spec, events: make(chan string, 100)}
	if spec.VMID == 0 {
		m.spec.VMID = 100
	}
	if spec.RunDir == "" {
		m.spec.RunDir = shortDir(t)
	}
	m.spec.Name, m.spec.UUID = "web-1", "880d09f7-f1fc-44c7-a077-eb1c4edb01da"
	m.spec.OnEvent = func(event string, data json.RawMessage) { m.events <- event + " " + string(data) }
	var err error
	if m.Process, err = h.Start(t.Context(), m.spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// await waits for an event, whatever comes before it, and returns its data.
func (m *machine) await(t *testing.T, event string) string {
	t.Helper()
	for {
		select {
		case e := <-m.events:
			if data, ok := strings.CutPrefix(e, event+" "); ok {
				return data
			}
		case <-time.After(time.Minute):
			t.Fatalf("no %s", event)
		}
	}
}

// told is all events until now that nobody awaited.
func (m *machine) told() string {
	var events []string
	for {
		select {
		case e := <-m.events:
			events = append(events, e)
		default:
			return strings.Join(events, "; ")
		}
	}
}

func (m *machine) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("still running")
	}
}

// status asks on VMID.qmp, as the node's users do.
func (m *machine) status(t *testing.T) string {
	t.Helper()
	s, err := qmp.Open(t.Context(), m.spec.path("qmp"), qmp.Options{Greeting: 10 * time.Second, Command: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var reply struct {
		Status string `json:"status"`
	}
	if err := s.Execute(t.Context(), "query-status", nil, &reply); err != nil {
		t.Fatal(err)
	}
	return reply.Status
}

func (m *machine) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(m.spec.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestHypervisors(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testing.T, Hypervisor){
		"conventions": testConventions, "run state": testRunState, "execute": testExecute,
		"quit": testQuit, "killed": testKilled, "killed by others": testKilledByOthers, "quit by others": testQuitByOthers,
		"balloon": testBalloon, "plugged CPUs": testPluggedCPUs, "refused": testRefused, "event may execute": testEventMayExecute,
	}
	for kind, open := range map[string]func(*testing.T) Hypervisor{
		"real": func(t *testing.T) Hypervisor { t.Helper(); return newReal(t, RealConfig{}) },
		"fake": func(*testing.T) Hypervisor { return NewFake(FakeConfig{}) },
	} {
		for name, test := range tests {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				h := open(t)
				if !strings.HasPrefix(h.Name(), kind) {
					t.Errorf("is named %s", h.Name())
				}
				test(t, h)
			})
		}
	}
}

func testConventions(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Agent: true})
	file := filepath.Join(m.spec.RunDir, "100.pid")
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(pid)) != strconv.Itoa(m.PID()) {
		t.Errorf("pid file says %q, the process is %d", pid, m.PID())
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("pid file: %v, %v", info, err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-pidfile\x00" + file, "web-1,debug-threads=on", "-no-shutdown"} {
		if !strings.Contains(string(cmdline), "\x00"+want+"\x00") {
			t.Errorf("%q is not in the command line %q", want, cmdline)
		}
	}
	for _, name := range []string{"100.qmp", "100.qga"} {
		if !slices.Contains(m.files(t), name) {
			t.Errorf("there is no %s in %v", name, m.files(t))
		}
	}
}

func testRunState(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{})
	if got := m.status(t); got != "running" {
		t.Errorf("after start: %s", got)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.await(t, "STOP")
	if got := m.status(t); got != "paused" {
		t.Errorf("after Pause: %s", got)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.await(t, "RESUME")
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data := m.await(t, "RESET"); !strings.Contains(data, "host-qmp-system-reset") {
		t.Errorf("reset by %s", data)
	}
	if got := m.status(t); got != "running" {
		t.Errorf("in the end: %s", got)
	}
}

func testExecute(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{})
	reply, err := m.Execute(t.Context(), "query-name", nil)
	if err != nil || !strings.Contains(string(reply), "web-1") {
		t.Errorf("query-name: %s, %v", reply, err)
	}
	for _, c := range []struct {
		command string
		args    any
		class   string
	}{
		{"no-such-command", nil, "CommandNotFound"},
		{"device_del", map[string]string{"id": "cpu9"}, "DeviceNotFound"},
		{"balloon", map[string]string{"value": "abc"}, "GenericError"},
	} {
		_, err := m.Execute(t.Context(), c.command, c.args)
		refused := (*qmp.Error)(nil)
		if !errors.As(err, &refused) || refused.Class != c.class || refused.Command != c.command {
			t.Errorf("%s: %v, want %s", c.command, err, c.class)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Execute(ctx, "query-name", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// VMID.qmp is free while the private monitor is in use.
	if got := m.status(t); got != "running" {
		t.Errorf("is %s", got)
	}
}

func testQuit(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Agent: true, Serial: true})
	if err := m.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.awaitEnd(t)
	if told := m.told(); !strings.Contains(told, "SHUTDOWN") || !strings.Contains(told, "host-qmp-quit") {
		t.Errorf("told of %q when it had ended", told)
	}
	assertGone(t, m)
	if err := m.Quit(t.Context()); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// assertGone checks what an ended machine leaves: nothing.
func assertGone(t *testing.T, m *machine) {
	t.Helper()
	if left := m.files(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := syscall.Kill(m.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", m.PID(), err)
	}
	for name, err := range map[string]error{
		"Powerdown": m.Powerdown(t.Context()), "Reset": m.Reset(t.Context()),
		"Pause": m.Pause(t.Context()), "Resume": m.Resume(t.Context()),
	} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s of an ended machine: %v", name, err)
		}
	}
	if err := m.Kill(); err != nil {
		t.Errorf("Kill of an ended machine: %v", err)
	}
}

func testKilled(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Agent: true})
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	assertGone(t, m)
}

func testKilledByOthers(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Agent: true, Serial: true})
	if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.awaitEnd(t)
	assertGone(t, m)
}

func testQuitByOthers(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Agent: true})
	client := rawMonitor(t, m)
	if _, err := client.execute(t.Context(), "quit", nil); err != nil && !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
	client.close()
	m.awaitEnd(t)
	assertGone(t, m)
}

func testBalloon(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{MemoryMiB: 256, BalloonMiB: -1})
	if _, err := m.Execute(t.Context(), "query-balloon", nil); err == nil {
		t.Error("a machine without balloon device has a balloon")
	}
	m = start(t, h, Spec{MemoryMiB: 256, BalloonMiB: 128})
	reply, err := m.Execute(t.Context(), "query-balloon", nil)
	if err != nil || !strings.Contains(string(reply), `"actual"`) {
		t.Errorf("query-balloon: %s, %v", reply, err)
	}
}

func testPluggedCPUs(t *testing.T, h Hypervisor) {
	m := start(t, h, Spec{Sockets: 2, Cores: 2, VCPUs: 2, Hotplug: []string{"cpu"}})
	plug := map[string]any{"driver": "qemu64-x86_64-cpu", "id": "cpu3", "socket-id": 1, "core-id": 0, "thread-id": 0}
	if _, err := m.Execute(t.Context(), "device_add", plug); err != nil {
		t.Fatal(err)
	}
	reply, err := m.Execute(t.Context(), "query-cpus-fast", nil)
	if err != nil {
		t.Fatal(err)
	}
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	if err := json.Unmarshal(reply, &cpus); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, c := range cpus {
		paths = append(paths, c.Path)
	}
	want := []string{"/machine/unattached/device[0]", "/machine/peripheral/cpu2", "/machine/peripheral/cpu3"}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Error(diff)
	}
}

func testRefused(t *testing.T, h Hypervisor) {
	dir := shortDir(t)
	spec := Spec{VMID: 100, Name: "n", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: dir}
	bad := spec
	bad.Disks = []Disk{{Key: "floppy0"}}
	if _, err := h.Start(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "floppy0") {
		t.Errorf("a disk without bus: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Start(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func testEventMayExecute(t *testing.T, h Hypervisor) {
	var m *machine
	ready, done := make(chan struct{}), make(chan error, 1)
	spec := Spec{VMID: 100, Name: "n", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: shortDir(t)}
	spec.OnEvent = func(event string, _ json.RawMessage) {
		if event == "STOP" {
			<-ready
			done <- m.Resume(t.Context())
		}
	}
	p, err := h.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	m = &machine{Process: p, spec: spec}
	t.Cleanup(func() { _ = p.Kill() })
	close(ready)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Resume on STOP: %v", err)
	}
	if got := m.status(t); got != "running" {
		t.Errorf("is %s", got)
	}
}

// rawMonitor is a client on VMID.qmp that may send what qmp.Session refuses.
func rawMonitor(t *testing.T, m *machine) *monitor {
	t.Helper()
	conn, err := dial(t.Context(), m.spec.path("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	mon, err := openMonitor(t.Context(), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mon.close)
	return mon
}

func TestRealSaysWhatQEMUSaid(t *testing.T) {
	t.Parallel()
	r := newReal(t, RealConfig{})
	_, err := r.Start(t.Context(), Spec{
		VMID: 100, Name: "n", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: shortDir(t), Args: []string{"-no-such-option"},
	})
	if err == nil || !strings.Contains(err.Error(), "start machine 100") || !strings.Contains(err.Error(), "-no-such-option: invalid option") {
		t.Errorf("got %v", err)
	}
}

// A machine has not ended before all that happened to it was told.
func TestRealEndWaitsForEvents(t *testing.T) {
	t.Parallel()
	r := newReal(t, RealConfig{})
	told, release := make(chan struct{}), make(chan struct{})
	p, err := r.Start(t.Context(), Spec{
		VMID: 100, Name: "n", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: shortDir(t),
		OnEvent: func(event string, _ json.RawMessage) {
			if event == "SHUTDOWN" {
				close(told)
				<-release
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if _, err := p.Execute(t.Context(), "quit", nil); err != nil && !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	<-told
	if err := awaitExit(pidfd, time.Minute); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Done():
		t.Error("done while SHUTDOWN is still being told")
	case <-time.After(50 * time.Millisecond): // it would be done by now
	}
	close(release)
	<-p.Done()
}

func TestRealIsMissing(t *testing.T) {
	t.Parallel()
	_, err := NewReal(t.Context(), RealConfig{Binary: "no-such-qemu"})
	want := "real machines need qemu-system-x86; enable with: apt-get install --no-install-recommends qemu-system-x86"
	if missing := (*MissingError)(nil); !errors.As(err, &missing) || err.Error() != want {
		t.Errorf("got %v", err)
	}
}
