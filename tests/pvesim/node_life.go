package pvesim

import (
	"context"
	"errors"
)

// errPowerLoss is why the work of a node ends in the middle.
var errPowerLoss = errors.New("power loss")

// powerOn begins the node's life.
func (n *Node) powerOn() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.life, n.die = context.WithCancelCause(n.cluster.ctx)
}

func (n *Node) powerOff() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.die(errPowerLoss)
}

// alive ends when the node loses its power, and with the cluster.
func (n *Node) alive() context.Context {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// power calls the hooks of OnPower.
func (c *Cluster) power(node string, on bool) {
	c.ring.mu.Lock()
	hooks := c.ring.onPower
	c.ring.mu.Unlock()
	for _, hook := range hooks {
		hook(node, on)
	}
}

// KillNode takes a node's power: its API is gone, its VMs and tasks are dead,
// its /etc/pve is an empty directory, the others see it offline. Its own files
// stay. HA takes its VMs over after Config.FencingDelay. Killing a dead node
// does nothing.
func (c *Cluster) KillNode(node string) error {
	n := c.byName[node]
	if n == nil {
		return c.known(node)
	}
	if n.alive().Err() != nil {
		return nil
	}
	c.power(node, false)
	// First it cannot write: nothing that dies slowly leaves traces.
	errs := []error{c.change(func(r *ring) { r.off[node] = true })}
	n.powerOff()
	n.proxy.close()
	n.daemon.close()
	for _, m := range c.machines.list() {
		if m.node == n {
			errs = append(errs, killMachine(m))
		}
	}
	if err := n.unmount(c.base); err != nil {
		c.log.Warn("a dead node's /etc/pve is in use", "node", node, "err", err)
	}
	return errors.Join(errs...)
}

// ReviveNode gives a node its power back. Its pmxcfs starts with what the node
// had when it died, without quorum and with new counters; after
// Config.CorosyncDelay it is one of the cluster again and sees what is. No VM
// is started. Reviving a node that lives does nothing.
func (c *Cluster) ReviveNode(node string) error {
	n := c.byName[node]
	if n == nil {
		return c.known(node)
	}
	if n.alive().Err() == nil {
		return nil
	}
	n.powerOn()
	err := errors.Join(c.boot(n), c.mountView(c.ctx, n), n.proxy.open(c), n.daemon.open(c))
	c.power(node, true)
	return errors.Join(err, c.change(func(*ring) {}))
}

// boot is the moment when the node is there and knows nobody yet, and nobody
// knows it.
func (c *Cluster) boot(n *Node) error {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	delete(c.ring.off, n.Name)
	for _, other := range c.ring.names {
		if other != n.Name {
			c.ring.apart[[2]string{n.Name, other}] = true
		}
	}
	return errors.Join(c.tree.restart(n.Name), c.lockedSettle())
}

// SetOnline is ReviveNode or KillNode.
func (c *Cluster) SetOnline(node string, on bool) error {
	if on {
		return c.ReviveNode(node)
	}
	return c.KillNode(node)
}
