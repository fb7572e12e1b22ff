package fabric

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Host is one machine with one address.
type Host struct {
	net  *Network
	name string
	addr netip.Addr

	// The network's mutex guards all below.
	up        bool
	port      uint16 // the last ephemeral one
	listeners map[uint16]*Listener
	packets   map[uint16]*PacketConn
	ends      map[*Conn]struct{}
}

// Addr returns the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Up says whether the host is on.
func (h *Host) Up() bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.up
}

// PowerOff takes the power away: every socket is gone at once, and nobody is told.
func (h *Host) PowerOff() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.up = false
	for c := range h.ends {
		c.lockedVanish()
	}
	h.lockedCloseAll(func(*Process) bool { return true })
	h.net.lockedChanged()
}

// PowerOn turns the host on again, without any sockets. Who still believes in a connection from before is told that
// there is none as soon as it sends something.
func (h *Host) PowerOn() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.up = true
	h.net.lockedChanged()
}

// lockedCloseAll closes the listeners and packet sockets of some processes; the network's mutex is held.
func (h *Host) lockedCloseAll(of func(*Process) bool) {
	for _, l := range h.listeners {
		if of(l.owner) {
			l.lockedClose()
		}
	}
	for _, p := range h.packets {
		if of(p.owner) {
			p.lockedClose()
		}
	}
}

// Process is who opens sockets on a host. It is an agent.Network.
type Process struct {
	host *Host
	name string

	killed bool // the network's mutex guards it
}

// Process makes a process on the host; the name is for messages.
func (h *Host) Process(name string) *Process { return &Process{host: h, name: name} }

// Host returns where the process runs.
func (p *Process) Host() *Host { return p.host }

// Kill ends the process as kill -9 does: the kernel closes its sockets, and it never opens another.
func (p *Process) Kill() {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	p.killed = true
	for c := range p.host.ends {
		if c.owner == p {
			c.lockedClose()
			c.dead = true
		}
	}
	p.host.lockedCloseAll(func(owner *Process) bool { return owner == p })
	n.lockedChanged()
}

// lockedAlive fails when the process or its host is dead; the network's mutex is held.
func (p *Process) lockedAlive() error {
	switch {
	case p.killed:
		return fmt.Errorf("process %s on %s: %w", p.name, p.host.name, net.ErrClosed)
	case !p.host.up:
		return fmt.Errorf("host %s is off: %w", p.host.name, net.ErrClosed)
	}
	return nil
}

func fail(op, network string, from, to net.Addr, err error) error {
	return &net.OpError{Op: op, Net: network, Source: from, Addr: to, Err: err}
}

func errno(call string, e syscall.Errno) error { return os.NewSyscallError(call, e) }

// parse reads host:port. The unspecified address is the host's own; other names than addresses are not known here.
func (h *Host) parse(addr string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "unknown port", Addr: addr}
	}
	ip := h.addr
	if host != "" && host != "localhost" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
	}
	if ip.IsUnspecified() {
		ip = h.addr
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// bind checks a local address and finds a port if it has none; the network's mutex is held.
func (h *Host) lockedBind(addr string, taken func(uint16) bool) (netip.AddrPort, error) {
	at, err := h.parse(addr)
	if err != nil {
		return at, err
	}
	if at.Addr() != h.addr {
		return at, errno("bind", syscall.EADDRNOTAVAIL)
	}
	if at.Port() == 0 {
		return netip.AddrPortFrom(h.addr, h.lockedEphemeral(taken)), nil
	}
	if taken(at.Port()) {
		return at, errno("bind", syscall.EADDRINUSE)
	}
	return at, nil
}

func (h *Host) lockedEphemeral(taken func(uint16) bool) uint16 {
	for {
		if h.port++; h.port < firstEphemeral {
			h.port = firstEphemeral
		}
		if !taken(h.port) {
			return h.port
		}
	}
}

// Dial connects to a TCP port. It hangs as long as the way there or back is cut, at most until ctx ends or two minutes
// are over; a host that is off is found out after three seconds, and a closed port at once.
func (p *Process) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	h := p.host
	n := h.net
	to, err := h.parse(addr)
	if err != nil {
		return nil, fail("dial", network, nil, nil, err)
	}
	remote := net.TCPAddrFromAddrPort(to)
	n.mu.Lock()
	defer n.mu.Unlock()
	begun := time.Now()
	answered := false // a round trip has gone by
	for {
		if err := ctx.Err(); err != nil {
			return nil, fail("dial", network, nil, remote, context.Cause(ctx))
		}
		if err := p.lockedAlive(); err != nil {
			return nil, fail("dial", network, nil, remote, err)
		}
		way, limit, late := n.lockedWay(h, to)
		switch {
		case way && answered:
			c, err := p.lockedConnect(to)
			if err != nil {
				return nil, fail("dial", network, nil, remote, err)
			}
			return c, nil
		case way:
			answered = true
			n.lockedTravel(h, n.byAddr[to.Addr()], to.Port(), ctx.Done())
			continue
		case past(begun.Add(limit)):
			return nil, fail("dial", network, nil, remote, errno("connect", late))
		}
		answered = false
		n.lockedWait(&n.changed, begun.Add(limit), ctx.Done())
	}
}

