package pvesim

import (
	"maps"
	"slices"
	"time"
)

// lockedFence watches over nodes that the quorate part does not see: after
// Config.FencingDelay their VMs under HA are taken over. Without quorum, and
// when the node is back, the clock stops.
func (c *Cluster) lockedFence(now map[string]standing) {
	r := c.ring
	var seen []string
	for _, name := range r.names {
		if now[name].live {
			seen = now[name].members
			break
		}
	}
	for _, name := range r.names {
		if seen == nil || slices.Contains(seen, name) {
			delete(r.fencing, name)
			continue
		}
		if r.fencing[name] != 0 {
			continue
		}
		r.fences++
		id := r.fences
		r.fencing[name] = id
		if c.ctx == nil {
			continue
		}
		c.wg.Go(func() {
			if c.pause(c.ctx, c.cfg.FencingDelay); c.ctx.Err() == nil {
				c.fence(name, id)
			}
		})
	}
}

// fence makes sure that a node is dead, as its watchdog does when it has VMs
// under HA, and takes these over.
func (c *Cluster) fence(node string, id int) {
	c.ring.mu.Lock()
	due := c.ring.fencing[node] == id
	c.ring.mu.Unlock()
	lost := c.haOn(node)
	if !due || len(lost) == 0 {
		return
	}
	if err := c.KillNode(node); err != nil {
		c.log.Error("fence", "node", node, "err", err)
	}
	for _, vmid := range lost {
		c.takeOver(node, vmid)
	}
}

// haOn are the VMs that HA looks after on a node.
func (c *Cluster) haOn(node string) []int {
	var out []int
	for _, e := range c.haEntries() {
		if owner, ok := c.tree.owner(e.vmid); ok && owner == node && e.props["state"] != "ignored" {
			out = append(out, e.vmid)
		}
	}
	return out
}

// takeOver is the HA manager giving a dead node's VM to the node with the
// fewest VMs.
func (c *Cluster) takeOver(dead string, vmid int) {
	target := c.leastLoaded()
	if target == "" {
		return
	}
	if err := c.tree.moveConf(vmid, dead, target, func() { c.pause(c.ctx, time.Duration(c.gap.Load())/2) }); err != nil {
		c.log.Error("HA take-over", "vmid", vmid, "err", err)
		return
	}
	if state, ok := c.haState(vmid); ok && state == "started" {
		c.fork(target, "qmstart", itoa(vmid), rootPrincipal, c.startWork(c.byName[target], vmid))
	}
}

// leastLoaded is a node of the quorate part, "" if there is none.
func (c *Cluster) leastLoaded() string {
	_, owners := c.tree.ids()
	load := map[string]int{}
	for owner := range maps.Values(owners) {
		load[owner]++
	}
	best := ""
	for _, name := range c.Quorate() {
		if best == "" || load[name] < load[best] {
			best = name
		}
	}
	return best
}
