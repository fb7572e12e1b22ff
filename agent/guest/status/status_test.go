package status_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest/realqemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vmid = 100

// user is a request of somebody who waits.
var user = status.Want{User: true, Agent: true}

// machine is a running VM that the tests say the same of, real or not.
type machine struct {
	pid  int
	hang func(hung bool) // SIGSTOP, SIGCONT
	kill func()          // SIGKILL: all files stay
	dir  string
}

var backends = []struct {
	name  string
	start func(testing.TB, string) machine
}{
	{"simulated", func(tb testing.TB, dir string) machine {
		p := startProcess(tb, dir, vmid)
		q := startQEMU(tb, qmptest.Config{Dir: dir, VMID: vmid, Runstate: "prelaunch"})
		return machine{
			pid: p.PID(), dir: dir,
			hang: q.SetHung,
			kill: func() { q.Kill(); p.Kill() },
		}
	}},
	{"real", func(tb testing.TB, dir string) machine {
		vm := realqemu.Start(tb, realqemu.Config{Dir: dir, VMID: vmid})
		return machine{pid: vm.PID, dir: dir, kill: vm.Kill, hang: func(hung bool) { vm.Hang(tb, hung) }}
	}},
}

func on(t *testing.T, test func(*testing.T, machine)) {
	t.Helper()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) { test(t, b.start(t, shortDir(t))) })
	}
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

func startProcess(tb testing.TB, dir string, id int) *qmptest.Process {
	tb.Helper()
	p, err := qmptest.StartProcess(qmptest.ProcessConfig{Dir: dir, VMID: id})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

func startQEMU(tb testing.TB, cfg qmptest.Config) *qmptest.QEMU {
	tb.Helper()
	q, err := qmptest.NewQEMU(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = q.Close() })
	return q
}

// run makes a tracker and runs it until the end of the test. Where the test
// does not say how long to wait, it waits for long: the machine may be busy.
func run(tb testing.TB, cfg status.Config) *status.Tracker {
	tb.Helper()
	tracker := status.New(patiently(cfg))
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := tracker.Run(ctx); err != nil {
			tb.Errorf("run: %v", err)
		}
	})
	tb.Cleanup(func() {
		cancel()
		work.Wait()
	})
	<-tracker.Ready()
	return tracker
}

func patiently(cfg status.Config) status.Config {
	const long = 20 * time.Second
	if cfg.UserWait == 0 {
		cfg.UserWait = long
	}
	if cfg.Gate == nil {
		patient := qmp.Options{Greeting: long, Command: long, Hold: long, RetryBusy: long}
		cfg.Gate = qmp.NewGate(qmp.GateConfig{User: patient, Background: patient})
	}
	return cfg
}

func state(tb testing.TB, tracker *status.Tracker, want status.Want) status.State {
	tb.Helper()
	st, err := tracker.State(tb.Context(), vmid, want)
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

// until asks until the state is as it shall be.
func until(tb testing.TB, tracker *status.Tracker, want status.Want, what string, reached func(status.State) bool) status.State {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		st := state(tb, tracker, want)
		if reached(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("never: %s; last %+v", what, st)
		}
	}
}

func TestFirstSight(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		tracker := run(t, status.Config{RunDir: m.dir})
		st := state(t, tracker, user)
		if !st.Running || st.PID != m.pid || st.Power != status.On || st.Runstate != "prelaunch" || st.Generation == 0 {
			t.Errorf("%+v, want pid %d, prelaunch", st, m.pid)
		}
		if age := time.Since(st.StartedAt); age < -time.Second || age > time.Minute {
			t.Errorf("started %v ago", age)
		}
		again := state(t, tracker, user)
		if again.Generation != st.Generation || again.RunstateAge <= 0 {
			t.Errorf("again %+v, want the same with an age", again)
		}
	})
}

