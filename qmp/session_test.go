package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// patient are options for tests in which nothing shall time out.
var patient = qmp.Options{Greeting: 10 * time.Second, Command: 10 * time.Second, Hold: time.Minute}

// hasty are options for tests in which something does.
var hasty = qmp.Options{Greeting: 50 * time.Millisecond, Command: 300 * time.Millisecond, Hold: time.Minute}

// on runs a test with each backend.
func on(t *testing.T, test func(*testing.T, machine)) {
	t.Helper()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, b.start(t)) })
	}
}

func TestConversation(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		s := open(t, m.path, patient)
		if s.Version().QEMU.Major < 5 {
			t.Errorf("version %v, want that of the greeting", s.Version())
		}
		var status struct{ Status string }
		if err := s.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
			t.Errorf("status %q, %v; want prelaunch", status.Status, err)
		}
		var schema []json.RawMessage
		if err := s.Execute(t.Context(), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 500 {
			t.Errorf("schema of %d entries, %v; want more than 500", len(schema), err)
		}
		typed, err := s.Raw().QueryHotpluggableCpus()
		if err != nil || len(typed) != 2 {
			t.Errorf("go-qemu's typed command: %v, %v; want two places", typed, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	plug := func(driver, id string, socket int) map[string]any {
		return map[string]any{"driver": driver, "id": id, "socket-id": socket, "core-id": 0, "thread-id": 0}
	}
	const cpu = "qemu64-x86_64-cpu"
	steps := []struct {
		command string
		args    any
		class   string // "": no error
		desc    string
	}{
		{"query-no-such-thing", nil, qmp.ClassCommandNotFound, "The command query-no-such-thing has not been found"},
		{"query-status", map[string]int{"x": 1}, "GenericError", "Parameter 'x' is unexpected"},
		{"balloon", nil, "GenericError", "Parameter 'value' is missing"},
		{"balloon", map[string]string{"value": "abc"}, "GenericError", "Invalid parameter type for 'value', expected: integer"},
		{"device_add", plug(cpu, "cpu2", 7), "GenericError", "Invalid CPU socket-id: 7 must be in range 0:1"},
		{"device_add", plug("host-x86_64-cpu", "cpu2", 1), "GenericError", "Invalid CPU type, expected cpu type: 'qemu64-x86_64-cpu'"},
		{"device_add", plug("nonsense-cpu", "cpu2", 1), "GenericError", "'nonsense-cpu' is not a valid device model name"},
		{"device_add", map[string]string{"driver": cpu, "id": "cpu2"}, "GenericError", "CPU socket-id is not set"},
		{"device_add", map[string]string{"id": "cpu2"}, "GenericError", "Parameter 'driver' is missing"},
		{"device_add", plug(cpu, "cpu2", 1), "", ""},
		{"device_add", plug(cpu, "cpu2", 1), "GenericError", "Duplicate device ID 'cpu2'"},
		{"device_add", plug(cpu, "cpu3", 1), "GenericError", "CPU[1] with APIC ID 1 exists"},
		{"device_del", map[string]string{"id": "cpu7"}, qmp.ClassDeviceNotFound, "Device 'cpu7' not found"},
		{"qmp_capabilities", nil, qmp.ClassCommandNotFound, "Capabilities negotiation is already complete, command ignored"},
	}
	on(t, func(t *testing.T, m machine) {
		s := open(t, m.path, patient)
		for _, step := range steps {
			err := s.Execute(t.Context(), step.command, step.args, nil)
			if step.class == "" {
				if err != nil {
					t.Errorf("%s: %v", step.command, err)
				}
				continue
			}
			var refused *qmp.Error
			if !errors.As(err, &refused) {
				t.Errorf("%s: %v, want a refusal", step.command, err)
				continue
			}
			want := qmp.Error{Command: step.command, Class: step.class, Desc: step.desc}
			if *refused != want {
				t.Errorf("got  %+v\nwant %+v", *refused, want)
			}
		}
		var cpus []struct {
			Path string `json:"qom-path"`
		}
		if err := s.Execute(t.Context(), "query-cpus-fast", nil, &cpus); err != nil || len(cpus) != 2 || cpus[1].Path != "/machine/peripheral/cpu2" {
			t.Errorf("cpus %v, %v; want the plugged one", cpus, err)
		}
	})
}

func TestEventsBetweenReplies(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		opts := patient
		opts.AllowAll = true
		s := open(t, m.path, opts)
		// cont and stop are answered together with RESUME and STOP.
		for _, step := range []struct{ command, status string }{{"cont", "running"}, {"stop", "paused"}, {"cont", "running"}} {
			if err := s.Execute(t.Context(), step.command, nil, nil); err != nil {
				t.Fatal(err)
			}
			var status struct{ Status string }
			if err := s.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != step.status {
				t.Errorf("after %s: %q, %v", step.command, status.Status, err)
			}
		}
	})
}

