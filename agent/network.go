package agent

import (
	"context"
	"net"
)

// Network is where an agent opens its sockets: those of its servers, of the gossip, and of its calls to the PVE API and
// to other agents. The unix sockets of QEMU, of systemd and for commands are the machine's own and not part of it.
type Network interface {
	Listen(ctx context.Context, network, addr string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error)
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// host is the network of the machine.
type host struct {
	net.ListenConfig
	dialer net.Dialer
}

// Dial connects over TCP or UDP.
func (h *host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.dialer.DialContext(ctx, network, addr)
}
