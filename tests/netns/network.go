package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// gossipPort is that of the agents, for TCP and UDP.
const gossipPort = 7946

// link is what happens to packets on their way from one node to another.
type link struct{ from, to string }

// network is a bridge with a network namespace for each node. Packets get lost where they arrive.
type network struct {
	number int // which network of this process
	nodes  []string

	mu     sync.Mutex // guards all below, and orders what the kernel is told
	cut    map[link]bool
	gossip map[link]bool // cut, for gossip alone
	loss   map[link]int  // percent
}

// newNetwork makes network number n of this process, 10.99.n.0/24. What was made before an error stays until close.
func newNetwork(ctx context.Context, number int, nodes []string) (*network, error) {
	n := &network{number: number, nodes: nodes, cut: map[link]bool{}, gossip: map[link]bool{}, loss: map[link]int{}}
	bridge := n.bridge()
	commands := []string{
		"link add " + bridge + " type bridge",
		"addr add " + n.host().String() + "/24 dev " + bridge,
		"link set " + bridge + " up",
	}
	for i, node := range nodes {
		space, port := n.space(node), fmt.Sprintf("%s-%d", bridge, i+1)
		commands = append(commands,
			"netns add "+space,
			"link add "+port+" type veth peer name eth0 netns "+space,
			"link set "+port+" master "+bridge+" up",
			"-n "+space+" link set lo up",
			"-n "+space+" addr add "+n.address(i).String()+"/24 dev eth0",
			"-n "+space+" link set eth0 up",
		)
	}
	for _, c := range commands {
		if err := run(ctx, "ip", strings.Fields(c)...); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *network) bridge() string           { return fmt.Sprintf("br%d", n.number) }
func (n *network) space(node string) string { return fmt.Sprintf("net%d-%s", n.number, node) }

// host is the address of the bridge, where all namespaces reach this process.
func (n *network) host() netip.Addr { return netip.AddrFrom4([4]byte{10, 99, byte(n.number), 254}) }

// address is that of the node with an index.
func (n *network) address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 99, byte(n.number), byte(i + 1)})
}

// close removes the namespaces, with all that is in them, and the bridge.
func (n *network) close(ctx context.Context) error {
	var errs []error
	for _, node := range n.nodes {
		errs = append(errs, run(ctx, "ip", "netns", "del", n.space(node)))
	}
	return errors.Join(append(errs, run(ctx, "ip", "link", "del", n.bridge()))...)
}

// inside runs a function on a thread in the namespace of a node: processes that it starts are there.
func (n *network) inside(node string, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with us
		done <- func() error {
			f, err := os.Open(filepath.Join("/run/netns", n.space(node)))
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only for its descriptor
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter the network of %s: %w", node, err)
			}
			return do()
		}()
	}()
	return <-done
}

// change changes what is lost and tells the kernel of the nodes that it is about.
func (n *network) change(ctx context.Context, edit func(), nodes ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit()
	var errs []error
	for _, node := range nodes {
		errs = append(errs, n.lockedApply(ctx, node))
	}
	return errors.Join(errs...)
}

// setCut cuts one direction, or restores it.
func (n *network) setCut(ctx context.Context, l link, cut bool) error {
	return n.change(ctx, func() { n.cut[l] = cut }, l.to)
}

// setGossip cuts gossip between two nodes, or restores it.
func (n *network) setGossip(ctx context.Context, a, b string, cut bool) error {
	return n.change(ctx, func() { n.gossip[link{a, b}], n.gossip[link{b, a}] = cut, cut }, a, b)
}

// setLoss makes a share of the packets between two nodes disappear, in both directions.
func (n *network) setLoss(ctx context.Context, a, b string, percent int) error {
	return n.change(ctx, func() { n.loss[link{a, b}], n.loss[link{b, a}] = percent, percent }, a, b)
}

// heal ends what setGossip and setLoss have done. Cuts are of the simulated cluster.
func (n *network) heal(ctx context.Context) error {
	return n.change(ctx, func() {
		clear(n.gossip)
		clear(n.loss)
	}, n.nodes...)
}

// lockedApply gives the kernel the rules for what arrives at a node, all at once.
func (n *network) lockedApply(ctx context.Context, node string) error {
	rules := n.lockedRules(node)
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(rules), &out, &out
	if err := n.inside(node, cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft for %s: %w: %s\n%s", node, err, out.String(), rules)
	}
	return nil
}

func (n *network) lockedRules(node string) string {
	var b strings.Builder
	b.WriteString("add table inet losses\ndelete table inet losses\n")
	b.WriteString("table inet losses {\n\tchain arriving {\n\t\ttype filter hook input priority 0; policy accept;\n")
	for i, from := range n.nodes {
		l, source := link{from, node}, n.address(i)
		if n.cut[l] {
			fmt.Fprintf(&b, "\t\tip saddr %s drop\n", source)
		}
		if n.gossip[l] {
			for _, field := range []string{"dport", "sport"} {
				fmt.Fprintf(&b, "\t\tip saddr %s meta l4proto { tcp, udp } th %s %d drop\n", source, field, gossipPort)
			}
		}
		if percent := n.loss[l]; percent > 0 {
			fmt.Fprintf(&b, "\t\tip saddr %s numgen random mod 100 < %d drop\n", source, percent)
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