// TestEventsBeforeTheGreeting: between two clients QEMU still sends events, and the next one may see them first.
func TestEventsBeforeTheGreeting(t *testing.T) {
	path := filepath.Join(shortDir(t), "1.qmp")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- greetLate(ln) }()
	s := open(t, path, qmp.UserOptions())
	if v := s.Version(); v.QEMU.Major != 7 {
		t.Errorf("version %+v", v)
	}
	s.Close()
	if err := errors.Join(<-served, ln.Close()); err != nil {
		t.Error(err)
	}
}

// greetLate serves one client: two events, the greeting, the negotiation.
func greetLate(ln net.Listener) error {
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the client has what it needs
	const event = `{"timestamp":{"seconds":1,"microseconds":0},"event":"BALLOON_CHANGE","data":{"actual":1}}` + "\r\n"
	if _, err := io.WriteString(conn, event+event+`{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7},"package":""},"capabilities":[]}}`+"\r\n"); err != nil {
		return err
	}
	var rq struct{ ID json.RawMessage }
	if err := json.NewDecoder(conn).Decode(&rq); err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, `{"return":{},"id":%s}`+"\r\n", rq.ID)
	return err
}

func TestOneClientAtATime(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		first := open(t, m.path, patient)

		// Two may wait, without a greeting.
		begin := time.Now()
		_, err := qmp.Open(t.Context(), m.path, hasty)
		if !errors.Is(err, qmp.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second client: %v, want busy for want of a greeting", err)
		}
		if waited := time.Since(begin); waited < hasty.Greeting {
			t.Errorf("waited %v for the greeting, want %v", waited, hasty.Greeting)
		}
		next := make(chan error, 1)
		go func() {
			s, err := qmp.Open(t.Context(), m.path, patient)
			if err == nil {
				s.Close()
			}
			next <- err
		}()
		first.Close()
		if err := <-next; err != nil {
			t.Errorf("client that waited: %v", err)
		}
	})
}

func TestQueueIsFull(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		first := open(t, m.path, patient)
		release := fill(t, m.path)

		_, err := qmp.Open(t.Context(), m.path, patient)
		var op *qmp.OpError
		if !errors.Is(err, qmp.ErrBusy) || errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &op) || op.Op != "connect" {
			t.Errorf("in the background: %v, want busy at once", err)
		}

		retry := patient
		retry.RetryBusy = 30 * time.Millisecond
		begin := time.Now()
		if _, err := qmp.Open(t.Context(), m.path, retry); !errors.Is(err, qmp.ErrBusy) || time.Since(begin) < retry.RetryBusy/2 {
			t.Errorf("for a user: %v after %v, want busy after some attempts", err, time.Since(begin))
		}

		ctx, cancel := context.WithCancel(t.Context())
		retry.RetryBusy = time.Hour
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := qmp.Open(ctx, m.path, retry); !errors.Is(err, context.Canceled) {
			t.Errorf("a user who left: %v, want canceled", err)
		}

		retry.RetryBusy = time.Minute
		time.AfterFunc(20*time.Millisecond, func() { release(); first.Close() })
		open(t, m.path, retry)
	})
}