// lockedWay says whether packets get to an address and back, and if not, after what time which error comes of it; n.mu
// is held.
func (n *Network) lockedWay(from *Host, to netip.AddrPort) (bool, time.Duration, syscall.Errno) {
	target := n.byAddr[to.Addr()]
	switch {
	case target == nil:
		return false, 0, syscall.EHOSTUNREACH
	case n.lockedLink(from, target, to.Port()).Cut || n.lockedLink(target, from, to.Port()).Cut:
		return false, connectTimeout, syscall.ETIMEDOUT
	case !target.up:
		return false, noNeighbour, syscall.EHOSTUNREACH
	}
	return true, 0, 0
}

// lockedTravel waits for a round trip; n.mu is held, but given up meanwhile.
func (n *Network) lockedTravel(from, to *Host, port uint16, stop <-chan struct{}) {
	d := n.lockedLink(from, to, port).Delay + n.lockedLink(to, from, port).Delay
	if d > 0 {
		n.lockedWait(&gate{}, time.Now().Add(d), stop)
	}
}

// lockedConnect makes both ends of a stream; the network's mutex is held.
func (p *Process) lockedConnect(to netip.AddrPort) (*Conn, error) {
	target := p.host.net.byAddr[to.Addr()]
	l := target.listeners[to.Port()]
	if l == nil {
		return nil, errno("connect", syscall.ECONNREFUSED)
	}
	from := netip.AddrPortFrom(p.host.addr, p.host.lockedEphemeral(func(uint16) bool { return false }))
	near, far := p.host.net.lockedStream(p, l.owner, from, to)
	l.queue = append(l.queue, far)
	l.arrived.lockedOpen()
	return near, nil
}

// Listener is a listening TCP socket.
type Listener struct {
	owner *Process
	addr  netip.AddrPort

	// The network's mutex guards all below.
	queue   []*Conn
	closed  bool
	arrived gate
}

// Listen opens a TCP port; port 0 is a free one.
func (p *Process) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	h := p.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	err := ctx.Err()
	if err == nil {
		err = p.lockedAlive()
	}
	if err != nil {
		return nil, fail("listen", network, nil, nil, err)
	}
	at, err := h.lockedBind(addr, func(port uint16) bool { return h.listeners[port] != nil })
	if err != nil {
		return nil, fail("listen", network, nil, nil, err)
	}
	l := &Listener{owner: p, addr: at}
	h.listeners[at.Port()] = l
	return l, nil
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	n := l.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, fail("accept", "tcp", nil, l.Addr(), net.ErrClosed)
		case len(l.queue) > 0:
			c := l.queue[0]
			l.queue = l.queue[1:]
			return c, nil
		}
		n.lockedWait(&l.arrived, time.Time{}, nil)
	}
}

// Close closes the port, and the connections that nobody has accepted.
func (l *Listener) Close() error {
	n := l.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.closed {
		return fail("close", "tcp", nil, l.Addr(), net.ErrClosed)
	}
	l.lockedClose()
	return nil
}

func (l *Listener) lockedClose() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.owner.host.listeners, l.addr.Port())
	for _, c := range l.queue {
		c.lockedClose()
	}
	l.arrived.lockedOpen()
}

// Addr returns where the listener listens.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
