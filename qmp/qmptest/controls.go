package qmptest

import "time"

// Runstate is the machine's run state, as query-status tells it.
func (q *QEMU) Runstate() string {
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	return q.m.runstate
}

// SetRunstate changes the run state, with the STOP or RESUME event of that.
func (q *QEMU) SetRunstate(state string) {
	q.change(func() { q.m.lockedRunstate(state) })
}

// VCPUs is the number of CPUs that are plugged.
func (q *QEMU) VCPUs() int {
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	n := 0
	for _, c := range q.m.cpus {
		if c.plugged {
			n++
		}
	}
	return n
}

// SetVCPUs plugs or unplugs CPUs without asking anybody, at least one stays.
// Plugged ones get Proxmox VE's names, cpu2 for the second.
func (q *QEMU) SetVCPUs(n int) {
	q.change(func() {
		for i := 1; i < len(q.m.cpus); i++ {
			c := &q.m.cpus[i]
			if plug := i < n; plug != c.plugged {
				c.plugged, c.id = plug, ""
				if plug {
					c.id = cpuName(i)
				}
			}
		}
	})
}

// Balloon is what query-balloon tells as actual, in bytes; negative if there
// is no balloon device.
func (q *QEMU) Balloon() int64 {
	q.m.mu.Lock()
	defer q.m.mu.Unlock()
	return q.m.balloon
}

// SetBalloon sets what query-balloon tells as actual, in bytes, with the
// event of that.
func (q *QEMU) SetBalloon(actual int64) {
	q.change(func() { q.m.lockedSetBalloon(actual) })
}

// SetBalloonDriver says whether the guest has a balloon driver (at start it
// has one). Without, the balloon command succeeds and changes nothing.
func (q *QEMU) SetBalloonDriver(present bool) {
	q.change(func() { q.m.driver = present })
}

// SetBalloonStep makes the guest slow: the balloon moves by so many bytes at
// most each time that query-balloon asks for it. 0: all at once.
func (q *QEMU) SetBalloonStep(bytes int64) {
	q.change(func() { q.m.step = bytes })
}

// SetBalloonFloor makes the guest keep so many bytes, whatever it is told from
// now on.
func (q *QEMU) SetBalloonFloor(bytes int64) {
	q.change(func() { q.m.floor = bytes })
}

// SetGuest changes what the guest agent says.
func (q *QEMU) SetGuest(guest Guest) {
	q.changeAgent(func(a *agent) { a.guest = guest })
}

// SetAgentSilent makes the guest agent neither read nor answer, or go on.
func (q *QEMU) SetAgentSilent(silent bool) {
	q.changeAgent(func(a *agent) { a.silent = silent })
}

func (q *QEMU) changeAgent(change func(*agent)) {
	if q.agent == nil {
		return
	}
	q.agent.mu.Lock()
	defer q.agent.mu.Unlock()
	change(q.agent)
	close(q.agent.heard)
	q.agent.heard = make(chan struct{})
}

// SetAgentDelay makes the guest agent think before each reply.
func (q *QEMU) SetAgentDelay(d time.Duration) {
	if q.agent != nil {
		q.agent.delay.Store(int64(d))
	}
}

// SetGreetingDelay makes the monitor's greetings late.
func (q *QEMU) SetGreetingDelay(d time.Duration) { q.greetingDelay.Store(int64(d)) }

// SetReplyDelay makes the monitor's replies late. A command is carried out
// after the delay.
func (q *QEMU) SetReplyDelay(d time.Duration) { q.replyDelay.Store(int64(d)) }

// SetHung makes the monitor silent as that of a stopped process (SIGSTOP), or
// lets it go on: clients connect and get no greeting, requests get no reply.
func (q *QEMU) SetHung(hung bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-q.awake:
		if hung {
			q.awake = make(chan struct{})
		}
	default:
		if !hung {
			close(q.awake)
		}
	}
}

// Stats tells what the monitor's socket has seen.
func (q *QEMU) Stats() Stats { return q.mon.srv.snapshot() }

// AgentStats tells what the guest agent's socket has seen.
func (q *QEMU) AgentStats() Stats {
	if q.agent == nil {
		return Stats{}
	}
	return q.agent.srv.snapshot()
}
