// Package clustertest is a network in memory for packages cluster and above: it
// loses packets, has partitions and lets hosts die, in virtual time too
// (testing/synctest). It does not ship.
package clustertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// What IPv4 adds to a packet of UDP, and to each write of TCP (with an
// acknowledgement), in bytes. Traffic counts it.
const (
	udpHeaders = 20 + 8
	tcpHeaders = 2 * (20 + 20)
)

// Network connects transports. Its zero value is a network without faults.
type Network struct {
	mu    sync.Mutex                    // guards all below
	hosts map[netip.AddrPort]*Transport // that listen
	off   map[netip.Addr]bool           // hosts without power: nobody answers for them
	loss  map[[2]netip.Addr]float64     // of packets, from 0 to 1, from one host to another
	dice  *rand.Rand                    // nil: seeded with 1 when first needed
	sent  map[netip.AddrPort]Traffic    // by those who sent it
	taps  []func(from, to netip.AddrPort, packet []byte)
}

// Traffic is what was sent, with the headers of UDP and TCP over IPv4.
type Traffic struct{ Packets, PacketBytes, StreamBytes int }

// Lose loses a part of what one host sends to another, from 0 to 1. Streams are
// not concerned until it is 1: then connecting and reading take until the
// timeout.
func (n *Network) Lose(part float64, from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.loss == nil {
		n.loss = map[[2]netip.Addr]float64{}
	}
	n.loss[[2]netip.Addr{from, to}] = part
}

// Cut separates two groups of hosts.
func (n *Network) Cut(a, b []netip.Addr) { n.between(1, a, b) }

// Heal joins two groups of hosts again.
func (n *Network) Heal(a, b []netip.Addr) { n.between(0, a, b) }

func (n *Network) between(part float64, a, b []netip.Addr) {
	for _, x := range a {
		for _, y := range b {
			n.Lose(part, x, y)
			n.Lose(part, y, x)
		}
	}
}

// Power takes a host from the network as a power cut does, or gives it back.
// What runs there goes on, and hears nothing.
func (n *Network) Power(on bool, host netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.off == nil {
		n.off = map[netip.Addr]bool{}
	}
	n.off[host] = !on
}

// Traffic is what was sent from an address since the network began.
func (n *Network) Traffic(from netip.AddrPort) Traffic {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[from]
}

// Tap calls f with every packet that is sent, before it may be lost.
func (n *Network) Tap(f func(from, to netip.AddrPort, packet []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taps = append(n.taps, f)
}

// Transport listens on an address until its Shutdown.
func (n *Network) Transport(addr netip.AddrPort) *Transport {
	t := &Transport{
		net: n, addr: addr,
		packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 128), down: make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts, n.sent = map[netip.AddrPort]*Transport{}, map[netip.AddrPort]Traffic{}
		n.dice = rand.New(rand.NewPCG(1, 1))
	}
	n.hosts[addr] = t
	return t
}

func (n *Network) lockedLost(from, to netip.Addr) bool {
	part := n.loss[[2]netip.Addr{from, to}]
	return n.off[from] || n.off[to] || part >= 1 || part > 0 && n.dice.Float64() < part
}

// open says whether streams between two hosts get through, both ways.
func (n *Network) open(a, b netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.off[a] && !n.off[b] && n.loss[[2]netip.Addr{a, b}] < 1 && n.loss[[2]netip.Addr{b, a}] < 1
}

// Transport is a memberlist.Transport over a Network.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{} // closed by Shutdown
	once    sync.Once
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// FinalAdvertiseAddr is the transport's own address, whatever is configured.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// WriteTo sends a packet. Nobody says if it is lost.
func (t *Transport) WriteTo(b []byte, to string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: to})
}

// WriteToAddress sends a packet. Nobody says if it is lost.
func (t *Transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	now := time.Now()
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return now, fmt.Errorf("send packet: %w", err)
	}
	n := t.net
	n.mu.Lock()
	defer n.mu.Unlock()
	sum := n.sent[t.addr]
	sum.Packets++
	sum.PacketBytes += len(b) + udpHeaders
	n.sent[t.addr] = sum
	for _, tap := range n.taps {
		tap(t.addr, addr, b)
	}
	if host := n.hosts[addr]; host != nil && !n.lockedLost(t.addr.Addr(), addr.Addr()) {
		select {
		case host.packets <- &memberlist.Packet{Buf: b, From: net.UDPAddrFromAddrPort(t.addr), Timestamp: now}:
		default: // its buffer is full
		}
	}
	return now, nil
}

// PacketCh is where packets come out.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh is where accepted connections come out.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout connects.
func (t *Transport) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: to}, timeout)
}

// DialAddressTimeout connects: at once, or not until the timeout if the network
// is cut.
func (t *Transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	failed := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: err}
	}
	if !t.net.open(t.addr.Addr(), addr.Addr()) {
		wait := time.NewTimer(timeout)
		defer wait.Stop()
		select {
		case <-wait.C:
			return nil, failed(os.ErrDeadlineExceeded)
		case <-t.down:
			return nil, failed(net.ErrClosed)
		}
	}
	t.net.mu.Lock()
	host := t.net.hosts[addr]
	t.net.mu.Unlock()
	if host == nil {
		return nil, failed(errors.New("connection refused"))
	}
	near, far := net.Pipe()
	select {
	case host.streams <- &stream{far, host, t}:
		return &stream{near, t, host}, nil
	default:
		return nil, failed(errors.New("connection refused: nobody accepts"))
	}
}

// Shutdown stops listening: who connects is refused.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		close(t.down)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		if t.net.hosts[t.addr] == t {
			delete(t.net.hosts, t.addr)
		}
	})
	return nil
}

// stream is one end of a connection.
type stream struct {
	net.Conn
	from, to *Transport
}

// RemoteAddr is the other end.
func (s *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.to.addr) }

// Write gets lost if the network is cut: who reads waits for its deadline.
func (s *stream) Write(b []byte) (int, error) {
	n := s.from.net
	n.mu.Lock()
	sum := n.sent[s.from.addr]
	sum.StreamBytes += len(b) + tcpHeaders
	n.sent[s.from.addr] = sum
	n.mu.Unlock()
	if !n.open(s.from.addr.Addr(), s.to.addr.Addr()) {
		return len(b), nil
	}
	return s.Conn.Write(b)
}