// fill connects until connect(2) says EAGAIN. release closes what it made.
func fill(t *testing.T, path string) (release func()) {
	t.Helper()
	var waiting []net.Conn
	release = func() {
		for _, c := range waiting {
			_ = c.Close()
		}
	}
	t.Cleanup(release)
	for range 10 {
		c, err := dial(t, path)
		if errors.Is(err, syscall.EAGAIN) {
			return release
		}
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	t.Fatal("the queue has no end")
	return release
}

func TestHungMachine(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		opts := hasty
		opts.Greeting = time.Minute
		s := open(t, m.path, opts)
		m.hang(true)
		defer m.hang(false)

		err := s.Execute(t.Context(), "query-status", nil, nil)
		if !errors.Is(err, qmp.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("command: %v, want a timeout", err)
		}
		m.hang(false)
		// The late reply must not be taken for that of another command.
		if err := s.Execute(t.Context(), "query-name", nil, nil); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("after a timeout: %v, want a dead session", err)
		}
		if err := s.Connect(); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("connect after a timeout: %v, want a dead session", err)
		}
		open(t, m.path, patient)
	})
}

func TestHungMachineDoesNotGreet(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		m.hang(true)
		defer m.hang(false)
		if _, err := qmp.Open(t.Context(), m.path, hasty); !errors.Is(err, qmp.ErrBusy) {
			t.Errorf("%v, want busy", err)
		}
	})
}

func TestContextEndsCommand(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		s := open(t, m.path, patient)
		m.hang(true)
		defer m.hang(false)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if err := s.Execute(ctx, "query-status", nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want canceled", err)
		}
		if err := s.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("after that: %v, want a dead session", err)
		}
	})
}

func TestContextOfOpenEndsSession(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := qmp.Open(ctx, m.path, patient)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		m.hang(true)
		defer m.hang(false)
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := s.Run([]byte(`{"execute": "query-status"}`)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want canceled", err)
		}
		if err := s.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("after that: %v, want canceled", err)
		}
	})
}

// TestContextOfOpenEndsCommand has a command run under another context.
func TestContextOfOpenEndsCommand(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := qmp.Open(ctx, m.path, patient)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		m.hang(true)
		defer m.hang(false)
		time.AfterFunc(20*time.Millisecond, cancel)
		begin := time.Now()
		err = s.Execute(t.Context(), "query-status", nil, nil)
		if took := time.Since(begin); !errors.Is(err, context.Canceled) || took > patient.Command/2 {
			t.Errorf("%v after %v, want canceled at once", err, took)
		}
	})
}

func TestMachineDies(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		s := open(t, m.path, patient)
		m.kill()
		if err := s.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, qmp.ErrGone) {
			t.Errorf("command: %v, want gone", err)
		}
		if _, err := qmp.Open(t.Context(), m.path, patient); !errors.Is(err, qmp.ErrGone) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("socket without process: %v, want gone (connection refused)", err)
		}
		if err := os.Remove(m.path); err != nil {
			t.Fatal(err)
		}
		if _, err := qmp.Open(t.Context(), m.path, patient); !errors.Is(err, qmp.ErrGone) || !errors.Is(err, syscall.ENOENT) {
			t.Errorf("no socket: %v, want gone (no such file)", err)
		}
	})
}

func TestHoldIsLimited(t *testing.T) {
	q := newQEMU(t, qmptest.Config{Dir: shortDir(t), VMID: 100})
	opts := patient
	opts.Hold = 50 * time.Millisecond
	s := open(t, q.QMPPath(), opts)
	q.SetReplyDelay(20 * time.Millisecond)
	begin := time.Now()
	var err error
	for err == nil {
		err = s.Execute(t.Context(), "query-status", nil, nil)
	}
	if !errors.Is(err, qmp.ErrTimeout) || time.Since(begin) > 10*time.Second {
		t.Errorf("%v after %v, want a timeout", err, time.Since(begin))
	}
	if st := q.Stats(); st.Commands["query-status"] > 3 {
		t.Errorf("%d commands of 20 ms within 50 ms", st.Commands["query-status"])
	}
}

