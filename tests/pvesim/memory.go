package pvesim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Memory is a network in memory, of stream connections alone: a [Network] that
// lives in a bubble of [testing/synctest]. What is sent while packets are lost
// arrives when they are not any more, as with TCP.
type Memory struct {
	mu        sync.Mutex // guards all below, and what the connections hold
	changed   *sync.Cond // broadcast at every change
	listeners map[netip.AddrPort]*memoryListener
	lost      map[[2]netip.Addr]bool
	port      uint16
}

// NewMemory makes an empty network.
func NewMemory() *Memory {
	m := &Memory{listeners: map[netip.AddrPort]*memoryListener{}, lost: map[[2]netip.Addr]bool{}, port: 40000}
	m.changed = sync.NewCond(&m.mu)
	return m
}

// Lose loses everything that is sent from one address to another from now on,
// or lets it through again: Cluster.OnCut says when.
func (m *Memory) Lose(from, to netip.Addr, lost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost[[2]netip.Addr{from, to}] = lost
	m.changed.Broadcast()
}

// Listen implements [Network]. The address is IP:port; port 0 takes a free one.
func (m *Memory) Listen(_ context.Context, network, address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if at.Port() == 0 {
		at = m.lockedFree(at.Addr())
	}
	if m.listeners[at] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: net.TCPAddrFromAddrPort(at), Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &memoryListener{net: m, at: at}
	m.listeners[at] = l
	return l, nil
}

func (m *Memory) lockedFree(addr netip.Addr) netip.AddrPort {
	for {
		m.port = max(m.port+1, 40000)
		if at := netip.AddrPortFrom(addr, m.port); m.listeners[at] == nil {
			return at
		}
	}
}

// Dial connects from an address to a listener ("10.0.0.2:8006"). While packets
// are lost it waits until ctx ends, as for a host that does not answer.
func (m *Memory) Dial(ctx context.Context, from netip.Addr, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changed.Broadcast()
	})
	defer stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.lost[[2]netip.Addr{from, to.Addr()}] || m.lost[[2]netip.Addr{to.Addr(), from}] {
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		m.changed.Wait()
	}
	if ctx.Err() != nil {
		return fail(ctx.Err())
	}
	l := m.listeners[to]
	if l == nil {
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	near, far := m.pair(m.lockedFree(from), to)
	l.queue = append(l.queue, far)
	m.changed.Broadcast()
	return near, nil
}

func (m *Memory) pair(from, to netip.AddrPort) (near, far *memoryConn) {
	there := &stream{way: [2]netip.Addr{from.Addr(), to.Addr()}}
	back := &stream{way: [2]netip.Addr{to.Addr(), from.Addr()}}
	near = &memoryConn{net: m, local: from, remote: to, in: back, out: there}
	far = &memoryConn{net: m, local: to, remote: from, in: there, out: back}
	return near, far
}

type memoryListener struct {
	net    *Memory
	at     netip.AddrPort
	queue  []*memoryConn
	closed bool
}

// Accept implements [net.Listener].
func (l *memoryListener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for !l.closed && len(l.queue) == 0 {
		l.net.changed.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

// Close implements [net.Listener]. Who is not accepted yet is turned away.
func (l *memoryListener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	delete(l.net.listeners, l.at)
	for _, c := range l.queue {
		c.lockedClose()
	}
	l.net.changed.Broadcast()
	return nil
}

// Addr implements [net.Listener].
func (l *memoryListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// stream is one direction of a connection.
type stream struct {
	way    [2]netip.Addr
	data   []byte
	ended  bool // the writer closed: io.EOF behind the data
	broken bool // the reader closed: writes fail
}

// streamLimit is how much may be on its way before a writer waits.
const streamLimit = 256 << 10

// memoryConn is one end of a connection.
type memoryConn struct {
	net           *Memory
	local, remote netip.AddrPort
	in, out       *stream
	closed        bool
	readBy        deadline
	writeBy       deadline
}

// deadline wakes who waits when it comes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) lockedSet(m *Memory, at time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.changed.Broadcast()
		})
	}
	m.changed.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// Read implements [net.Conn].
func (c *memoryConn) Read(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		lost := c.net.lost[c.in.way]
		switch {
		case c.closed:
			return 0, c.fail("read", net.ErrClosed)
		case c.readBy.passed():
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case !lost && len(c.in.data) > 0:
			n := copy(b, c.in.data)
			c.in.data = c.in.data[n:]
			c.net.changed.Broadcast()
			return n, nil
		case !lost && c.in.ended:
			return 0, io.EOF
		}
		c.net.changed.Wait()
	}
}

// Write implements [net.Conn].
func (c *memoryConn) Write(b []byte) (n int, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return n, c.fail("write", net.ErrClosed)
		case c.writeBy.passed():
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case c.out.broken && !c.net.lost[c.out.way] && !c.net.lost[c.in.way]:
			return n, c.fail("write", os.NewSyscallError("write", syscall.ECONNRESET))
		case len(b) == n:
			return n, nil
		}
		if room := streamLimit - len(c.out.data); room > 0 {
			k := min(room, len(b)-n)
			c.out.data = append(c.out.data, b[n:n+k]...)
			n += k
			c.net.changed.Broadcast()
			continue
		}
		c.net.changed.Wait()
	}
}

func (c *memoryConn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Close implements [net.Conn].
func (c *memoryConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.lockedClose()
	return nil
}

func (c *memoryConn) lockedClose() {
	c.closed, c.out.ended, c.in.broken = true, true, true
	c.readBy.lockedSet(c.net, time.Time{})
	c.writeBy.lockedSet(c.net, time.Time{})
}

// LocalAddr implements [net.Conn].
func (c *memoryConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements [net.Conn].
func (c *memoryConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements [net.Conn].
func (c *memoryConn) SetDeadline(at time.Time) error {
	return errors.Join(c.SetReadDeadline(at), c.SetWriteDeadline(at))
}

// SetReadDeadline implements [net.Conn].
func (c *memoryConn) SetReadDeadline(at time.Time) error { return c.set(&c.readBy, at) }

// SetWriteDeadline implements [net.Conn].
func (c *memoryConn) SetWriteDeadline(at time.Time) error { return c.set(&c.writeBy, at) }

func (c *memoryConn) set(d *deadline, at time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	d.lockedSet(c.net, at)
	return nil
}
