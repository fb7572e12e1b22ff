package qga_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest/realqemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	patient = qga.Options{Sync: 10 * time.Second, Command: 10 * time.Second}
	hasty   = qga.Options{Sync: 100 * time.Millisecond, Command: 100 * time.Millisecond}
)

// backends are the ways to have a guest agent of a guest that is named as this
// machine. They return the path of its socket.
var backends = []struct {
	name  string
	start func(testing.TB) string
}{
	{"simulated", func(tb testing.TB) string { return newQEMU(tb, qmptest.Config{Guest: thisMachine(tb)}).AgentPath() }},
	{"real", func(tb testing.TB) string {
		path := filepath.Join(shortDir(tb), "100.qga")
		realqemu.StartAgent(tb, path)
		return path
	}},
}

func thisMachine(tb testing.TB) qmptest.Guest {
	name, err := os.Hostname()
	if err != nil {
		tb.Fatal(err)
	}
	return qmptest.Guest{
		HostName:   name,
		OS:         qga.OSInfo{PrettyName: "Debian GNU/Linux 13 (trixie)", ID: "debian", Machine: "x86_64"},
		Interfaces: qmptest.Network("BC:24:11:00:00:01", "10.0.0.5"),
	}
}

func newQEMU(tb testing.TB, cfg qmptest.Config) *qmptest.QEMU {
	tb.Helper()
	cfg.Dir, cfg.VMID = shortDir(tb), 100
	q, err := qmptest.NewQEMU(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = q.Close() })
	return q
}

func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(tb testing.TB, path string, opts qga.Options) *qga.Session {
	tb.Helper()
	s, err := qga.Open(tb.Context(), path, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

func on(t *testing.T, test func(*testing.T, string)) {
	t.Helper()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, b.start(t)) })
	}
}

func TestConversation(t *testing.T) {
	on(t, func(t *testing.T, path string) {
		s := open(t, path, patient)
		if err := s.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		want, _ := os.Hostname()
		if name, err := s.HostName(t.Context()); err != nil || name != want {
			t.Errorf("host name %q, %v; want %q", name, err, want)
		}
		if info, err := s.OSInfo(t.Context()); err != nil || info.PrettyName == "" || info.Machine == "" && runtime.GOARCH == "amd64" {
			t.Errorf("os %+v, %v", info, err)
		}
		interfaces, err := s.NetworkInterfaces(t.Context())
		if err != nil || len(interfaces) == 0 || interfaces[0].Name != "lo" {
			t.Errorf("interfaces %+v, %v", interfaces, err)
		}
		err = s.Execute(t.Context(), "guest-no-such-command", nil, nil)
		var refused *qmp.Error
		want2 := qmp.Error{Command: "guest-no-such-command", Class: qmp.ClassCommandNotFound, Desc: "The command guest-no-such-command has not been found"}
		if !errors.As(err, &refused) || *refused != want2 {
			t.Errorf("%v, want %v", err, &want2)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("after a refusal: %v", err)
		}
	})
}

// TestRemainsOfOthers has clients come before us who left things in the pipe.
func TestRemainsOfOthers(t *testing.T) {
	remains := map[string]string{
		"half a command":        `{"execute": "guest-get-os`,
		"an unread reply":       "{\"execute\": \"guest-get-osinfo\"}\n",
		"garbage":               "%$ \x00\n",
		"a sync of its own":     "{\"execute\": \"guest-sync\", \"arguments\": {\"id\": 5}}\n",
		"a delimited sync":      "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 5}}\n",
		"an open string":        `{"execute": "`,
		"an array without end":  strings.Repeat("[", 100),
		"nothing but delimiter": "\xff\xff",
	}
	on(t, func(t *testing.T, path string) {
		for name, left := range remains {
			c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, left); err != nil {
				t.Fatal(err)
			}
			// An agent that listens itself, unlike one in a guest, does not
			// survive a client that leaves a reply unread.
			if half, ok := c.(*net.UnixConn); !ok || half.CloseWrite() != nil {
				t.Fatal("cannot close one half of the connection")
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
			s := open(t, path, patient)
			if err := s.Ping(t.Context()); err != nil {
				t.Errorf("after %s: %v", name, err)
			}
			var info struct{ Version string }
			if err := s.Execute(t.Context(), "guest-info", nil, &info); err != nil || info.Version == "" {
				t.Errorf("after %s: %+v, %v", name, info, err)
			}
			s.Close()
		}
	})
}

