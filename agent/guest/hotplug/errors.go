package hotplug

import (
	"errors"
	"fmt"
)

var (
	// ErrNotRunning says that there is no QEMU of the VM on this node.
	ErrNotRunning = errors.New("the vm does not run")
	// ErrMoved says that the config is not on this node any more, or is another machine's: look its owner up again.
	ErrMoved = errors.New("the vm is not here any more")
	// ErrUnpluggable says that the VM was not started for what was asked: it takes effect with a power cycle.
	ErrUnpluggable = errors.New("the vm was not started for cpu hot-plug")
	// ErrNoBalloon says that the VM has no balloon device (`balloon: 0`).
	ErrNoBalloon = errors.New("the vm has no balloon device")
	// ErrBusy says that PVE's lock or QEMU's monitor was not to be had in time, or that QEMU did not answer. What was asked
	// for may still happen: CPUs and Mend look before they do anything, Balloon may be repeated.
	ErrBusy = errors.New("busy")
)

// LockedError says that PVE is at work on the VM.
type LockedError struct {
	Lock string // of the config: backup, migrate, snapshot, ...
}

// Error names the lock.
func (e *LockedError) Error() string { return "the config is locked (" + e.Lock + ")" }

// HeadroomError says that the VM, as it runs, has no room for what was asked.
type HeadroomError struct {
	Max int // vCPUs: cores x sockets
}

// Error says how much room there is.
func (e *HeadroomError) Error() string {
	return fmt.Sprintf("the vm has room for 1 to %d vCPUs until its next start", e.Max)
}

// RefusedError says that the guest did not do what it was asked for.
type RefusedError struct {
	What      string // "vCPUs", "MiB"
	Want, Got int    // what was asked for, and what it has now
}

// Error has both numbers.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("asked for %d %s, the guest stays at %d", e.Want, e.What, e.Got)
}
