package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// busyPause is the time between two attempts at a socket whose queue is full.
const busyPause = 10 * time.Millisecond

// Dial connects to the unix socket at path. QEMU's sockets have room for two
// clients that wait; beyond that connect(2) fails with EAGAIN, and Dial tries
// again for as long as retry says. The connection is closed when ctx ends.
func Dial(ctx context.Context, path string, retry time.Duration) (*Conn, error) {
	until := time.Now().Add(retry)
	for {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return newConn(ctx, path, c), nil
		}
		if !errors.Is(err, syscall.EAGAIN) || !time.Now().Add(busyPause).Before(until) {
			return nil, &OpError{Op: "connect", Path: path, Err: reason(ctx, err)}
		}
		if err := pause(ctx, busyPause); err != nil {
			return nil, &OpError{Op: "connect", Path: path, Err: err}
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Conn is one connection. Reads and writes happen inside of Within, by one
// goroutine at a time; Close may come from anywhere.
type Conn struct {
	path   string
	ctx    context.Context // of Dial: the life of the connection
	conn   net.Conn
	detach func() // ends the watch over ctx

	mu     sync.Mutex // guards closed
	closed bool
}

func newConn(ctx context.Context, path string, c net.Conn) *Conn {
	w := &Conn{path: path, ctx: ctx, conn: c}
	w.detach = onEnd(ctx, w.shut)
	return w
}

// onEnd calls f when ctx ends. The function it returns takes that back, and
// waits for f when it has begun, so that no goroutine is left.
func onEnd(ctx context.Context, f func()) (takeBack func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		f()
	})
	return sync.OnceFunc(func() {
		if !stop() {
			<-done
		}
	})
}

func (c *Conn) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		_ = c.conn.Close() // nothing is buffered, nothing can be lost
	}
}

// Close ends the connection. It may be called twice.
func (c *Conn) Close() {
	c.shut()
	c.detach()
}

// Closed reports whether the connection has ended on our side.
func (c *Conn) Closed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Context is the one that the connection was opened with.
func (c *Conn) Context() context.Context { return c.ctx }

// Path is the socket's.
func (c *Conn) Path() string { return c.path }

// Within lets step read and write until the deadline or the end of ctx,
// whichever is first, and wraps its error in an [OpError]. Any error but an
// [Error] leaves the stream at an unknown place, so it closes the connection.
func (c *Conn) Within(ctx context.Context, op string, deadline time.Time, step func(io.ReadWriter) error) error {
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	err := ctx.Err()
	if err == nil {
		err = c.conn.SetDeadline(deadline)
	}
	if err == nil {
		detach := onEnd(ctx, c.shut)
		err = step(c.conn)
		detach()
	}
	if err == nil {
		return nil
	}
	var refused *Error
	if !errors.As(err, &refused) {
		c.shut()
		err = c.why(ctx, err)
	}
	return &OpError{Op: op, Path: c.path, Err: err}
}

// why prefers the caller's reason to stop over the connection's.
func (c *Conn) why(ctx context.Context, err error) error {
	if ctx.Err() == nil && c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	return reason(ctx, err)
}