func TestSilentAgent(t *testing.T) {
	silent := map[string]func(testing.TB) string{
		"simulated": func(tb testing.TB) string {
			q := newQEMU(tb, qmptest.Config{})
			q.SetAgentSilent(true)
			return q.AgentPath()
		},
		"paused": func(tb testing.TB) string { return newQEMU(tb, qmptest.Config{Runstate: "paused"}).AgentPath() },
		"booting": func(tb testing.TB) string {
			return newQEMU(tb, qmptest.Config{Boot: time.Hour}).AgentPath()
		},
		"real": func(tb testing.TB) string {
			return realqemu.Start(tb, realqemu.Config{Dir: shortDir(tb), VMID: 100}).Agent
		},
	}
	for name, start := range silent {
		t.Run(name, func(t *testing.T) {
			path := start(t)
			_, err := qga.Open(t.Context(), path, hasty)
			if !errors.Is(err, qga.ErrSilent) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want silent", err)
			}
			var op *qmp.OpError
			if !errors.As(err, &op) || op.Op != "sync" || op.Path != path {
				t.Errorf("%v does not name the act and the socket", err)
			}
		})
	}
}

// TestLateReplies: what a silent agent was asked by those who gave up, it
// answers to us.
func TestLateReplies(t *testing.T) {
	q := newQEMU(t, qmptest.Config{Guest: qmptest.Guest{HostName: "web-1"}})
	q.SetAgentSilent(true)
	for range 3 {
		if _, err := qga.Open(t.Context(), q.AgentPath(), hasty); !errors.Is(err, qga.ErrSilent) {
			t.Fatal(err)
		}
	}
	q.SetAgentSilent(false)
	s := open(t, q.AgentPath(), patient)
	if name, err := s.HostName(t.Context()); err != nil || name != "web-1" {
		t.Errorf("%q, %v", name, err)
	}
}

// TestUnfinishedReply: the agent, or QEMU's socket, was cut off within a line.
func TestUnfinishedReply(t *testing.T) {
	script := append(qmptest.Conversation{}, qmptest.RecordedAgent()[:2]...)
	script[1].Text = `{"return": {"version": "10.` + script[1].Text
	path := filepath.Join(shortDir(t), "100.qga")
	replay, err := qmptest.NewReplay(path, script)
	if err != nil {
		t.Fatal(err)
	}
	open(t, path, patient).Close()
	if err := replay.Close(); err != nil {
		t.Error(err)
	}
}

func TestAgentFallsSilent(t *testing.T) {
	q := newQEMU(t, qmptest.Config{Guest: qmptest.Guest{HostName: "web-1"}})
	s := open(t, q.AgentPath(), qga.Options{Sync: 10 * time.Second, Command: 100 * time.Millisecond})
	q.SetAgentSilent(true)
	if _, err := s.HostName(t.Context()); !errors.Is(err, qmp.ErrTimeout) {
		t.Errorf("%v, want a timeout", err)
	}
	q.SetAgentSilent(false)
	if _, err := s.HostName(t.Context()); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("after a timeout: %v, want a dead session", err)
	}
	s.Close()
	if name, err := open(t, q.AgentPath(), patient).HostName(t.Context()); err != nil || name != "web-1" {
		t.Errorf("next session: %q, %v", name, err)
	}
}

func TestContextEndsSession(t *testing.T) {
	q := newQEMU(t, qmptest.Config{})
	q.SetAgentSilent(true)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := qga.Open(ctx, q.AgentPath(), patient); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v, want canceled", err)
	}
	q.SetAgentSilent(false)
	s := open(t, q.AgentPath(), patient)
	q.SetAgentSilent(true)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := s.Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("command: %v, want canceled", err)
	}
}

