package status_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

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

func TestProcessDies(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		exits := make(chan int, 10)
		tracker := run(t, status.Config{RunDir: m.dir, OnExit: func(id int) { exits <- id }})
		alive := state(t, tracker, user)
		m.kill()
		st := state(t, tracker, user)
		if st.Running || st.Power != status.Off || st.PID != 0 || st.Runstate != "" || st.Generation == alive.Generation {
			t.Errorf("after the end %+v", st)
		}
		if id := <-exits; id != vmid {
			t.Errorf("exit of %d", id)
		}
	})
}

// TestExitIsToldOnce: many notice the end at the same moment.
func TestExitIsToldOnce(t *testing.T) {
	dir := shortDir(t)
	p, last := startProcess(t, dir, vmid), startProcess(t, dir, other)
	exits := make(chan int, 1000)
	tracker := run(t, status.Config{RunDir: dir, OnExit: func(id int) { exits <- id }})
	for round := range 20 {
		state(t, tracker, status.Want{})
		var work sync.WaitGroup
		for range 8 {
			work.Go(func() {
				for st := (status.State{Running: true}); st.Running; {
					var err error
					if st, err = tracker.State(t.Context(), vmid, status.Want{}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		p.Kill()
		work.Wait()
		if round < 19 {
			p = startProcess(t, dir, vmid)
		}
	}
	if _, err := tracker.State(t.Context(), other, status.Want{}); err != nil {
		t.Fatal(err)
	}
	last.Kill()
	ends := 0
	for <-exits != other {
		ends++
	}
	if ends != 20 {
		t.Errorf("20 ends were told %d times", ends)
	}
}

// TestExitIsTold: nobody asks, and OnExit is called all the same.
func TestExitIsTold(t *testing.T) {
	on(t, func(t *testing.T, m machine) {
		exits := make(chan int, 10)
		tracker := status.New(patiently(status.Config{RunDir: m.dir, OnExit: func(id int) { exits <- id }}))
		state(t, tracker, user) // before Run
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tracker.Run(ctx) }()
		<-tracker.Ready()
		m.kill()
		if id := <-exits; id != vmid {
			t.Errorf("exit of %d", id)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(exits) > 0 {
			t.Error("told twice")
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

func TestRestart(t *testing.T) {
	dir := shortDir(t)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	tracker := run(t, status.Config{RunDir: dir})
	first := startProcess(t, dir, vmid)
	before := until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName != "" })
	first.Kill()
	q.SetAgentSilent(true)
	second := startProcess(t, dir, vmid)
	after := state(t, tracker, user)
	if after.PID != second.PID() || after.Generation == before.Generation || after.HostName != "" || after.IPs != nil || after.AgentAge >= 0 {
		t.Errorf("%+v, want the new process %d, and nothing of the old one's guest", after, second.PID())
	}
}

func TestNoProcess(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"no pid file": func(*testing.T, string) {},
		"no directory": func(t *testing.T, dir string) {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		},
		"pid file is being written": func(t *testing.T, dir string) { writePID(t, dir, "") },
		"process has ended": func(t *testing.T, dir string) {
			startProcess(t, dir, vmid).Kill()
		},
		"a stranger's process": func(t *testing.T, dir string) { writePID(t, dir, itoa(os.Getpid())) },
		"another VM's process": func(t *testing.T, dir string) { writePID(t, dir, itoa(startProcess(t, dir, 101).PID())) },
		"init's":               func(t *testing.T, dir string) { writePID(t, dir, "1") },
		"a number too large":   func(t *testing.T, dir string) { writePID(t, dir, "2147483647") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			prepare(t, dir)
			tracker := run(t, status.Config{RunDir: dir})
			if st := state(t, tracker, user); st.Running || st.Power != status.Off || st.Generation != 0 {
				t.Errorf("%+v, want off", st)
			}
		})
	}
}

// TestZombie: a process that has ended is one, also while /proc shows it.
func TestZombie(t *testing.T) {
	dir := shortDir(t)
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	// Wait for its end, and leave it for cmd.Wait to bury.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(shortDir(t), itoa(cmd.Process.Pid))
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	writePID(t, dir, itoa(cmd.Process.Pid))
	writeFile(t, at+"/cmdline", "kvm\x00-pidfile\x00"+dir+"/100.pid\x00")
	writeFile(t, at+"/stat", "7 (kvm) S"+strings.Repeat(" 1", 40))
	done := make(chan status.State, 1)
	go func() {
		st, err := status.New(status.Config{RunDir: dir, Proc: filepath.Dir(at)}).State(t.Context(), vmid, user)
		if err != nil {
			t.Error(err)
		}
		done <- st
	}()
	select {
	case st := <-done:
		if st.Power != status.Off {
			t.Errorf("%+v, want off", st)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("looks for ever at a process that has ended")
	}
}

// TestDoubt: what cannot be read is no reason to say that a VM is off.
func TestDoubt(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, dir string, cfg *status.Config){
		"garbage":  func(t *testing.T, dir string, _ *status.Config) { writePID(t, dir, "garbage") },
		"negative": func(t *testing.T, dir string, _ *status.Config) { writePID(t, dir, "-7") },
		"directory": func(t *testing.T, dir string, _ *status.Config) {
			if err := os.Mkdir(dir+"/100.pid", 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"unreadable process": func(t *testing.T, dir string, cfg *status.Config) {
			p := startProcess(t, dir, vmid)
			cfg.Proc = shortDir(t)
			if err := os.MkdirAll(cfg.Proc+"/"+itoa(p.PID())+"/cmdline", 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"odd stat": func(t *testing.T, dir string, cfg *status.Config) {
			p := startProcess(t, dir, vmid)
			cfg.Proc = shortDir(t)
			at := cfg.Proc + "/" + itoa(p.PID())
			if err := os.Mkdir(at, 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, at+"/cmdline", "kvm\x00-pidfile\x00"+p.PIDFile()+"\x00")
			writeFile(t, at+"/stat", "7 (kvm) S 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := status.Config{RunDir: shortDir(t)}
			prepare(t, cfg.RunDir, &cfg)
			if st, err := run(t, cfg).State(t.Context(), vmid, user); err == nil || st.Power != "" {
				t.Errorf("%+v, want an error", st)
			}
		})
	}
}

// TestLinkedRunDir: /var/run is a link to /run.
func TestLinkedRunDir(t *testing.T) {
	dir := shortDir(t)
	link := dir + "-l"
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(link) }()
	p := startProcess(t, dir, vmid)
	if st := state(t, run(t, status.Config{RunDir: link}), user); st.PID != p.PID() {
		t.Errorf("%+v, want process %d", st, p.PID())
	}
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

func TestGuestAgent(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5", "fd00::5")})
	tracker := run(t, status.Config{RunDir: dir, AgentEvery: time.Millisecond})
	if st := state(t, tracker, status.Want{User: true}); st.AgentAge >= 0 {
		t.Errorf("%+v, want nothing of an agent that is not configured", st)
	}
	st := until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.AgentAge >= 0 })
	if !slices.Equal(st.IPs, []string{"10.0.0.5", "fd00::5"}) || st.HostName != "web-1" || st.OS != "Debian GNU/Linux 13 (trixie)" {
		t.Errorf("%+v", st)
	}
	q.SetGuest(guest("web-2", "10.0.0.6"))
	st2 := until(t, tracker, user, "its new word", func(st status.State) bool { return st.HostName == "web-2" })
	if st2.Generation == st.Generation || !slices.Equal(st2.IPs, []string{"10.0.0.6"}) {
		t.Errorf("%+v", st2)
	}
	q.SetAgentSilent(true)
	old := until(t, tracker, user, "an old word", func(st status.State) bool { return st.AgentAge > 700*time.Millisecond })
	if old.Generation != st2.Generation || old.HostName != "web-2" {
		t.Errorf("%+v, want the last word of %+v", old, st2)
	}
	if n := q.AgentStats(); n.LongestHold > 5*time.Second {
		t.Errorf("agent's socket was held for %v", n.LongestHold)
	}
}

// TestSilentAgent: nobody waits for it, and it is left alone more and more.
func TestSilentAgent(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid})
	q.SetAgentSilent(true)
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: 40 * time.Millisecond, AgentYoung: time.Hour, AgentTimeout: 10 * time.Millisecond,
	})
	began := time.Now()
	// 10+40, 10+80, 10+160, 10+320 ms and so on
	until(t, tracker, user, "four attempts", func(status.State) bool { return q.AgentStats().Connections >= 4 })
	if took := time.Since(began); took < 280*time.Millisecond {
		t.Errorf("four attempts within %v", took)
	}
}

func TestYoungGuestIsAskedMoreOften(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Boot: 300 * time.Millisecond, Guest: guest("web-1", "10.0.0.5")})
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Hour, AgentYoung: 20 * time.Millisecond, AgentTimeout: 100 * time.Millisecond,
	})
	until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName == "web-1" })
	if n := q.AgentStats().Connections; n < 2 {
		t.Errorf("%d connections", n)
	}
}

