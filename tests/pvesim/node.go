package pvesim

import (
	"context"
	"crypto/tls"
	"net/netip"
	"path/filepath"
	"sync"
)

// Node is one node of the cluster.
type Node struct {
	Name  string
	Index int        // from 0
	IP    netip.Addr // in .members

	// PMXCFS is the node's view of /etc/pve, Run its /var/run/qemu-server,
	// Lock its /var/lock/qemu-server, State the agent's state directory.
	PMXCFS, Run, Lock, State string
	// Socket is where the agent's command line is served.
	Socket string
	// Proc and Sys are what the node's kernel tells of memory, CPUs, load and
	// bridges. PVE's API says the same.
	Proc, Sys string
	// AgentYAML is the configuration for an agent on this node.
	AgentYAML string
	// GRPC, Metrics and Gossip are the addresses that configuration has, with
	// the same ports on all nodes.
	GRPC, Metrics, Gossip string

	cluster *Cluster
	own     string // the entries of PMXCFS that are this node's alone
	vz      string // /var/lib/vz: the storage "local"
	cpus    int
	memory  int64
	arc     int64 // of memory, what ZFS keeps
	bridges []string
	kernel  sync.Mutex // held while Proc is written

	mu       sync.Mutex // guards what follows
	mount    mount      // nil while PMXCFS is not mounted
	writable bool
	life     context.Context //nolint:containedctx // ends with the node's power
	die      context.CancelCauseFunc

	proxy  *front // pveproxy
	daemon *front // pvedaemon, plain
	cert   tls.Certificate
}

// API is the base URL of the node's API ("https://127.4.2.1:41234").
func (n *Node) API() string { return "https://" + n.proxy.addr }

// Daemon is the base URL of its plain API, pvedaemon's.
func (n *Node) Daemon() string { return "http://" + n.daemon.addr }

// maxMiB is what a VM's memory can grow to.
func (n *Node) maxMiB() int { return 524288 }

func newNode(c *Cluster, i int, name string) *Node {
	dir := filepath.Join(c.cfg.Dir, name)
	n := &Node{
		Name: name, Index: i, IP: c.cfg.Addresses[i], cluster: c,
		PMXCFS:    filepath.Join(dir, "etc", "pve"),
		Run:       filepath.Join(dir, "run", "qemu-server"),
		Lock:      filepath.Join(dir, "lock", "qemu-server"),
		State:     filepath.Join(dir, "lib"),
		Socket:    filepath.Join(dir, "agent.sock"),
		AgentYAML: filepath.Join(dir, "agent.yaml"),
		own:       filepath.Join(dir, "own"),
		vz:        filepath.Join(dir, "vz"),
		Proc:      filepath.Join(dir, "host", "proc"),
		Sys:       filepath.Join(dir, "host", "sys"),
		cpus:      c.cfg.CPUs, memory: c.cfg.Memory, arc: c.cfg.NodeARC[name], bridges: bridges,
	}
	if v, ok := c.cfg.NodeCPUs[name]; ok {
		n.cpus = v
	}
	if v, ok := c.cfg.NodeMemory[name]; ok {
		n.memory = v
	}
	if v, ok := c.cfg.NodeBridges[name]; ok {
		n.bridges = v
	}
	n.writable = true
	n.proxy = &front{node: n, addr: c.cfg.apiAddress(n, portAPI)}
	n.daemon = &front{node: n, addr: c.cfg.apiAddress(n, portDaemon)}
	return n
}