func TestNobodyThere(t *testing.T) {
	q := newQEMU(t, qmptest.Config{})
	s := open(t, q.AgentPath(), patient)
	q.Kill()
	if err := s.Ping(t.Context()); !errors.Is(err, qmp.ErrGone) {
		t.Errorf("command: %v, want gone", err)
	}
	if _, err := qga.Open(t.Context(), q.AgentPath(), patient); !errors.Is(err, syscall.ECONNREFUSED) || !errors.Is(err, qmp.ErrGone) {
		t.Errorf("open: %v, want gone", err)
	}
	without := newQEMU(t, qmptest.Config{NoAgent: true})
	if _, err := qga.Open(t.Context(), without.AgentPath(), patient); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, qmp.ErrGone) {
		t.Errorf("no agent device: %v, want gone", err)
	}
}

func TestRecordedConversation(t *testing.T) {
	script, err := qmptest.RecordedAgent().Select("guest-ping", "guest-get-host-name", "guest-get-osinfo",
		"guest-network-get-interfaces", "guest-no-such-command")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shortDir(t), "120.qga")
	replay, err := qmptest.NewReplay(path, script)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path, patient)
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if name, err := s.HostName(t.Context()); err != nil || name != "linked120" {
		t.Errorf("host name %q, %v", name, err)
	}
	wantOS := qga.OSInfo{
		Name: "Lab Guest", PrettyName: "Lab Guest 1.0", ID: "labguest", Version: "1.0 (lab)", VersionID: "1.0",
		KernelRelease: "6.12.117+deb13-cloud-amd64", KernelVersion: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-11-12)", Machine: "x86_64",
	}
	if info, err := s.OSInfo(t.Context()); err != nil || info != wantOS {
		t.Errorf("os %+v, %v", info, err)
	}
	want := []qga.Interface{
		{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: prefixes("127.0.0.1/8", "::1/128")},
		{Name: "eth0", MAC: "bc:24:11:78:31:57", Addresses: prefixes("10.77.0.120/24", "fe80::be24:11ff:fe78:3157/64")},
	}
	if got, err := s.NetworkInterfaces(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("interfaces %+v, %v", got, err)
	}
	var refused *qmp.Error
	if err := s.Execute(t.Context(), "guest-no-such-command", nil, nil); !errors.As(err, &refused) {
		t.Errorf("%v, want a refusal", err)
	}
	s.Close()
	if err := replay.Close(); err != nil {
		t.Error(err)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// TestHostileGuest: the agent is the guest's, and may say anything.
func TestHostileGuest(t *testing.T) {
	sync := qmptest.RecordedAgent()[:2]
	ask := qmptest.Line{Dir: ">", Text: `{"execute": "guest-network-get-interfaces"}`}
	for name, test := range map[string]struct {
		reply string
		want  error // nil: anything but success
		count int   // interfaces on success
	}{
		"garbage":            {reply: "<html>", want: qmp.ErrProtocol},
		"greeting":           {reply: `{"QMP": 1}`},
		"wrong type":         {reply: `{"return": {"name": 7}}`},
		"null":               {reply: `{"return": null}`, count: 0},
		"addresses are none": {reply: `{"return": [{"name": "x", "ip-addresses": [{"ip-address": "300.1.1.1", "prefix": 24}, {"ip-address": "", "prefix": -7}]}]}`, count: 1},
		"huge prefix":        {reply: `{"return": [{"name": "x", "ip-addresses": [{"ip-address": "10.0.0.1", "prefix": 4000}]}]}`, count: 1},
		"zone":               {reply: `{"return": [{"name": "x", "ip-addresses": [{"ip-address": "fe80::1%eth0", "prefix": 64}]}]}`, count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "100.qga")
			replay, err := qmptest.NewReplay(path, append(append(qmptest.Conversation{}, sync...), ask, qmptest.Line{Dir: "<", Text: test.reply}))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = replay.Close() }()
			got, err := open(t, path, patient).NetworkInterfaces(t.Context())
			switch {
			case test.want != nil && !errors.Is(err, test.want):
				t.Errorf("%v, want %v", err, test.want)
			case test.want == nil && test.count > 0 && (err != nil || len(got) != test.count):
				t.Errorf("%+v, %v; want %d", got, err, test.count)
			case test.want == nil && test.count == 0 && len(got) > 0:
				t.Errorf("%+v, want none", got)
			}
		})
	}
}
