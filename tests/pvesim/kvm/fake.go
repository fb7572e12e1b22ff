package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// FakeConfig says how the guests of fake machines behave.
type FakeConfig struct {
	PowerdownDelay        time.Duration // from the power button to run state "shutdown"
	GuestIgnoresPowerdown bool
	Boot                  time.Duration // after a start or reset: no guest agent yet
	// Tune, if set, may change a machine before it starts.
	Tune func(Spec, *qmptest.Config)
}

// Fake runs machines that are a small process each, whose sockets are answered
// in this process by package qmptest. Their processes end with this one.
type Fake struct{ cfg FakeConfig }

// NewFake makes a hypervisor of fakes.
func NewFake(cfg FakeConfig) *Fake { return &Fake{cfg: cfg} }

// Name is "fake".
func (*Fake) Name() string { return "fake" }

// Start starts a fake machine; the [Process] is a [*FakeProcess].
func (f *Fake) Start(ctx context.Context, spec Spec) (Process, error) {
	spec = spec.withDefaults()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start machine %d: %w", spec.VMID, err)
	}
	cfg := f.machine(spec)
	if f.cfg.Tune != nil {
		f.cfg.Tune(spec, &cfg)
	}
	args, err := commandLine(spec, "")
	if err != nil {
		return nil, err
	}
	// The sockets first: who sees the pid file may use them.
	machine, err := qmptest.NewQEMU(cfg)
	if err != nil {
		return nil, err
	}
	process, err := qmptest.StartProcess(qmptest.ProcessConfig{Dir: spec.RunDir, VMID: spec.VMID, Args: withoutPIDFile(args)})
	if err != nil {
		return nil, errors.Join(err, machine.Close())
	}
	// The capacity of a disk is the file's affair; a fake guest has none.
	machine.Handle("block_resize", func(json.RawMessage) (any, error) { return struct{}{}, nil })
	p := &FakeProcess{vmid: spec.VMID, machine: machine, process: process, done: make(chan struct{})}
	go p.supervise()
	return p, nil
}

// withoutPIDFile drops what the process has at the start of its command line.
func withoutPIDFile(args []string) []string {
	var rest []string
	for i := 0; i < len(args); i++ {
		if args[i] == "-pidfile" {
			i++
			continue
		}
		rest = append(rest, args[i])
	}
	return rest
}

func (f *Fake) machine(spec Spec) qmptest.Config {
	cfg := qmptest.Config{
		Dir: spec.RunDir, VMID: spec.VMID, Name: spec.Name, UUID: spec.UUID,
		Sockets: spec.Sockets, Cores: spec.Cores, VCPUs: spec.VCPUs, CPUType: spec.CPUType, CPUHotplug: spec.hotplug("cpu"),
		MemoryMiB: spec.MemoryMiB, BalloonMiB: spec.BalloonMiB, NoAgent: !spec.Agent,
		Boot: f.cfg.Boot, PowerdownDelay: f.cfg.PowerdownDelay, IgnorePowerdown: f.cfg.GuestIgnoresPowerdown,
		OnEvent: spec.OnEvent, Guest: fakeGuest(spec),
	}
	for _, d := range spec.Disks {
		cfg.Drives = append(cfg.Drives, d.Key)
	}
	return cfg
}

// fakeGuest is like the guest of package guestimage.
func fakeGuest(spec Spec) qmptest.Guest {
	guest := qmptest.Guest{HostName: spec.Hostname, OS: qga.OSInfo{
		Name: "Rigaud Test Guest", PrettyName: "Rigaud Test Guest 1", ID: "rigaudguest", Version: "1", VersionID: "1",
		KernelRelease: "6.1.0-fake-amd64", KernelVersion: "#1 SMP", Machine: "x86_64",
	}}
	if guest.HostName == "" {
		guest.HostName = spec.Name
	}
	var addresses []string
	if spec.GuestIP != "" {
		addresses = []string{spec.GuestIP}
	}
	mac := ""
	if len(spec.NICs) > 0 {
		mac = strings.ToLower(spec.NICs[0].MAC)
	}
	guest.Interfaces = qmptest.Network(mac, addresses...)
	return guest
}

// FakeProcess is a fake machine.
type FakeProcess struct {
	vmid    int
	machine *qmptest.QEMU
	process *qmptest.Process
	done    chan struct{}

	mu  sync.Mutex // guards err
	err error      // of the clean-up
}

// QEMU is the machine behind the sockets, to change how it behaves.
func (p *FakeProcess) QEMU() *qmptest.QEMU { return p.machine }

// supervise ends the process when the machine quits, and the machine when
// somebody kills the process.
func (p *FakeProcess) supervise() {
	defer close(p.done)
	select {
	case <-p.machine.Done():
	case <-p.process.Done():
	}
	// The pid file goes last, as with QEMU.
	err := errors.Join(p.machine.Close(), p.process.Close())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// PID is the id of the small process.
func (p *FakeProcess) PID() int { return p.process.PID() }

// Done is closed when machine and process have ended.
func (p *FakeProcess) Done() <-chan struct{} { return p.done }

// Execute runs a command of qmptest's machine.
func (p *FakeProcess) Execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	select {
	case <-p.done:
		return nil, fmt.Errorf("%s: %w", command, ErrGone)
	default:
	}
	var raw json.RawMessage
	if args != nil {
		var err error
		if raw, err = json.Marshal(args); err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
	}
	result, err := p.machine.Execute(command, raw)
	if refused := (*qmp.Error)(nil); errors.As(err, &refused) {
		return nil, refused
	}
	return result, err
}

// Powerdown presses the power button.
func (p *FakeProcess) Powerdown(ctx context.Context) error { return p.do(ctx, "system_powerdown") }

// Reset boots the guest again.
func (p *FakeProcess) Reset(ctx context.Context) error { return p.do(ctx, "system_reset") }

// Pause stops the guest.
func (p *FakeProcess) Pause(ctx context.Context) error { return p.do(ctx, "stop") }

// Resume lets the guest go on.
func (p *FakeProcess) Resume(ctx context.Context) error { return p.do(ctx, "cont") }

func (p *FakeProcess) do(ctx context.Context, command string) error {
	_, err := p.Execute(ctx, command, nil)
	return err
}

// Quit ends the machine in order.
func (p *FakeProcess) Quit(ctx context.Context) error {
	if err := p.do(ctx, "quit"); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	select {
	case <-p.done:
		return p.outcome()
	case <-ctx.Done():
		return fmt.Errorf("quit: %w", ctx.Err())
	}
}

// Kill ends the machine at once.
func (p *FakeProcess) Kill() error {
	p.process.Kill()
	<-p.done
	return p.outcome()
}

func (p *FakeProcess) outcome() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("end machine %d: %w", p.vmid, p.err)
	}
	return nil
}
