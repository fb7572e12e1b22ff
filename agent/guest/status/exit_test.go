package status_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

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
