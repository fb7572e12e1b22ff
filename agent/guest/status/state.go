package status

import "time"

// Power is what a client of the provider service sees of a VM's run state. The
// zero value is neither On nor Off: not known.
type Power string

// On and Off are the powers that a client sees.
const (
	Off Power = "Off" // no process, or a process whose guest has powered off
	On  Power = "On"  // everything else: running, paused, suspended, booting, ...
)

// Want says for whom a state is read, and what its config says.
type Want struct {
	Lock  string // the config's lock: ("backup", ...), "" for none: its monitor is left alone
	Agent bool   // the config says that the guest has an agent
	User  bool   // somebody waits for this answer
}

// State is the live state of one VM. What a client sees of it changes only
// together with Generation; the ages do not count. It shares its slice with
// other callers: read it, do not write.
type State struct {
	Running   bool      // the VM has a process on this node
	PID       int       // of the process, 0 for none
	StartedAt time.Time // of the process
	Power     Power

	Runstate    string        // QMP query-status: "running", "paused", "prelaunch", "shutdown", ...; "" not known
	RunstateAge time.Duration // since it was read; 0 if not known

	// From the guest agent, the guest's word; empty until it has answered, and
	// while the power is off.
	IPs      []string      // no loopback, link-local, multicast; physical interfaces first, IPv4 before IPv6
	OS       string        // "Debian GNU/Linux 13 (trixie)"
	HostName string        //
	AgentAge time.Duration // since the agent answered; negative: this process's agent never did

	// Generation is another number whenever anything but an age is different,
	// for all VMs of a Tracker and all times; 0 is the state of a VM that has no
	// process here.
	Generation uint64
}

// off is the state of a VM without process.
func off() State { return State{Power: Off, AgentAge: -1} }

// withoutGuest hides what a guest that has powered off had said.
func (s State) withoutGuest() State {
	s.Power, s.IPs, s.OS, s.HostName = Off, nil, "", ""
	return s
}