// TestYoungGuestIsAwaited: one question is enough.
func TestYoungGuestIsAwaited(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	q.SetAgentSilent(true)
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Hour, AgentYoung: 10 * time.Millisecond, AgentTimeout: 100 * time.Millisecond,
	})
	state(t, tracker, user)
	asked := func(n int) func(status.State) bool {
		return func(status.State) bool { return q.AgentStats().Connections >= n }
	}
	noAgent := status.Want{User: true}
	until(t, tracker, noAgent, "three attempts", asked(3))
	q.SetAgentSilent(false)
	until(t, tracker, noAgent, "the guest's word", func(st status.State) bool { return st.HostName == "web-1" })
}

// TestPausedGuestIsNotAsked: its agent could not answer.
func TestPausedGuestIsNotAsked(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startProcess(t, dir, other)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Runstate: "paused"})
	clock := startQEMU(t, qmptest.Config{Dir: dir, VMID: other})
	tracker := run(t, status.Config{RunDir: dir, Gate: eager(), AgentWorkers: 1, RunstateEvery: time.Nanosecond, AgentEvery: time.Nanosecond})
	state(t, tracker, user)
	settle(t, tracker, clock)
	if n := q.AgentStats().Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
}

// TestKnownGuestIsLeftAlone: without a question there are no reads, but for the
// first word of a booting guest.
func TestKnownGuestIsLeftAlone(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startProcess(t, dir, other)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	clock := startQEMU(t, qmptest.Config{Dir: dir, VMID: other})
	clock.SetAgentSilent(true) // and so it is revisited
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Nanosecond, AgentYoung: 5 * time.Millisecond, AgentTimeout: 50 * time.Millisecond,
	})
	until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName != "" })
	settleAgent := func(n int) {
		until(t, tracker, status.Want{}, "attempts at the other", func(status.State) bool { return clock.AgentStats().Connections >= n })
	}
	if _, err := tracker.State(t.Context(), other, user); err != nil {
		t.Fatal(err)
	}
	settleAgent(2)
	before := q.AgentStats().Connections
	settleAgent(7)
	if n := q.AgentStats().Connections - before; n != 0 {
		t.Errorf("%d connections without a question", n)
	}
}

