package qmptest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
)

// Config says what machine to be. Zero fields take the value named at them.
type Config struct {
	Dir  string // where the sockets <VMID>.qmp and <VMID>.qga are made; short, see unix(7)
	VMID int

	Name    string // query-name; "vm-<VMID>"
	UUID    string // query-uuid; 00000000-0000-0000-0000-<VMID>
	Package string // of the version; "pve-qemu-kvm_10.0.2-4"

	Sockets    int    // 1
	Cores      int    // per socket, 1
	VCPUs      int    // plugged at start, Sockets*Cores
	CPUType    string // of -cpu; "qemu64"
	CPUHotplug bool   // all but the first CPU are devices cpu2, cpu3, ... as with Proxmox VE's hotplug: cpu

	MemoryMiB  int      // 512
	BalloonMiB int      // actual at start; MemoryMiB, negative: no balloon device
	Drives     []string // "scsi0", ... for query-block
	Runstate   string   // at start; "running"

	NoAgent bool          // no agent device: no <VMID>.qga
	Guest   Guest         // what the guest agent says
	Boot    time.Duration // after the start, and after a reset: no agent and no ear for the power button

	PowerdownDelay  time.Duration // from system_powerdown or guest-shutdown to run state "shutdown"
	IgnorePowerdown bool          // the guest does not care for the power button
	IgnoreUnplug    bool          // the guest does not give CPUs back
	UnplugDelay     time.Duration // from device_del to the end of the CPU

	// OnEvent gets each event, one after the other, from a goroutine of its
	// own. It may not call Close or Kill, which wait for that goroutine.
	OnEvent func(name string, data json.RawMessage)
}

func (c Config) withDefaults() Config {
	for _, f := range []struct {
		field    *string
		fallback string
	}{
		{&c.Name, fmt.Sprintf("vm-%d", c.VMID)},
		{&c.UUID, fmt.Sprintf("00000000-0000-0000-0000-%012d", c.VMID)},
		{&c.Package, "pve-qemu-kvm_10.0.2-4"},
		{&c.CPUType, "qemu64"},
		{&c.Runstate, "running"},
	} {
		if *f.field == "" {
			*f.field = f.fallback
		}
	}
	c.Sockets, c.Cores = max(c.Sockets, 1), max(c.Cores, 1)
	if c.VCPUs <= 0 {
		c.VCPUs = c.Sockets * c.Cores
	}
	if c.MemoryMiB <= 0 {
		c.MemoryMiB = 512
	}
	if c.BalloonMiB == 0 {
		c.BalloonMiB = c.MemoryMiB
	}
	return c
}

func (c Config) version() object {
	return object{"qemu": object{"major": 10, "minor": 0, "micro": 2}, "package": c.Package}
}

func (c Config) cpuDriver() string { return c.CPUType + "-x86_64-cpu" }

// Guest is what a guest agent says about its guest.
type Guest struct {
	HostName   string
	OS         qga.OSInfo
	Interfaces []qga.Interface // see Network
}

// QEMU is a machine that answers on its sockets from NewQEMU to Close.
type QEMU struct {
	cfg   Config
	m     *machine
	mon   *monitor
	agent *agent // nil: none

	greetingDelay atomic.Int64 // nanoseconds
	replyDelay    atomic.Int64 // nanoseconds
	keepCPUs      atomic.Bool  // see SetKeepCPUs

	order sync.Mutex // held from a change of the machine until its events are told; taken before mu

	mu     sync.Mutex    // guards the fields below
	awake  chan struct{} // closed: not hung
	begun  time.Time     // of the guest's last boot
	queue  []event       // for OnEvent
	ending bool          // stop was called
	remove bool          // the sockets' files go with us

	wake chan struct{} // there is something in queue
	quit chan struct{} // closed by stop
	done chan struct{} // closed when all has ended
	work sync.WaitGroup
}

