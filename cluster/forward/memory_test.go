package forward

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// memory connects agents in memory. Each address can be made to fail.
type memory struct {
	// mu guards the fields below.
	mu        sync.Mutex
	listeners map[string]*memoryListener
	faults    map[string]fault // by address, for new connections
	conns     map[string][]*memoryConn
}

type fault int

const (
	none     fault = iota
	refused        // nobody listens
	blackout       // packets to it are lost: connecting ends with its context
	stopped        // the process is stopped: the kernel still accepts
	deaf           // connecting takes long, whatever its context says
)

func newMemory() *memory {
	return &memory{listeners: make(map[string]*memoryListener), faults: make(map[string]fault), conns: make(map[string][]*memoryConn)}
}

func (m *memory) addr(node string) string                        { return node + ":9443" }
func (m *memory) server(string) credentials.TransportCredentials { return insecure.NewCredentials() }

func (m *memory) client(string, string) credentials.TransportCredentials {
	return insecure.NewCredentials()
}
func (m *memory) caller(p *peer.Peer) string { return p.Addr.String() }

func (m *memory) listen(node string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &memoryListener{addr: m.addr(node), accept: make(chan net.Conn), closed: make(chan struct{})}
	m.listeners[l.addr] = l
	return l
}

// fail lets new connections to an address fail.
func (m *memory) fail(addr string, f fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[addr] = f
}

// stall lets nothing through any more on all connections to an address. Nobody
// sees them end.
func (m *memory) stall(addr string, block bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns[addr] {
		if block {
			c.blocked.Store(true)
		}
		c.stalled.Store(true)
	}
}

func (m *memory) cut(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns[addr] {
		_ = c.other.Close()
	}
	m.conns[addr] = nil
}

func (m *memory) dial(ctx context.Context, from, addr string) (net.Conn, error) {
	m.mu.Lock()
	l, f := m.listeners[addr], m.faults[addr]
	m.mu.Unlock()
	if f == blackout {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f == deaf {
		time.Sleep(10 * time.Second) // virtual
		ctx = context.WithoutCancel(ctx)
	}
	if l == nil || f == refused {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	c := &memoryConn{Conn: near, closed: make(chan struct{}), other: far}
	m.mu.Lock()
	m.conns[addr] = append(m.conns[addr], c)
	m.mu.Unlock()
	if f == stopped {
		c.stalled.Store(true)
		return c, nil
	}
	select {
	case l.accept <- namedConn{far, from}:
		return c, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A memoryConn is the dialling end of a connection.
type memoryConn struct {
	net.Conn
	stalled, blocked atomic.Bool
	close            sync.Once
	closed           chan struct{}
	other            net.Conn
}

func (c *memoryConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if !c.stalled.Load() {
			return n, err
		}
		if err != nil {
			<-c.closed
			return 0, net.ErrClosed
		}
	}
}

func (c *memoryConn) Write(b []byte) (int, error) {
	if !c.stalled.Load() {
		return c.Conn.Write(b)
	}
	if c.blocked.Load() { // the kernel takes no more
		<-c.closed
	}
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		return len(b), nil // the kernel takes it, and nobody gets it
	}
}

func (c *memoryConn) Close() error {
	c.close.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A namedConn says who is at its other end.
type namedConn struct {
	net.Conn
	from string
}

func (c namedConn) RemoteAddr() net.Addr { return memoryAddr(c.from) }

type memoryAddr string

func (a memoryAddr) Network() string { return "memory" }
func (a memoryAddr) String() string  { return string(a) }

type memoryListener struct {
	addr   string
	accept chan net.Conn
	close  sync.Once
	closed chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.addr) }

func (l *memoryListener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}
