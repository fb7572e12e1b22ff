package fabric

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// PacketConn is a UDP socket.
type PacketConn struct {
	owner *Process
	addr  netip.AddrPort

	// The network's mutex guards all below.
	queue    []packet
	closed   bool
	deadline struct{ read, write time.Time }
	changed  gate
}

type packet struct {
	data []byte
	from netip.AddrPort
	due  time.Time
}

// ListenPacket opens a UDP port; port 0 is a free one.
func (p *Process) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
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
	at, err := h.lockedBind(addr, func(port uint16) bool { return h.packets[port] != nil })
	if err != nil {
		return nil, fail("listen", network, nil, nil, err)
	}
	c := &PacketConn{owner: p, addr: at}
	h.packets[at.Port()] = c
	return c, nil
}

// ReadFrom returns the next packet; what does not fit into b is lost.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n := c.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if c.closed {
			return 0, nil, fail("read", "udp", c.LocalAddr(), nil, net.ErrClosed)
		}
		if past(c.deadline.read) {
			return 0, nil, fail("read", "udp", c.LocalAddr(), nil, os.ErrDeadlineExceeded)
		}
		var next time.Time
		if len(c.queue) > 0 {
			p := c.queue[0]
			if next = p.due; !next.After(time.Now()) {
				c.queue = c.queue[1:]
				return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
			}
		}
		n.lockedWait(&c.changed, earlier(c.deadline.read, next), nil)
	}
}

// WriteTo sends a packet. Whether it arrives, nobody says.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	n := c.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	to, err := c.owner.host.parse(addr.String())
	switch {
	case err != nil:
	case c.closed:
		err = net.ErrClosed
	case past(c.deadline.write):
		err = os.ErrDeadlineExceeded
	case len(b) > 65507:
		err = errno("sendto", syscall.EMSGSIZE)
	}
	if err != nil {
		return 0, fail("write", "udp", c.LocalAddr(), addr, err)
	}
	n.lockedDeliver(c, to, b)
	return len(b), nil
}

// lockedDeliver puts a packet into the socket it is for, if it gets there; n.mu is held.
func (n *Network) lockedDeliver(from *PacketConn, to netip.AddrPort, b []byte) {
	target := n.byAddr[to.Addr()]
	if target == nil || !target.up || !from.owner.host.up {
		return
	}
	l := n.lockedLink(from.owner.host, target, to.Port())
	if l.Cut || l.Loss > 0 && n.dice.Float64() < l.Loss {
		return
	}
	sock := target.packets[to.Port()]
	if sock == nil || len(sock.queue) >= packetBuffer {
		return
	}
	p := packet{data: append([]byte(nil), b...), from: from.addr, due: time.Now().Add(l.Delay)}
	at := len(sock.queue)
	for at > 0 && sock.queue[at-1].due.After(p.due) {
		at--
	}
	sock.queue = append(sock.queue, packet{})
	copy(sock.queue[at+1:], sock.queue[at:])
	sock.queue[at] = p
	sock.changed.lockedOpen()
}

// Close closes the socket.
func (c *PacketConn) Close() error {
	n := c.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return fail("close", "udp", c.LocalAddr(), nil, net.ErrClosed)
	}
	c.lockedClose()
	return nil
}

func (c *PacketConn) lockedClose() {
	c.closed, c.queue = true, nil
	delete(c.owner.host.packets, c.addr.Port())
	c.changed.lockedOpen()
}

// LocalAddr returns the socket's address.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }

// SetDeadline sets both deadlines; the zero time is none.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.set(t, true, true) }

// SetReadDeadline sets the deadline of reads.
func (c *PacketConn) SetReadDeadline(t time.Time) error { return c.set(t, true, false) }

// SetWriteDeadline sets the deadline of writes.
func (c *PacketConn) SetWriteDeadline(t time.Time) error { return c.set(t, false, true) }

func (c *PacketConn) set(t time.Time, read, write bool) error {
	n := c.owner.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return fail("set", "udp", c.LocalAddr(), nil, net.ErrClosed)
	}
	if read {
		c.deadline.read = t
	}
	if write {
		c.deadline.write = t
	}
	c.changed.lockedOpen()
	return nil
}