func TestAfterTheEnd(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid})
	before := openPidfds(t)
	tracker := status.New(status.Config{RunDir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	state(t, tracker, user)
	if err := tracker.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := tracker.State(t.Context(), vmid, user); err == nil {
		t.Error("a state after the end")
	}
	if n := openPidfds(t); n != before {
		t.Errorf("%d pidfds are left", n-before)
	}
}

// TestManyVMs: what a thousand VMs leave behind when they have ended.
func TestManyVMs(t *testing.T) {
	dir := shortDir(t)
	const many = 200
	exits := make(chan int, many)
	tracker := run(t, status.Config{RunDir: dir, Queue: 10, OnExit: func(id int) { exits <- id }})
	var all []*qmptest.Process
	for id := range many {
		all = append(all, startProcess(t, dir, id))
	}
	before := openPidfds(t)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for id := range many {
				st, err := tracker.State(t.Context(), id, status.Want{Agent: true})
				if err != nil || st.PID != all[id].PID() {
					t.Errorf("VM %d: %+v, %v", id, st, err)
				}
			}
		})
	}
	work.Wait()
	if n := openPidfds(t) - before; n != many {
		t.Errorf("%d pidfds of %d processes", n, many)
	}
	seen := map[int]bool{}
	for _, p := range all {
		p.Kill()
	}
	for range many {
		seen[<-exits] = true
	}
	if len(seen) != many {
		t.Errorf("told the end of %d", len(seen))
	}
	for _, p := range all {
		_ = p.Close()
	}
}

func guest(name string, addresses ...string) qmptest.Guest {
	return qmptest.Guest{
		HostName: name, OS: qga.OSInfo{PrettyName: "Debian GNU/Linux 13 (trixie)"},
		Interfaces: qmptest.Network("BC:24:11:00:00:01", addresses...),
	}
}
