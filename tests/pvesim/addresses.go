package pvesim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// ClusterName is the cluster's name in .members and in the agents' certificates.
const ClusterName = "pvesim"

// Network makes the listeners of a cluster: a test can give one that is all in
// memory. [net.ListenConfig] is one with real sockets.
type Network interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
}

// The ports in a network of our own, where no other program is in the way.
const (
	portAPI     = 8006
	portDaemon  = 85
	portGRPC    = 9443
	portMetrics = 9444
	portGossip  = 7946
)

// chooseAddresses gives the nodes their addresses: 127.R.S.1 and up with R and
// S by chance, so that clusters that run side by side can use the same ports,
// or 10.0.0.1 and up in a network of their own.
func (c *Config) chooseAddresses() error {
	if c.Addresses == nil {
		first := netip.AddrFrom4([4]byte{10, 0, 0, 1})
		if c.Network == nil {
			first = netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), 1})
		}
		c.ownAddresses = true
		for range c.Nodes {
			c.Addresses = append(c.Addresses, first)
			first = first.Next()
		}
	}
	if len(c.Addresses) < c.Nodes {
		return fmt.Errorf("pvesim: %d addresses for %d nodes", len(c.Addresses), c.Nodes)
	}
	if c.Network == nil {
		c.Network = &net.ListenConfig{}
	} else {
		c.ownNetwork = true
	}
	return nil
}

// apiAddress is where a node's API listens.
func (c *Config) apiAddress(n *Node, port int) string {
	host := n.IP
	if c.APIHost.IsValid() {
		host, port = c.APIHost, 0
	}
	if !c.ownNetwork {
		port = 0
	}
	return netip.AddrPortFrom(host, uint16(port)).String() //nolint:gosec // one of the constants above
}

// agentPorts chooses the ports of the agents: the same ones on all nodes.
func (c *Cluster) agentPorts(ctx context.Context) error {
	grpc, metrics, gossip := portGRPC, portMetrics, portGossip
	if c.cfg.ownAddresses && !c.cfg.ownNetwork {
		for _, p := range []*int{&grpc, &metrics, &gossip} {
			var err error
			if *p, err = c.freePort(ctx); err != nil {
				return err
			}
		}
	}
	for _, n := range c.nodes {
		at := func(port int) string { return net.JoinHostPort(n.IP.String(), strconv.Itoa(port)) }
		n.GRPC, n.Metrics, n.Gossip = at(grpc), at(metrics), at(gossip)
	}
	return nil
}

// freePort finds a port that nobody uses now on any node's address, neither
// for TCP nor for UDP.
func (c *Cluster) freePort(ctx context.Context) (int, error) {
	for range 100 {
		port, err := c.tryPort(ctx)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return port, err
		}
	}
	return 0, errors.New("find a port: all that were tried are in use")
}

func (c *Cluster) tryPort(ctx context.Context) (port int, err error) {
	var lc net.ListenConfig
	for _, n := range c.nodes {
		addr := net.JoinHostPort(n.IP.String(), strconv.Itoa(port))
		ln, e := lc.Listen(ctx, "tcp", addr)
		if e != nil {
			return 0, fmt.Errorf("find a port: %w", e)
		}
		defer func() { err = errors.Join(err, ln.Close()) }()
		if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
			port = tcp.Port
		}
		udp, e := lc.ListenPacket(ctx, "udp", net.JoinHostPort(n.IP.String(), strconv.Itoa(port)))
		if e != nil {
			return 0, fmt.Errorf("find a port: %w", e)
		}
		defer func() { err = errors.Join(err, udp.Close()) }()
	}
	return port, nil
}
