package fabric

import (
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// Conn is one end of a TCP connection.
type Conn struct {
	owner         *Process
	local, remote netip.AddrPort

	// The network's mutex guards all below.
	in, out  *half
	closed   bool // by us
	dead     bool // its process or host is gone
	reset    bool // by the peer
	deadline struct{ read, write time.Time }
}

// half is one direction of a stream.
type half struct {
	net      *Network
	from, to *Conn
	port     uint16 // of the server's side

	// The network's mutex guards all below.
	chunks  []chunk
	size    int // of all chunks
	last    time.Time
	changed gate // something was written, read, released, closed, or a deadline was set
}

// chunk is bytes that were written at once.
type chunk struct {
	data []byte
	end  bool      // no bytes: the writer has closed
	due  time.Time // when it arrives
	held bool      // it does not: the link is cut
}

// lockedStream connects two processes; n.mu is held.
func (n *Network) lockedStream(client, server *Process, from, to netip.AddrPort) (near, far *Conn) {
	near = &Conn{owner: client, local: from, remote: to}
	far = &Conn{owner: server, local: to, remote: from}
	there := &half{net: n, from: near, to: far, port: to.Port()}
	back := &half{net: n, from: far, to: near, port: to.Port()}
	near.in, near.out, far.in, far.out = back, there, there, back
	n.streams[there], n.streams[back] = struct{}{}, struct{}{}
	client.host.ends[near], server.host.ends[far] = struct{}{}, struct{}{}
	return near, far
}

// link is what the half's bytes meet; a host that is off takes nothing.
func (h *half) lockedLink() Link {
	from, to := h.from.owner.host, h.to.owner.host
	l := h.net.lockedLink(from, to, h.port)
	l.Cut = l.Cut || !to.up
	return l
}

// lockedSend puts a chunk on its way.
func (h *half) lockedSend(c chunk) {
	h.chunks = append(h.chunks, c)
	h.size += len(c.data)
	h.lockedSchedule(&h.chunks[len(h.chunks)-1])
	h.changed.lockedOpen()
	h.lockedBounce()
}

// lockedSchedule says when a chunk arrives. What is before it arrives before it.
func (h *half) lockedSchedule(c *chunk) {
	l := h.lockedLink()
	if c.held = l.Cut; c.held {
		return
	}
	c.due = time.Now().Add(l.Delay)
	if c.due.Before(h.last) {
		c.due = h.last
	}
	h.last = c.due
}

// lockedRelease sends what was held, if it can go now.
func (h *half) lockedRelease() {
	for i := range h.chunks {
		if h.chunks[i].held {
			h.lockedSchedule(&h.chunks[i])
		}
	}
	h.changed.lockedOpen()
	h.lockedBounce()
}

// lockedBounce tells a writer that there is nobody at the other end, when its bytes get there and the answer gets back.
func (h *half) lockedBounce() {
	if len(h.chunks) == 0 || !h.to.closed || h.from.closed || h.from.reset || h.chunks[0].end {
		return
	}
	if h.lockedLink().Cut || h.net.lockedLink(h.to.owner.host, h.from.owner.host, h.port).Cut {
		return
	}
	h.chunks, h.size = nil, 0
	h.from.lockedReset()
}

// lockedReset is what a peer's RST does.
func (c *Conn) lockedReset() {
	c.reset = true
	c.in.changed.lockedOpen()
	c.out.changed.lockedOpen()
}

// lockedVanish is a loss of power: nobody is told, and what has not left is lost.
func (c *Conn) lockedVanish() {
	c.closed, c.dead = true, true
	c.out.chunks = slices.DeleteFunc(c.out.chunks, func(x chunk) bool { return x.held })
	c.lockedGone()
}

// lockedClose closes our end; the peer is told in order, after what we have written.
func (c *Conn) lockedClose() {
	if c.closed {
		return
	}
	c.closed = true
	if !c.reset {
		c.out.lockedSend(chunk{end: true})
	}
	c.lockedGone()
}

// lockedGone forgets our end, and the whole stream when both ends are gone.
func (c *Conn) lockedGone() {
	c.in.chunks, c.in.size = nil, 0
	c.in.changed.lockedOpen()
	c.out.changed.lockedOpen()
	delete(c.owner.host.ends, c)
	if c.in.from.closed {
		delete(c.in.net.streams, c.in)
		delete(c.in.net.streams, c.out)
	}
}

// Read returns bytes that have arrived.
func (c *Conn) Read(b []byte) (int, error) {
	n := c.in.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if c.closed {
			return 0, fail("read", "tcp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
		}
		if past(c.deadline.read) {
			return 0, fail("read", "tcp", c.LocalAddr(), c.RemoteAddr(), os.ErrDeadlineExceeded)
		}
		if len(b) == 0 {
			return 0, nil
		}
		got, end, next := c.in.lockedTake(b)
		switch {
		case got > 0:
			return got, nil
		case end:
			return 0, io.EOF
		case c.reset && next.IsZero():
			return 0, fail("read", "tcp", c.LocalAddr(), c.RemoteAddr(), errno("read", syscall.ECONNRESET))
		}
		n.lockedWait(&c.in.changed, earlier(c.deadline.read, next), nil)
	}
}

// lockedTake copies what has arrived. If nothing has, next is when something does, zero if that is not known.
func (h *half) lockedTake(b []byte) (got int, end bool, next time.Time) {
	now := time.Now()
	for got < len(b) && len(h.chunks) > 0 {
		c := &h.chunks[0]
		if c.held {
			break
		}
		if c.due.After(now) {
			return got, false, c.due
		}
		if c.end { // stays: every later read sees it
			return got, got == 0, time.Time{}
		}
		n := copy(b[got:], c.data)
		c.data = c.data[n:]
		got, h.size = got+n, h.size-n
		if len(c.data) == 0 {
			h.chunks = h.chunks[1:]
		}
	}
	if got > 0 {
		h.changed.lockedOpen()
	}
	return got, false, time.Time{}
}

// Write writes all of b, and waits while the buffer is full.
func (c *Conn) Write(b []byte) (int, error) {
	n := c.out.net
	n.mu.Lock()
	defer n.mu.Unlock()
	written := 0
	for {
		var err error
		switch {
		case c.closed:
			err = net.ErrClosed
		case past(c.deadline.write):
			err = os.ErrDeadlineExceeded
		case c.reset || c.lockedRefused():
			err = errno("write", syscall.EPIPE)
		}
		if err != nil {
			return written, fail("write", "tcp", c.LocalAddr(), c.RemoteAddr(), err)
		}
		if room := streamBuffer - c.out.size; room > 0 {
			part := b[written:min(len(b), written+room)]
			if len(part) > 0 {
				c.out.lockedSend(chunk{data: append([]byte(nil), part...)})
			}
			if written += len(part); written == len(b) {
				return written, nil
			}
		}
		n.lockedWait(&c.out.changed, c.deadline.write, nil)
	}
}

// lockedRefused reports whether we know that the peer is gone: its end has arrived. Nobody here closes for writing only.
func (c *Conn) lockedRefused() bool {
	return len(c.in.chunks) > 0 && c.in.chunks[0].end && !c.in.chunks[0].held && !c.in.chunks[0].due.After(time.Now())
}

// Close closes the connection.
func (c *Conn) Close() error {
	n := c.in.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed && !c.dead {
		return fail("close", "tcp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
	}
	c.lockedClose()
	return nil
}

// LocalAddr returns our address.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines; the zero time is none.
func (c *Conn) SetDeadline(t time.Time) error { return c.set(t, true, true) }

// SetReadDeadline sets the deadline of reads, also of those that wait already.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.set(t, true, false) }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.set(t, false, true) }

func (c *Conn) set(t time.Time, read, write bool) error {
	n := c.in.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return fail("set", "tcp", c.LocalAddr(), c.RemoteAddr(), net.ErrClosed)
	}
	if read {
		c.deadline.read = t
		c.in.changed.lockedOpen()
	}
	if write {
		c.deadline.write = t
		c.out.changed.lockedOpen()
	}
	return nil
}
