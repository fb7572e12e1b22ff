package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Transport is what gossip is sent over: packets and streams.
type Transport = memberlist.Transport

// Sockets is a network to open sockets in.
type Sockets interface {
	Listen(ctx context.Context, network, addr string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error)
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// maxPacket is more than any packet of the gossip.
const maxPacket = 64 << 10

// socketTransport is a Transport in a network that is not the host's own.
type socketTransport struct {
	ctx     context.Context //nolint:containedctx // of the sockets; memberlist passes none
	cancel  context.CancelFunc
	sockets Sockets
	bind    netip.AddrPort
	packets net.PacketConn
	streams net.Listener

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn
	loops    sync.WaitGroup
}

// NewTransport opens a Transport on an address of some network. Who gets it shuts it down.
func NewTransport(ctx context.Context, sockets Sockets, bind netip.AddrPort) (Transport, error) {
	packets, err := sockets.ListenPacket(ctx, "udp", bind.String())
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	streams, err := sockets.Listen(ctx, "tcp", bind.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), packets.Close())
	}
	t := &socketTransport{
		sockets: sockets, bind: bind, packets: packets, streams: streams,
		packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn),
	}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.loops.Go(t.readPackets)
	t.loops.Go(t.acceptStreams)
	return t, nil
}

func (t *socketTransport) readPackets() {
	for {
		buf := make([]byte, maxPacket)
		n, from, err := t.packets.ReadFrom(buf)
		if err != nil {
			return // only Shutdown closes it
		}
		select {
		case t.packetCh <- &memberlist.Packet{Buf: buf[:n], From: from, Timestamp: time.Now()}:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *socketTransport) acceptStreams() {
	for {
		conn, err := t.streams.Accept()
		if err != nil {
			return
		}
		select {
		case t.streamCh <- conn:
		case <-t.ctx.Done():
			_ = conn.Close() // nobody will read it
			return
		}
	}
}

// FinalAdvertiseAddr is what others are told: what is configured, else where we listen.
func (t *socketTransport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	if ip == "" {
		return t.bind.Addr().AsSlice(), int(t.bind.Port()), nil
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, fmt.Errorf("advertise %q: %w", ip, err)
	}
	return addr.AsSlice(), port, nil
}

// WriteTo sends one packet.
func (t *socketTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send to %q: %w", addr, err)
	}
	_, err = t.packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// PacketCh delivers the packets that arrive.
func (t *socketTransport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }

// DialTimeout opens a stream.
func (t *socketTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	return t.sockets.Dial(ctx, "tcp", addr)
}

// StreamCh delivers the streams that others open.
func (t *socketTransport) StreamCh() <-chan net.Conn { return t.streamCh }

// Shutdown closes the sockets and returns when nothing is read from them any more.
func (t *socketTransport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.packets.Close(), t.streams.Close())
	t.loops.Wait()
	return err
}
