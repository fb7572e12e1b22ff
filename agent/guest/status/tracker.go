// Package status knows the live state of the VMs of this node.
//
// Whether a VM runs is answered by its process: the pid file names it, its
// command line proves it, a pidfd tells its end at once, and nobody has to be
// asked. Whether a running VM is paused, or has powered off and only waits for
// Proxmox VE to clean up, is QEMU's word, read in one short QMP session when
// the process is first seen and in the background later. What runs inside, and
// under which addresses, is the guest's word, read from the guest agent in the
// background only. Reads happen when somebody asks for a state and the last
// one has become old; a VM that nobody asks about is not touched.
package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// ErrStopped is the error of State after the end of Run.
var ErrStopped = errors.New("the tracker of VM states has stopped")

// Config configures a Tracker. Zero fields take the value named at them.
type Config struct {
	RunDir string         // holds <vmid>.pid, .qmp, .qga; /var/run/qemu-server
	Proc   string         // /proc
	Gate   *qmp.Gate      // for the sessions with QEMU; one of its own
	Log    *slog.Logger   // drops everything
	OnExit func(vmid int) // called from one goroutine of Run for each process that has ended; nil is fine

	RunstateEvery time.Duration // age at which a run state is read again, 10 s
	AgentEvery    time.Duration // age at which the guest agent is asked again, 15 s; doubled each time it is silent
	AgentMost     time.Duration // until it is this, 5 min
	AgentYoung    time.Duration // between attempts at a silent agent of a process younger than 3 minutes, whose guest may be booting, 3 s
	AgentTimeout  time.Duration // for all questions to one guest agent, 2 s
	UserWait      time.Duration // for the first run state of a process, when somebody waits, 1 s
	Workers       int           // background reads of run states at once, 4
	AgentWorkers  int           // background reads of guest agents at once, 16: most of that time goes to silent ones
	Queue         int           // background reads that may wait, of each, 1024; further ones are dropped
}

const (
	// youth is how long the guest of a process may be booting.
	youth = 3 * time.Minute
	// interest is how long a question shows that somebody waits for a young
	// guest. The manager asks every 10 s.
	interest = 30 * time.Second
)

func (c Config) withDefaults() Config {
	if c.RunDir == "" {
		c.RunDir = "/var/run/qemu-server"
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	if c.Gate == nil {
		c.Gate = qmp.NewGate(qmp.GateConfig{})
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field    *time.Duration
		fallback time.Duration
	}{
		{&c.RunstateEvery, 10 * time.Second},
		{&c.AgentEvery, 15 * time.Second},
		{&c.AgentMost, 5 * time.Minute},
		{&c.AgentYoung, 3 * time.Second},
		{&c.AgentTimeout, 2 * time.Second},
		{&c.UserWait, time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.fallback
		}
	}
	for _, n := range []struct {
		field    *int
		fallback int
	}{{&c.Workers, 4}, {&c.AgentWorkers, 16}, {&c.Queue, 1024}} {
		if *n.field <= 0 {
			*n.field = n.fallback
		}
	}
	return c
}

// Tracker knows the states of the VMs of one node. Its memory is some hundred
// bytes and a file descriptor for each VM that runs, nothing for others.
type Tracker struct {
	cfg        Config
	epoch      time.Time // times are kept as durations since then: small, and monotonic
	generation atomic.Uint64
	runstates  *pool
	agents     *pool
	ready      chan struct{}
	wake       chan struct{} // exits has grown
	met        chan struct{} // closed when there is a first process to watch
	firstMet   sync.Once     // closes met

	mu      sync.RWMutex // guards all below; taken before any vm's
	vms     map[int]*vm  // with a live process, as far as known
	epoll   int          // watches the processes while Run runs, -1 otherwise
	stopped bool
	exits   []int // for OnExit
}

// New makes a tracker. It starts nothing, but State works without Run, too; it
// is then State that notices the end of a process.
func New(cfg Config) *Tracker {
	t := &Tracker{
		cfg: cfg.withDefaults(), epoch: time.Now(), vms: map[int]*vm{}, epoll: -1,
		ready: make(chan struct{}), wake: make(chan struct{}, 1), met: make(chan struct{}),
	}
	t.runstates = newPool(t.cfg.Workers, t.cfg.Queue)
	t.agents = newPool(t.cfg.AgentWorkers, t.cfg.Queue)
	return t
}

// String names the task.
func (t *Tracker) String() string { return "VM states" }

// Ready is closed when Run watches processes and reads in the background.
func (t *Tracker) Ready() <-chan struct{} { return t.ready }

func (t *Tracker) now() time.Duration { return time.Since(t.epoch) }

func (t *Tracker) path(vmid int, kind string) string {
	return t.cfg.RunDir + "/" + strconv.Itoa(vmid) + kind
}

// State returns the live state of a VM. It takes microseconds, apart from the
// first one of a process with Want.User, which reads the run state for at most
// Config.UserWait. An error means that nothing is known; it never means that
// the VM is off.
func (t *Tracker) State(ctx context.Context, vmid int, want Want) (State, error) {
	for {
		t.mu.RLock()
		v, stopped := t.vms[vmid], t.stopped
		t.mu.RUnlock()
		if stopped {
			return State{}, fmt.Errorf("state of VM %d: %w", vmid, ErrStopped)
		}
		if v == nil {
			var err error
			if v, err = t.meet(vmid); err != nil {
				return State{}, fmt.Errorf("state of VM %d: %w", vmid, err)
			}
		}
		if v == nil {
			return off(), nil
		}
		if want.User && v.unasked() {
			t.ask(ctx, v)
		}
		now := t.now()
		if st, alive := v.state(now); alive {
			t.refresh(v, &st, now, want)
			return st, nil
		}
		t.bury(v) // another process may have taken its place
	}
}

// Running reports whether a VM has a process. It asks nobody, and costs a read of a pid file for a VM that has none.
func (t *Tracker) Running(vmid int) bool {
	t.mu.RLock()
	v := t.vms[vmid]
	t.mu.RUnlock()
	if v == nil {
		v, _ = t.meet(vmid) // what cannot be read is not known to run
	}
	if v == nil {
		return false
	}
	_, alive := v.state(t.now())
	return alive
}

// meet looks for the process of a VM that is not known to run.
func (t *Tracker) meet(vmid int) (*vm, error) {
	p, err := t.findProcess(t.path(vmid, ".pid"))
	if p == nil || err != nil {
		return nil, err
	}
	v := t.newVM(vmid, p)
	t.mu.Lock()
	defer t.mu.Unlock()
	other := t.vms[vmid]
	if other != nil || t.stopped {
		v.close()
		return other, nil
	}
	t.lockedWatch(v)
	t.vms[vmid] = v
	return v, nil
}

// bury forgets a process that has ended. It may be called by several at once.
func (t *Tracker) bury(v *vm) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.vms[v.id] != v {
		return
	}
	delete(t.vms, v.id)
	v.close()
	if t.cfg.OnExit == nil {
		return
	}
	t.exits = append(t.exits, v.id)
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// lockedWatch has Run's loop notice the end of a process. State notices it in
// any case.
func (t *Tracker) lockedWatch(v *vm) {
	if t.epoll < 0 {
		return
	}
	// The event carries the VM's number where a descriptor usually stands.
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(v.id)}
	if err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, v.fd, &ev); err != nil {
		t.cfg.Log.Warn("end of a VM's process will be noticed late", "vmid", v.id, "pid", v.pid, "err", err)
		return
	}
	t.firstMet.Do(func() { close(t.met) })
}