// NewQEMU makes the machine's sockets and answers on them, as a process that
// was just started.
func NewQEMU(cfg Config) (*QEMU, error) {
	cfg = cfg.withDefaults()
	if cfg.VCPUs > cfg.Sockets*cfg.Cores {
		return nil, fmt.Errorf("start machine %d: %d vcpus in %d places", cfg.VMID, cfg.VCPUs, cfg.Sockets*cfg.Cores)
	}
	q := &QEMU{
		cfg: cfg, m: newMachine(cfg), awake: make(chan struct{}), begun: time.Now(),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	close(q.awake)
	if err := q.listen(); err != nil {
		return nil, fmt.Errorf("start machine %d: %w", cfg.VMID, err)
	}
	q.work.Go(q.mon.srv.run)
	if q.agent != nil {
		q.work.Go(q.agent.srv.run)
		q.work.Go(q.agent.run)
	}
	q.work.Go(q.deliver)
	go q.supervise()
	return q, nil
}

func (q *QEMU) listen() (err error) {
	q.mon = &monitor{q: q}
	if q.mon.srv, err = newServer(q.path("qmp"), q.mon.talk); err != nil {
		return err
	}
	if q.cfg.NoAgent {
		return nil
	}
	q.agent = newAgent(q)
	if q.agent.srv, err = newServer(q.path("qga"), q.agent.talk); err != nil {
		q.mon.srv.close()
		return err
	}
	return nil
}

func (q *QEMU) path(kind string) string {
	return filepath.Join(q.cfg.Dir, fmt.Sprintf("%d.%s", q.cfg.VMID, kind))
}

// QMPPath is the path of the monitor's socket.
func (q *QEMU) QMPPath() string { return q.path("qmp") }

// AgentPath is the path of the guest agent's socket.
func (q *QEMU) AgentPath() string { return q.path("qga") }

// stop begins the end of the machine.
func (q *QEMU) stop(remove bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ending {
		return
	}
	q.ending, q.remove = true, remove
	close(q.quit)
}

// supervise ends everything when the machine quits.
func (q *QEMU) supervise() {
	<-q.quit
	q.mon.srv.close()
	if q.agent != nil {
		q.agent.close()
	}
	q.work.Wait()
	q.mu.Lock()
	remove := q.remove
	q.mu.Unlock()
	for _, kind := range []string{"qmp", "qga"} {
		if remove {
			_ = os.Remove(q.path(kind)) // it may be gone, or never have been
		}
	}
	close(q.done)
}

// Close ends the machine as after a "quit" command: its sockets are removed.
// It waits until nothing of it is left.
func (q *QEMU) Close() error {
	q.stop(true)
	<-q.done
	return nil
}

// Kill ends the machine as SIGKILL does: the files of its sockets stay.
func (q *QEMU) Kill() {
	q.stop(false)
	<-q.done
}

// Done is closed when the machine has ended, by Close, Kill, or "quit", and
// OnEvent is not called any more.
func (q *QEMU) Done() <-chan struct{} { return q.done }

// Execute runs a command as on a monitor of its own: nobody waits for it, and
// no statistics count it. A refusal is a *qmp.Error.
func (q *QEMU) Execute(command string, arguments json.RawMessage) (json.RawMessage, error) {
	result, err := q.execute(command, arguments)
	if err != nil {
		return nil, err
	}
	if command == "quit" {
		q.stop(true)
	}
	return json.Marshal(result)
}

// Handle teaches the machine a command, or replaces one. The handler's result
// is marshalled; its error is the client's, a *qmp.Error as it is.
func (q *QEMU) Handle(command string, handler func(arguments json.RawMessage) (any, error)) {
	q.change(func() { q.m.handlers[command] = handler })
}

func (q *QEMU) execute(command string, arguments json.RawMessage) (any, error) {
	if handler := q.m.handler(command); handler != nil {
		result, err := handler(arguments)
		return result, asRefusal(command, err)
	}
	result, err := q.run(command, arguments)
	if err != nil {
		return nil, err
	}
	switch command {
	case "system_powerdown":
		if !q.cfg.IgnorePowerdown && q.booted() {
			q.powerOff()
		}
	case "system_reset":
		q.reboot()
	case "device_del":
		q.giveBack(arguments)
	}
	return result, nil
}

// run carries out a command of the machine's own and tells its events.
func (q *QEMU) run(command string, arguments json.RawMessage) (any, error) {
	q.order.Lock()
	defer q.order.Unlock()
	result, events, err := q.m.run(command, arguments)
	q.emit(events)
	return result, err
}

// change changes the machine and tells the events of that.
func (q *QEMU) change(f func()) {
	q.order.Lock()
	defer q.order.Unlock()
	q.emit(q.m.set(f))
}

func (q *QEMU) reboot() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.begun = time.Now()
}

// booted reports whether the guest's services run.
func (q *QEMU) booted() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return time.Since(q.begun) >= q.cfg.Boot
}

// giveBack is the guest's part of device_del, which checked the arguments.
func (q *QEMU) giveBack(arguments json.RawMessage) {
	if q.cfg.IgnoreUnplug || q.keepCPUs.Load() {
		return
	}
	var device struct{ ID string }
	_ = json.Unmarshal(arguments, &device) // was understood before
	gone := func() { q.change(func() { q.m.lockedGone(device.ID) }) }
	if q.cfg.UnplugDelay <= 0 {
		gone()
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ending {
		q.work.Go(func() {
			if q.mon.srv.wait(q.cfg.UnplugDelay) {
				gone()
			}
		})
	}
}

// powerOff is the guest's way down; -no-shutdown keeps the process.
func (q *QEMU) powerOff() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ending {
		return
	}
	q.work.Go(func() {
		if q.mon.srv.wait(q.cfg.PowerdownDelay) {
			q.PowerOff()
		}
	})
}

// PowerOff is what a guest does at the end of its shutdown: run state
// "shutdown", the process stays.
func (q *QEMU) PowerOff() {
	q.change(func() {
		if q.m.runstate == "running" {
			q.m.lockedEmit("SHUTDOWN", object{"guest": true, "reason": "guest-shutdown"})
			q.m.lockedRunstate("shutdown")
		}
	})
}

// emit gives events to the monitor's client, and queues them for OnEvent.
func (q *QEMU) emit(events []event) {
	for _, e := range events {
		q.mon.tell(e, time.Now())
	}
	if q.cfg.OnEvent == nil || len(events) == 0 {
		return
	}
	q.mu.Lock()
	q.queue = append(q.queue, events...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// deliver calls OnEvent. What happened before the end is still told.
func (q *QEMU) deliver() {
	for {
		select {
		case <-q.wake:
			q.deliverQueue()
		case <-q.quit:
			q.deliverQueue()
			return
		}
	}
}

func (q *QEMU) deliverQueue() {
	q.mu.Lock()
	events := q.queue
	q.queue = nil
	q.mu.Unlock()
	for _, e := range events {
		var data json.RawMessage
		if e.data != nil {
			data, _ = json.Marshal(e.data) // plain maps
		}
		q.cfg.OnEvent(e.name, data)
	}
}

// pace waits while the machine is hung, then the delay, and reports whether
// the server is still open.
func (q *QEMU) pace(s *server, delay *atomic.Int64) bool {
	q.mu.Lock()
	awake := q.awake
	q.mu.Unlock()
	select {
	case <-awake:
		return s.wait(time.Duration(delay.Load()))
	case <-s.closed:
		return false
	}
}
