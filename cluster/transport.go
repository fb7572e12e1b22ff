package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// dialTimeout is for a connection to a node in the same LAN: memberlist would
// wait 10 s for each that is not there.
const dialTimeout = 3 * time.Second

var errShutdown = errors.New("gossip is shutting down")

// transport is another one whose connections end at Shutdown: memberlist does
// not wait for those that it uses, and some of them would live for seconds.
type transport struct {
	memberlist.NodeAwareTransport
	dial    func(ctx context.Context, a memberlist.Address, timeout time.Duration) (net.Conn, error)
	streams chan net.Conn
	ctx     context.Context // for dial: memberlist gives it none
	cancel  context.CancelFunc
	done    chan struct{} // closed when nobody sends to streams any more
	pump    sync.WaitGroup
	once    sync.Once // shutdown

	mu   sync.Mutex
	open map[*conn]struct{} // guarded by mu; nil after Shutdown
}

// conn leaves its transport's set when it is closed.
type conn struct {
	net.Conn
	transport *transport
}

// listen opens the sockets, if no transport was given. They outlive ctx, which is
// done before the others are told that we leave.
func (c *Cluster) listen(ctx context.Context) (*transport, error) {
	if given := c.cfg.Transport; given != nil {
		aware, ok := given.(memberlist.NodeAwareTransport)
		if !ok {
			aware = unaware{given}
		}
		return newTransport(ctx, aware, func(_ context.Context, a memberlist.Address, timeout time.Duration) (net.Conn, error) {
			return aware.DialAddressTimeout(a, timeout)
		}), nil
	}
	bind := c.cfg.Bind
	sockets, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{bind.Addr().Unmap().String()},
		BindPort:  int(bind.Port()),
		Logger:    c.lines(),
	})
	if err != nil {
		return nil, fmt.Errorf("open sockets: %w", err)
	}
	return newTransport(ctx, sockets, func(ctx context.Context, a memberlist.Address, timeout time.Duration) (net.Conn, error) {
		dialer := net.Dialer{Timeout: timeout}
		return dialer.DialContext(ctx, "tcp", a.Addr)
	}), nil
}

// advertise is what is configured: "" lets the transport choose.
func (c *Cluster) advertise() (addr string, port int) {
	if !c.cfg.Advertise.IsValid() {
		return "", 0
	}
	port = int(c.cfg.Advertise.Port())
	if port == 0 {
		port = int(c.cfg.Bind.Port())
	}
	return c.cfg.Advertise.Addr().Unmap().String(), port
}

func newTransport(
	ctx context.Context,
	inner memberlist.NodeAwareTransport,
	dial func(context.Context, memberlist.Address, time.Duration) (net.Conn, error),
) *transport {
	t := &transport{
		NodeAwareTransport: inner,
		dial:               dial,
		streams:            make(chan net.Conn),
		done:               make(chan struct{}),
		open:               map[*conn]struct{}{},
	}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.pump.Go(t.accept)
	return t
}

func (t *transport) accept() {
	for {
		select {
		case accepted := <-t.NodeAwareTransport.StreamCh():
			if tracked, err := t.track(accepted); err == nil {
				t.hand(tracked)
			}
		case <-t.done:
			return
		}
	}
}

func (t *transport) hand(accepted *conn) {
	select {
	case t.streams <- accepted:
	case <-t.done:
		_ = accepted.Close()
	}
}

func (t *transport) track(raw net.Conn) (*conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		_ = raw.Close()
		return nil, errShutdown
	}
	c := &conn{raw, t}
	t.open[c] = struct{}{}
	return c, nil
}

// Close closes the connection.
func (c *conn) Close() error {
	c.transport.mu.Lock()
	delete(c.transport.open, c)
	c.transport.mu.Unlock()
	return c.Conn.Close()
}

// StreamCh is where accepted connections come out.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout connects to an address.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout connects to a node.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	raw, err := t.dial(t.ctx, a, min(timeout, dialTimeout))
	if err != nil {
		return nil, err
	}
	return t.track(raw)
}

// Shutdown closes the sockets and all connections. It may be called again:
// memberlist does so itself if it cannot start.
func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() { err = t.shutdown() })
	return err
}

func (t *transport) shutdown() error {
	t.cancel()
	err := t.NodeAwareTransport.Shutdown() // needs somebody who accepts until its end
	close(t.done)
	t.pump.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.open {
		_ = c.Conn.Close()
	}
	t.open = nil
	return err
}

// unaware is a transport that finds nodes by their address alone.
type unaware struct{ memberlist.Transport }

// WriteToAddress sends a packet.
func (u unaware) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return u.WriteTo(b, a.Addr)
}

// DialAddressTimeout connects.
func (u unaware) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return u.DialTimeout(a.Addr, timeout)
}