func TestHungQEMU(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		tracker := run(t, status.Config{RunDir: m.dir, UserWait: 100 * time.Millisecond})
		m.hang(true)
		defer m.hang(false)
		begin := time.Now()
		st := state(t, tracker, user)
		if took := time.Since(begin); !st.Running || st.Power != status.On || st.Runstate != "" || took > 10*time.Second {
			t.Errorf("%+v after %v, want On from the process alone", st, took)
		}
		begin = time.Now()
		for range 100 { // nobody else waits
			state(t, tracker, user)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("100 more states took %v", took)
		}
	})
}

func TestRunstates(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	tracker := run(t, status.Config{RunDir: dir, Gate: eager(), RunstateEvery: time.Millisecond})
	until(t, tracker, user, "an address", func(st status.State) bool { return len(st.IPs) > 0 })
	for _, step := range []struct {
		runstate string
		power    status.Power
		ips      int
	}{{"paused", status.On, 1}, {"running", status.On, 1}, {"io-error", status.On, 1}, {"shutdown", status.Off, 0}, {"running", status.On, 1}} {
		before := state(t, tracker, user)
		q.SetRunstate(step.runstate)
		st := until(t, tracker, user, step.runstate, func(st status.State) bool { return st.Runstate == step.runstate })
		if st.Power != step.power || !st.Running || len(st.IPs) != step.ips || st.Generation == before.Generation {
			t.Errorf("%+v, want %s and %d addresses", st, step.power, step.ips)
		}
	}
}

func TestFirstSightInTheBackground(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid})
	q.SetReplyDelay(20 * time.Millisecond)
	tracker := run(t, status.Config{RunDir: dir})
	nobody := status.Want{}
	if st := state(t, tracker, nobody); st.Power != status.On || st.Runstate != "" {
		t.Errorf("%+v, want On at once, without a run state", st)
	}
	until(t, tracker, nobody, "running", func(st status.State) bool { return st.Runstate == "running" })
}

// other is a second VM, whose reads show that those of the first one are over:
// with one worker they are made in the order in which they were asked for.
const other = vmid + 1

// settle returns when all background reads that have been asked for are made.
func settle(t *testing.T, tracker *status.Tracker, q *qmptest.QEMU) {
	t.Helper()
	before, agent := q.Stats().Sessions, q.AgentStats().Sessions
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for q.Stats().Sessions == before || q.AgentStats().Sessions == agent {
		if _, err := tracker.State(t.Context(), other, status.Want{Agent: true}); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
}

// TestLockedVM: its monitor is left alone, unless it is the first question.
func TestLockedVM(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startProcess(t, dir, other)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid})
	clock := startQEMU(t, qmptest.Config{Dir: dir, VMID: other})
	tracker := run(t, status.Config{RunDir: dir, Gate: eager(), Workers: 1, RunstateEvery: time.Nanosecond, AgentEvery: time.Nanosecond})
	locked := status.Want{Lock: "backup"}
	for range 20 {
		state(t, tracker, locked)
	}
	settle(t, tracker, clock)
	if n := q.Stats().Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
	locked.User = true
	for range 20 {
		state(t, tracker, locked)
	}
	settle(t, tracker, clock)
	if st := q.Stats(); st.Sessions != 1 {
		t.Errorf("%+v, want one session", st)
	}
}

// TestSessionsAreFew: many ask, QEMU hears of it once.
func TestSessionsAreFew(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	q.SetReplyDelay(5 * time.Millisecond) // so that they all come during the first question
	tracker := run(t, status.Config{RunDir: dir})
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			for range 200 {
				if st, err := tracker.State(t.Context(), vmid, user); err != nil || st.Runstate != "running" {
					t.Errorf("%+v, %v", st, err)
				}
			}
		})
	}
	work.Wait()
	if st := q.Stats(); st.Connections != 1 || st.Commands["query-status"] != 1 {
		t.Errorf("%+v, want one session", st)
	}
	if st := q.AgentStats(); st.Connections > 1 {
		t.Errorf("agent: %+v, want one session", st)
	}
}

func guest(name string, addresses ...string) qmptest.Guest {
	return qmptest.Guest{
		HostName: name, OS: qga.OSInfo{PrettyName: "Debian GNU/Linux 13 (trixie)"},
		Interfaces: qmptest.Network("BC:24:11:00:00:01", addresses...),
	}
}
