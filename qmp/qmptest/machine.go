package qmptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// event is an asynchronous message of QEMU.
type event struct {
	name string
	data any // nil: none
}

// cpu is a place for a virtual CPU.
type cpu struct {
	socket, core int
	plugged      bool
	id           string // of the device; "" for a CPU that cannot be unplugged
}

func (c cpu) qomPath(index int) string {
	if c.id == "" {
		return fmt.Sprintf("/machine/unattached/device[%d]", index)
	}
	return "/machine/peripheral/" + c.id
}

// machine is the state of a QEMU. Its lock is not held while anybody is told
// of a change: events are collected and sent by the caller of run.
type machine struct {
	cfg Config

	mu       sync.Mutex // guards all below
	runstate string
	cpus     []cpu
	balloon  int64 // bytes, actual; -1: no device
	target   int64 // of the balloon, bytes
	step     int64 // bytes that the balloon moves at a look; 0: all at once
	floor    int64 // bytes that the guest keeps
	driver   bool  // the guest has a balloon driver
	events   []event
	handlers map[string]func(json.RawMessage) (any, error)
}

func newMachine(cfg Config) *machine {
	m := &machine{
		cfg: cfg, runstate: cfg.Runstate, driver: true,
		handlers: map[string]func(json.RawMessage) (any, error){},
	}
	m.balloon = int64(cfg.BalloonMiB) << 20
	if cfg.BalloonMiB < 0 {
		m.balloon = -1
	}
	m.target = m.balloon
	for i := range cfg.Sockets * cfg.Cores {
		c := cpu{socket: i / cfg.Cores, core: i % cfg.Cores, plugged: i < cfg.VCPUs}
		if c.plugged && i > 0 && cfg.CPUHotplug {
			c.id = cpuName(i)
		}
		m.cpus = append(m.cpus, c)
	}
	return m
}

func (m *machine) memory() int64 { return int64(m.cfg.MemoryMiB) << 20 }

// set changes the state and returns the events of that.
func (m *machine) set(change func()) []event {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	events := m.events
	m.events = nil
	return events
}

func (m *machine) lockedEmit(name string, data any) {
	m.events = append(m.events, event{name, data})
}

// handler is that of Handle for a command, nil if there is none.
func (m *machine) handler(command string) func(json.RawMessage) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.handlers[command]
}

// run carries out one command and returns its result and the events it caused.
func (m *machine) run(command string, arguments json.RawMessage) (any, []event, error) {
	c, known := commands[command]
	if !known {
		return nil, nil, refuse(command, qmp.ClassCommandNotFound, "The command %s has not been found", command)
	}
	args, err := c.parse(command, arguments)
	if err != nil {
		return nil, nil, err
	}
	var result any
	events := m.set(func() { result, err = c.run(m, args) })
	return result, events, asRefusal(command, err)
}

// refuse makes an answer of QEMU's.
func refuse(command, class, format string, args ...any) error {
	return &qmp.Error{Command: command, Class: class, Desc: fmt.Sprintf(format, args...)}
}

func generic(format string, args ...any) error { return refuse("", "GenericError", format, args...) }

func asRefusal(command string, err error) error {
	if err == nil {
		return nil
	}
	refused, ok := err.(*qmp.Error) //nolint:errorlint // made by the handlers of this package, never wrapped
	if !ok {
		return refuse(command, "GenericError", "%v", err)
	}
	refused.Command = command
	return refused
}

// arguments of a command, by name.
type arguments map[string]json.RawMessage

// parse checks names and presence as QAPI does.
func (c command) parse(name string, raw json.RawMessage) (arguments, error) {
	args := arguments{}
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, refuse(name, "GenericError", "QMP input member 'arguments' must be an object")
		}
	}
	for _, need := range c.needs {
		if _, ok := args[need]; !ok {
			return nil, refuse(name, "GenericError", "Parameter '%s' is missing", need)
		}
	}
	for given := range args {
		if !c.open && !slices.Contains(c.needs, given) {
			return nil, refuse(name, "GenericError", "Parameter '%s' is unexpected", given)
		}
	}
	return args, nil
}

func (a arguments) integer(name string) (int64, error) {
	var n int64
	if err := json.Unmarshal(a[name], &n); err != nil {
		return 0, generic("Invalid parameter type for '%s', expected: integer", name)
	}
	return n, nil
}

func (a arguments) text(name string) (string, error) {
	var s string
	if err := json.Unmarshal(a[name], &s); err != nil {
		return "", generic("Invalid parameter type for '%s', expected: string", name)
	}
	return s, nil
}

// marshal writes an event as QEMU does, with its time.
func (e event) marshal(now time.Time) []byte {
	type stamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int   `json:"microseconds"`
	}
	line, err := json.Marshal(struct {
		Timestamp stamp  `json:"timestamp"`
		Event     string `json:"event"`
		Data      any    `json:"data,omitempty"`
	}{stamp{now.Unix(), now.Nanosecond() / 1000}, e.name, e.data})
	if err != nil {
		panic("qmptest: event " + e.name + ": " + err.Error()) // of plain maps only
	}
	return line
}

// cpuName is Proxmox VE's name for the CPU in place i, counted from 0.
func cpuName(i int) string { return fmt.Sprintf("cpu%d", i+1) }
