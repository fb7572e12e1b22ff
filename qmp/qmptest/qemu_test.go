package qmptest_test

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var patient = qmp.Options{Greeting: 10 * time.Second, Command: 10 * time.Second, Hold: time.Minute, AllowAll: true}

// events collects what OnEvent is told.
type events struct {
	mu   sync.Mutex // guards list
	list []string
}

func (e *events) add(name string, data json.RawMessage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, strings.TrimSpace(name+" "+string(data)))
}

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.list)
}

func start(t *testing.T, cfg qmptest.Config) *qmptest.QEMU {
	t.Helper()
	cfg.Dir, cfg.VMID = shortDir(t), 100
	q, err := qmptest.NewQEMU(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, q *qmptest.QEMU) *qmp.Session {
	t.Helper()
	s, err := qmp.Open(t.Context(), q.QMPPath(), patient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// until waits for a state that comes without a signal of its own.
func until(t *testing.T, what string, reached func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !reached() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not reached: %s", what)
		}
	}
}

func TestGuestPowersOff(t *testing.T) {
	ways := map[string]func(*testing.T, *qmptest.QEMU){
		"power button": func(t *testing.T, q *qmptest.QEMU) {
			if err := open(t, q).Execute(t.Context(), "system_powerdown", nil, nil); err != nil {
				t.Fatal(err)
			}
		},
		"guest agent": func(t *testing.T, q *qmptest.QEMU) {
			s, err := qga.Open(t.Context(), q.AgentPath(), qga.Options{Sync: 10 * time.Second, Command: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			// It has no reply.
			if err := s.Execute(t.Context(), "guest-shutdown", nil, nil); !errors.Is(err, qmp.ErrTimeout) {
				t.Errorf("guest-shutdown: %v, want silence", err)
			}
		},
	}
	for name, press := range ways {
		t.Run(name, func(t *testing.T) {
			var seen events
			q := start(t, qmptest.Config{OnEvent: seen.add, PowerdownDelay: 5 * time.Millisecond})
			press(t, q)
			until(t, "run state shutdown", func() bool { return q.Runstate() == "shutdown" })
			var refused *qmp.Error
			if _, err := q.Execute("cont", nil); !errors.As(err, &refused) || refused.Command != "cont" {
				t.Errorf("cont after shutdown: %v, want a refusal", err)
			}
			if _, err := q.Execute("quit", nil); err != nil {
				t.Error(err)
			}
			<-q.Done()
			got := slices.DeleteFunc(seen.all(), func(s string) bool { return s == "POWERDOWN" })
			want := []string{
				`SHUTDOWN {"guest":true,"reason":"guest-shutdown"}`, "STOP",
				`SHUTDOWN {"guest":false,"reason":"host-qmp-quit"}`,
			}
			if !slices.Equal(got, want) {
				t.Errorf("events %q\nwant %q", got, want)
			}
			for _, path := range []string{q.QMPPath(), q.AgentPath()} {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s after quit: %v", path, err)
				}
			}
		})
	}
}

func TestGuestIgnoresPowerButton(t *testing.T) {
	for name, cfg := range map[string]qmptest.Config{"stubborn": {IgnorePowerdown: true}, "booting": {Boot: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			var seen events
			cfg.OnEvent = seen.add
			q := start(t, cfg)
			if _, err := q.Execute("system_powerdown", nil); err != nil {
				t.Fatal(err)
			}
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			if got := seen.all(); q.Runstate() != "running" || !slices.Equal(got, []string{"POWERDOWN"}) {
				t.Errorf("run state %s, events %q", q.Runstate(), got)
			}
		})
	}
}

func TestBalloon(t *testing.T) {
	q := start(t, qmptest.Config{MemoryMiB: 1024, BalloonMiB: 512})
	s := open(t, q)
	if q.Balloon() != 512<<20 {
		t.Errorf("at start %d", q.Balloon())
	}
	inflate := func(to int64) {
		t.Helper()
		if err := s.Execute(t.Context(), "balloon", map[string]int64{"value": to}, nil); err != nil {
			t.Error(err)
		}
	}
	inflate(2 << 30)
	if q.Balloon() != 1<<30 {
		t.Errorf("more than the memory: %d", q.Balloon())
	}
	q.SetBalloonDriver(false)
	inflate(256 << 20)
	if q.Balloon() != 1<<30 {
		t.Errorf("without a driver: %d", q.Balloon())
	}
	q.SetBalloonDriver(true)
	q.SetBalloonFloor(500 << 20)
	q.SetBalloonStep(300 << 20)
	inflate(256 << 20)
	for _, want := range []int64{724 << 20, 500 << 20, 500 << 20} {
		var state struct{ Actual int64 }
		if err := s.Execute(t.Context(), "query-balloon", nil, &state); err != nil || state.Actual != want {
			t.Errorf("a slow guest with a floor: %d, %v, want %d", state.Actual, err, want)
		}
	}
	var refused *qmp.Error
	without := start(t, qmptest.Config{BalloonMiB: -1})
	if _, err := without.Execute("query-balloon", nil); !errors.As(err, &refused) || refused.Class != qmp.ClassDeviceNotActive {
		t.Errorf("without a device: %v", err)
	}
}

func TestCPUs(t *testing.T) {
	var seen events
	q := start(t, qmptest.Config{Sockets: 2, Cores: 2, VCPUs: 2, CPUHotplug: true, OnEvent: seen.add})
	s := open(t, q)
	var cpus []struct {
		Index int    `json:"cpu-index"`
		Path  string `json:"qom-path"`
	}
	list := func() []string {
		t.Helper()
		if err := s.Execute(t.Context(), "query-cpus-fast", nil, &cpus); err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, c := range cpus {
			paths = append(paths, c.Path)
		}
		return paths
	}
	if got := list(); !slices.Equal(got, []string{"/machine/unattached/device[0]", "/machine/peripheral/cpu2"}) {
		t.Errorf("at start %q", got)
	}
	q.SetVCPUs(4)
	if got := list(); len(got) != 4 || got[3] != "/machine/peripheral/cpu4" || q.VCPUs() != 4 {
		t.Errorf("all plugged %q", got)
	}
	if err := s.Execute(t.Context(), "device_del", map[string]string{"id": "cpu4"}, nil); err != nil {
		t.Error(err)
	}
	if got := list(); len(got) != 3 {
		t.Errorf("one unplugged %q", got)
	}
	until(t, "event of the unplug", func() bool {
		return slices.Contains(seen.all(), `DEVICE_DELETED {"device":"cpu4","path":"/machine/peripheral/cpu4"}`)
	})
	if _, err := qmptest.NewQEMU(qmptest.Config{Dir: shortDir(t), VMID: 7, VCPUs: 2}); err == nil {
		t.Error("more CPUs than places")
	}
}

func TestUnplugTakesTime(t *testing.T) {
	q := start(t, qmptest.Config{Sockets: 2, CPUHotplug: true, UnplugDelay: 20 * time.Millisecond})
	for range 2 { // a second request is none for a second CPU
		if _, err := q.Execute("device_del", json.RawMessage(`{"id":"cpu2"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if q.VCPUs() != 2 {
		t.Error("the CPU is gone at once")
	}
	until(t, "end of the CPU", func() bool { return q.VCPUs() == 1 })
	stubborn := start(t, qmptest.Config{Sockets: 2, CPUHotplug: true, IgnoreUnplug: true})
	if _, err := stubborn.Execute("device_del", json.RawMessage(`{"id":"cpu2"}`)); err != nil || stubborn.VCPUs() != 2 {
		t.Errorf("a guest that keeps its CPUs: %d, %v", stubborn.VCPUs(), err)
	}
}

func TestHandler(t *testing.T) {
	q := start(t, qmptest.Config{})
	q.Handle("block_resize", func(args json.RawMessage) (any, error) {
		if string(args) == `{"size":0}` {
			return nil, errors.New("no size")
		}
		return map[string]int{"done": 1}, nil
	})
	s := open(t, q)
	var reply struct{ Done int }
	if err := s.Execute(t.Context(), "block_resize", map[string]int{"size": 5}, &reply); err != nil || reply.Done != 1 {
		t.Errorf("%+v, %v", reply, err)
	}
	var refused *qmp.Error
	if err := s.Execute(t.Context(), "block_resize", map[string]int{"size": 0}, nil); !errors.As(err, &refused) || refused.Desc != "no size" {
		t.Errorf("%v", err)
	}
}

func TestStats(t *testing.T) {
	q := start(t, qmptest.Config{})
	for range 3 {
		s := open(t, q)
		if err := s.Execute(t.Context(), "query-status", nil, nil); err != nil {
			t.Error(err)
		}
		if !q.Stats().Open {
			t.Error("a session is open")
		}
		s.Close()
	}
	until(t, "end of the last session", func() bool { return !q.Stats().Open })
	st := q.Stats()
	if st.Sessions != 3 || st.Connections != 3 || st.Commands["query-status"] != 3 || st.LongestHold <= 0 {
		t.Errorf("%+v", st)
	}
}

// TestOddRequests: what other clients than ours may send.
func TestOddRequests(t *testing.T) {
	script := []struct{ send, want string }{
		{`{"execute": "query-status"}`, `Expecting capabilities negotiation with 'qmp_capabilities'`},
		{`{"execute": "qmp_capabilities"}`, `"return":{}`},
		{`this is not json`, `JSON parse error, invalid keyword 'this'`},
		{`[1]`, `QMP input must be a JSON object`},
		{`{"foo": 1}`, `QMP input member 'foo' is unexpected`},
		{`{"id": 1}`, `QMP input lacks member 'execute'`},
		{`{"execute": 1}`, `QMP input member 'execute' must be a string`},
		{`{"execute": "query-status", "arguments": 1}`, `QMP input member 'arguments' must be an object`},
		{`{"execute": "query-status", "id": {"a": [1]}}`, `"id":{"a":[1]}`},
	}
	q := start(t, qmptest.Config{})
	c := dialRaw(t, q.QMPPath())
	if got := c.line(t); !strings.Contains(got, `"QMP"`) {
		t.Errorf("greeting %s", got)
	}
	for _, step := range script {
		c.send(t, step.send+"\n")
		if got := c.line(t); !strings.Contains(got, step.want) {
			t.Errorf("%s: %s, want %s", step.send, got, step.want)
		}
	}
}

func TestEventsReachTheClient(t *testing.T) {
	q := start(t, qmptest.Config{})
	c := dialRaw(t, q.QMPPath())
	c.line(t)
	q.SetRunstate("paused") // before the negotiation: not told
	c.send(t, `{"execute": "qmp_capabilities"}`+"\n")
	c.line(t)
	q.SetRunstate("running")
	if got := c.line(t); !strings.Contains(got, `"event":"RESUME"`) || !strings.Contains(got, `"timestamp":{"seconds":`) {
		t.Errorf("%s, want RESUME", got)
	}
}

func TestProcess(t *testing.T) {
	dir := shortDir(t)
	p, err := qmptest.StartProcess(qmptest.ProcessConfig{Dir: dir, VMID: 100, Args: []string{"-name", "web-1"}})
	if err != nil {
		t.Fatal(err)
	}
	cmdline, err := os.ReadFile("/proc/" + itoa(p.PID()) + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	want := "\x00kvm\x00-id\x00100\x00-pidfile\x00" + dir + "/100.pid\x00-name\x00web-1\x00"
	if !strings.HasSuffix(string(cmdline), want) {
		t.Errorf("command line %q, want it to end with %q", cmdline, want)
	}
	pid, err := os.ReadFile(p.PIDFile())
	if err != nil || string(pid) != itoa(p.PID())+"\n" {
		t.Errorf("pid file %q, %v", pid, err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	p.Kill()
	<-p.Done()
	if _, err := os.Stat(p.PIDFile()); err != nil {
		t.Errorf("after SIGKILL: %v, want the pid file to stay", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.PIDFile()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want no pid file", err)
	}
}