func TestMonitorOfGoQEMU(t *testing.T) {
	q := newQEMU(t, qmptest.Config{Dir: shortDir(t), VMID: 100, Name: "web-1"})
	var mon goqmp.Monitor = open(t, q.QMPPath(), patient)
	if err := mon.Connect(); err != nil {
		t.Error(err)
	}
	if _, err := mon.Events(t.Context()); !errors.Is(err, goqmp.ErrEventsNotSupported) {
		t.Errorf("events: %v", err)
	}
	out, err := mon.Run([]byte(`{"execute": "query-name", "arguments": {}}`))
	if err != nil || string(out) != `{"return":{"name":"web-1"}}` {
		t.Errorf("run: %s, %v", out, err)
	}
	for _, bad := range []string{``, `7`, `{"execute": 1}`, `{"exec-oob": "query-name"}`, `{"execute": "query-name", "control": {}}`} {
		if _, err := mon.Run([]byte(bad)); !errors.Is(err, qmp.ErrProtocol) {
			t.Errorf("run %q: %v, want it refused", bad, err)
		}
	}
	if err := mon.Disconnect(); err != nil {
		t.Error(err)
	}
	if err := mon.Connect(); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("connect after disconnect: %v", err)
	}
}

func TestReservedCommands(t *testing.T) {
	q := newQEMU(t, qmptest.Config{Dir: shortDir(t), VMID: 100, Sockets: 2, CPUHotplug: true})
	s := open(t, q.QMPPath(), patient)
	refused := []struct {
		command string
		args    any
	}{
		{"quit", nil},
		{"stop", nil},
		{"cont", nil},
		{"system_reset", nil},
		{"system_powerdown", nil},
		{"system_wakeup", nil},
		{"migrate", nil},
		{"migrate_cancel", nil},
		{"migrate-set-parameters", nil},
		{"savevm-start", nil},
		{"savevm-end", nil},
		{"snapshot-save", nil},
		{"blockdev-add", nil},
		{"blockdev-snapshot", nil},
		{"drive-mirror", nil},
		{"drive-backup", nil},
		{"backup", nil},
		{"backup-cancel", nil},
		{"chardev-add", nil},
		{"object-add", nil},
		{"human-monitor-command", map[string]string{"command-line": "quit"}},
		{"device_del", map[string]string{"id": "scsi0"}},
		{"device_del", map[string]string{"id": "net0"}},
		{"device_del", map[string]string{"id": "cpu"}},
		{"device_del", map[string]string{"id": "cpu0x"}},
		{"device_del", nil},
		{"device_del", map[string]any{"id": 7}},
		{"device_add", map[string]string{"driver": "scsi-hd", "id": "scsi1"}},
		{"device_add", map[string]string{"driver": "scsi-hd", "id": "cpu2"}},
	}
	for _, r := range refused {
		err := s.Execute(t.Context(), r.command, r.args, nil)
		if !errors.Is(err, qmp.ErrForbidden) || !strings.Contains(err.Error(), r.command) {
			t.Errorf("execute %s %v: %v, want it refused by name", r.command, r.args, err)
		}
		raw, err := json.Marshal(map[string]any{"execute": r.command, "arguments": r.args})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Run(raw); !errors.Is(err, qmp.ErrForbidden) {
			t.Errorf("run %s: %v, want it refused", raw, err)
		}
	}
	if err := s.Raw().Stop(); !errors.Is(err, qmp.ErrForbidden) {
		t.Errorf("go-qemu's stop: %v, want it refused", err)
	}
	// What is allowed, in the same session.
	if err := s.Execute(t.Context(), "device_del", map[string]string{"id": "cpu2"}, nil); err != nil {
		t.Error(err)
	}
	want := map[string]int{"qmp_capabilities": 1, "device_del": 1}
	if got := q.Stats().Commands; len(got) != 2 || got["device_del"] != 1 {
		t.Errorf("QEMU was sent %v, want %v", got, want)
	}
	// For simulators there is a way.
	s.Close()
	opts := patient
	opts.AllowAll = true
	if err := open(t, q.QMPPath(), opts).Execute(t.Context(), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	<-q.Done()
}
