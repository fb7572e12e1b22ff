package status

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// vm is one process of a VM and what it has said. A VM that is started again
// is another one.
type vm struct {
	id      int
	pid     int
	started time.Time
	qmp     string // path of the socket
	agent   string // path of the socket
	bump    func() uint64

	asking      atomic.Bool   // a user's request has taken on the first question
	asked       chan struct{} // closed when the first question is over, or not needed
	askedEnough func()        // closes asked

	// When the next background read is due, in nanoseconds of Tracker.now. Who
	// sets it further in the future has taken the task.
	nextRunstate atomic.Int64
	nextAgent    atomic.Int64
	wanted       atomic.Int64 // when the guest's word was last asked for, in the same unit

	mu         sync.RWMutex // guards all below
	fd         int          // pidfd, -1 when the process has ended
	st         State        // without ages; IPs and the like also while the power is off
	runstateAt time.Duration
	agentAt    time.Duration // negative: never
	silences   int           // in a row, of the guest agent
}

func (t *Tracker) newVM(id int, p *process) *vm {
	v := &vm{
		id: id, pid: p.pid, started: p.started, fd: p.fd, agentAt: -1, asked: make(chan struct{}),
		qmp: t.path(id, ".qmp"), agent: t.path(id, ".qga"),
		bump: func() uint64 { return t.generation.Add(1) },
	}
	v.askedEnough = sync.OnceFunc(func() { close(v.asked) })
	v.st = State{Running: true, PID: p.pid, StartedAt: p.started, Power: On, Generation: v.bump()}
	return v
}

// close lets go of the process.
func (v *vm) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fd >= 0 {
		_ = unix.Close(v.fd)
		v.fd = -1
	}
}

// state is what is known, and whether the process lives at this moment.
func (v *vm) state(now time.Duration) (st State, alive bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.fd < 0 || exited(v.fd) {
		return State{}, false
	}
	st = v.st
	if st.Runstate != "" {
		st.RunstateAge = now - v.runstateAt
	}
	st.AgentAge = -1
	if v.agentAt >= 0 {
		st.AgentAge = now - v.agentAt
	}
	if st.Power == Off {
		st = st.withoutGuest()
	}
	return st, true
}

// unasked reports whether nobody has tried to learn the run state yet.
func (v *vm) unasked() bool {
	select {
	case <-v.asked:
		return false
	default:
		return true
	}
}

// setRunstate notes QEMU's word.
func (v *vm) setRunstate(runstate string, now time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.runstateAt = now
	if v.st.Runstate == runstate {
		return
	}
	v.st.Runstate, v.st.Power = runstate, On
	// The guest has powered off; -no-shutdown keeps QEMU until Proxmox VE's
	// qmeventd says "quit".
	if runstate == "shutdown" {
		v.st.Power = Off
	}
	v.st.Generation = v.bump()
}

// setGuest notes the guest's word.
func (v *vm) setGuest(g guestFacts, now time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.agentAt, v.silences = now, 0
	if slices.Equal(v.st.IPs, g.ips) && v.st.OS == g.os && v.st.HostName == g.hostName {
		return
	}
	v.st.IPs, v.st.OS, v.st.HostName = g.ips, g.os, g.hostName
	v.st.Generation = v.bump()
}

// booting reports whether somebody waits for the first word of a guest that may
// be booting.
func (v *vm) booting(now time.Duration) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	since := now - time.Duration(v.wanted.Load())
	return v.agentAt < 0 && v.wanted.Load() > 0 && since < interest && time.Since(v.started) < youth
}

// silent counts a silence of the guest agent and returns how many there were
// in a row.
func (v *vm) silent() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.silences++
	return v.silences
}
