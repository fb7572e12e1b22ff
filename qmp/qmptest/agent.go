package qmptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
)

// delimiter resets the agent's parser, and announces the reply to
// guest-sync-delimited.
const delimiter = 0xFF

// agent is the guest agent behind its socket. The pipe between them belongs to
// the machine, not to a client: what a client wrote is read by the agent even
// when the client has gone, and a late reply goes to whoever is connected then.
type agent struct {
	q     *QEMU
	srv   *server
	delay atomic.Int64 // nanoseconds, before each reply
	input chan []byte

	mu     sync.Mutex // guards all below
	client net.Conn
	guest  Guest
	silent bool
	heard  chan struct{} // closed and renewed when silent or the guest changes
}

func newAgent(q *QEMU) *agent {
	return &agent{q: q, guest: q.cfg.Guest, input: make(chan []byte, 1024), heard: make(chan struct{})}
}

func (a *agent) close() { a.srv.close() }

// talk passes on what one client sends.
func (a *agent) talk(c net.Conn) {
	a.connect(c)
	defer a.connect(nil)
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		select {
		case a.input <- bytes.Clone(buf[:n]):
		case <-a.srv.closed:
			return
		}
	}
}

func (a *agent) connect(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.client = c
}

// run is the agent's process in the guest.
func (a *agent) run() {
	var pending []byte
	for {
		select {
		case <-a.srv.closed:
			return
		case part := <-a.input:
			pending = append(pending, part...)
		}
		for {
			var request json.RawMessage
			var bad bool
			request, pending, bad = cut(pending)
			if request == nil && !bad {
				break
			}
			if !a.awaitVoice() || !a.srv.wait(time.Duration(a.delay.Load())) {
				return
			}
			a.reply(request, bad)
		}
	}
}

// cut takes the next request off the bytes; bad: there was something else. The
// delimiter, too, is something else, and throws away what stands before it.
func cut(pending []byte) (request json.RawMessage, rest []byte, bad bool) {
	text, after, reset := bytes.Cut(pending, []byte{delimiter})
	dec := json.NewDecoder(bytes.NewReader(text))
	err := dec.Decode(&request)
	switch {
	case err == nil:
		return request, pending[dec.InputOffset():], false
	case reset:
		return nil, after, true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, pending, false
	}
	return nil, nil, true
}

// awaitVoice waits until the agent can speak, and reports whether it will.
func (a *agent) awaitVoice() bool {
	for {
		a.mu.Lock()
		silent, changed := a.silent, a.heard
		a.mu.Unlock()
		// Boot and pause have no signal of their own: look again now and then.
		var again <-chan time.Time
		if !silent {
			if a.q.booted() && a.q.Runstate() == "running" {
				return true
			}
			again = time.After(5 * time.Millisecond)
		}
		select {
		case <-changed:
		case <-again:
		case <-a.srv.closed:
			return false
		}
	}
}

func (a *agent) reply(raw json.RawMessage, bad bool) {
	var r request
	err := generic("JSON parse error, stray '\uFFFD'")
	if !bad {
		r, err = parseRequest(raw)
		a.srv.heard(r.command)
	}
	var result any
	if err == nil {
		result, err = a.execute(r)
	}
	if result == nil && err == nil {
		return // guest-shutdown has none
	}
	line, fault := json.Marshal(reply(r.id, result, asRefusal(r.command, err)))
	if fault != nil {
		panic("qmptest: agent's reply: " + fault.Error()) // of plain values only
	}
	if r.command == "guest-sync-delimited" {
		line = append([]byte{delimiter}, line...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		_ = a.client.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = a.client.Write(append(line, '\n'))
	}
}

// execute carries out one command; a nil result has no reply.
func (a *agent) execute(r request) (any, error) {
	args := arguments{}
	if r.arguments != nil {
		if err := json.Unmarshal(r.arguments, &args); err != nil {
			return nil, generic("QMP input member 'arguments' must be an object")
		}
	}
	a.mu.Lock()
	guest := a.guest
	a.mu.Unlock()
	switch r.command {
	case "guest-sync", "guest-sync-delimited":
		if args["id"] == nil {
			return nil, generic("Parameter 'id' is missing")
		}
		return args.integer("id")
	case "guest-ping":
		return object{}, nil
	case "guest-info":
		return object{"version": "10.0.2", "supported_commands": supported()}, nil
	case "guest-get-host-name":
		return object{"host-name": guest.HostName}, nil
	case "guest-get-osinfo":
		return guest.OS, nil
	case "guest-network-get-interfaces":
		return describe(guest.Interfaces), nil
	case "guest-get-vcpus":
		return a.vcpus(), nil
	case "guest-get-fsinfo":
		return []object{}, nil
	case "guest-shutdown":
		a.q.powerOff()
		return nil, nil
	}
	return nil, refuse(r.command, qmp.ClassCommandNotFound, "The command %s has not been found", r.command)
}

func supported() []object {
	var list []object
	for _, name := range []string{
		"guest-sync", "guest-sync-delimited", "guest-ping", "guest-info", "guest-get-host-name", "guest-get-osinfo",
		"guest-network-get-interfaces", "guest-get-vcpus", "guest-get-fsinfo", "guest-shutdown",
	} {
		list = append(list, object{"name": name, "enabled": true, "success-response": name != "guest-shutdown"})
	}
	return list
}

func (a *agent) vcpus() []object {
	list := []object{}
	for i := range a.q.VCPUs() {
		list = append(list, object{"logical-id": i, "online": true, "can-offline": i > 0})
	}
	return list
}

// describe writes interfaces as guest-network-get-interfaces does.
func describe(interfaces []qga.Interface) []object {
	list := []object{}
	for _, i := range interfaces {
		addresses := []object{}
		for _, a := range i.Addresses {
			kind := "ipv6"
			if a.Addr().Is4() {
				kind = "ipv4"
			}
			addresses = append(addresses, object{"ip-address-type": kind, "ip-address": a.Addr().String(), "prefix": a.Bits()})
		}
		list = append(list, object{"name": i.Name, "hardware-address": i.MAC, "ip-addresses": addresses})
	}
	return list
}

// Network makes the interfaces of a usual guest: lo, and eth0 with the
// addresses (10.0.0.5, 10.0.0.5/16, fd00::5; /24 and /64 if there is no
// length) and a link-local one.
func Network(mac string, addresses ...string) []qga.Interface {
	eth := qga.Interface{Name: "eth0", MAC: strings.ToLower(mac)}
	for _, s := range addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr := netip.MustParseAddr(s)
			p = netip.PrefixFrom(addr, map[bool]int{true: 24, false: 64}[addr.Is4()])
		}
		eth.Addresses = append(eth.Addresses, p)
	}
	eth.Addresses = append(eth.Addresses, netip.MustParsePrefix("fe80::be24:11ff:fe00:1/64"))
	lo := qga.Interface{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128"),
	}}
	return []qga.Interface{lo, eth}
}
