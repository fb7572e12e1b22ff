// Package kvm runs the virtual machines of a simulated Proxmox VE node: as
// real qemu-system-x86_64 processes under TCG, or as tiny stand-in processes
// whose sockets are answered by package qmptest. Both keep Proxmox VE's
// conventions for the files in /var/run/qemu-server and for the command line.
package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrGone is returned by methods of a [Process] that has ended.
var ErrGone = errors.New("process has ended")

// MissingError says that a program is not installed.
type MissingError struct {
	Package string // Debian's name of what has it
	Err     error
}

// Error names the package and the command that installs it.
func (e *MissingError) Error() string {
	return fmt.Sprintf("real machines need %s; enable with: apt-get install --no-install-recommends %[1]s", e.Package)
}

// Unwrap returns what was looked for in vain.
func (e *MissingError) Unwrap() error { return e.Err }

// Hypervisor starts virtual machines.
type Hypervisor interface {
	// Start starts one machine and returns when its process runs, its pid
	// file is written and its sockets accept connections. The context bounds
	// the start alone: the process outlives it. The caller sees to it that
	// RunDir exists and that no machine of this VMID runs in it.
	Start(ctx context.Context, spec Spec) (Process, error)
	// Name says which kind this is and is meant for people: "fake", or
	// "real (qemu-system-x86_64 7.2.22)".
	Name() string
}

// Process is one running machine. Its methods may be called from any
// goroutine. The ones that take a context speak to the machine through the
// private monitor, never through VMID.qmp, which belongs to the node's users.
type Process interface {
	// PID is the process id, also found in the pid file.
	PID() int
	// Done is closed when the process has ended, its files in RunDir are
	// removed and OnEvent is not called any more.
	Done() <-chan struct{}
	// Powerdown presses the power button (QMP system_powerdown). The guest
	// may take its time or ignore it; if it obeys, OnEvent gets SHUTDOWN and
	// the process stays in run state "shutdown" until Quit.
	Powerdown(ctx context.Context) error
	// Quit ends the process in order (QMP quit) and waits for it.
	Quit(ctx context.Context) error
	// Kill ends the process at once (SIGKILL) and waits for it.
	Kill() error
	// Reset is a hard reset of the guest (QMP system_reset).
	Reset(ctx context.Context) error
	// Pause stops the virtual CPUs (QMP stop).
	Pause(ctx context.Context) error
	// Resume lets the virtual CPUs run (QMP cont).
	Resume(ctx context.Context) error
	// Execute runs any QMP command on the private monitor, as Proxmox VE does
	// for changes of a running machine (block_resize, device_add, balloon).
	// args is marshalled to the command's arguments, nil for none. It returns
	// the command's "return" value; a refusal by QEMU is a [*qmp.Error].
	Execute(ctx context.Context, command string, args any) (json.RawMessage, error)
}

// Spec says what to start: the part of a VM's config that makes a difference
// to its process.
type Spec struct {
	VMID   int    // Proxmox VE's number of the machine
	Name   string // shown in the command line
	UUID   string // SMBIOS uuid
	RunDir string // holds VMID.pid, VMID.qmp, VMID.qga, ...; at most 90 bytes long

	Sockets int    // 0 means 1
	Cores   int    // per socket, 0 means 1
	VCPUs   int    // plugged at start; 0 means Sockets*Cores
	CPUType string // one that TCG has (kvm64, max, ...); any other, and "", means qemu64

	MemoryMiB  int // 0 means 512
	BalloonMiB int // target after start; 0 means MemoryMiB, negative means no balloon device

	NUMA    bool     // numa: 1
	Hotplug []string // of network, disk, usb, memory, cpu; cloudinit is ignored
	Agent   bool     // agent: 1, gives the machine VMID.qga
	Serial  bool     // serial0: socket, gives the machine VMID.serial0
	Args    []string // the config's args, split into words

	Disks []Disk
	NICs  []NIC

	// LoadVM is the internal snapshot whose memory the machine goes on with; "" boots it. A stand-in has no memory.
	LoadVM string

	Hostname string // a guest image without cloud-init drive takes this name
	GuestIP  string // what a fake guest says its address is

	// OnEvent is called with each event of the private monitor (SHUTDOWN,
	// RESET, STOP, RESUME, DEVICE_DELETED, ...), one after the other, also
	// while Start has not returned yet. It may call Execute and its like, but
	// not wait for Quit or Kill, which wait for it. data is the event's data,
	// nil if it has none. nil OnEvent: events are dropped.
	OnEvent func(event string, data json.RawMessage)
}

// Disk is one drive of a machine.
type Disk struct {
	Key    string // ide0-3, sata0-5, scsi0-30, virtio0-15
	Path   string // of the image file; "" is an empty CD drive
	Format string // "qcow2" or "raw"
	CDROM  bool
	Serial string // that the guest reads; "" for QEMU's own
}

// NIC is one network interface. No packet leaves the machine: a real guest
// meets QEMU's user network with DHCP only.
type NIC struct {
	Key    string // net0-31
	Model  string // "virtio", "e1000", ...
	MAC    string // AA:BB:CC:DD:EE:FF
	Bridge string // not used by either hypervisor, kept for logs
}
