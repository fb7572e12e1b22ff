package pvesim

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// HARule is one rule of ha/rules.cfg (PVE 9): about nodes if it has Nodes, else about guests.
type HARule struct {
	ID        string
	Resources []int          // VMs
	Nodes     map[string]int // with priorities
	Strict    bool           // only those nodes
	Affinity  string         // "positive" or "negative"
	Disable   bool
}

// HAGroup is one group of ha/groups.cfg (PVE 7 and 8).
type HAGroup struct {
	ID         string
	Nodes      map[string]int // with priorities
	Restricted bool           // only those nodes
	VMs        []int          // that are put into it; all are put under HA's care
}

// SetHARules replaces ha/rules.cfg. Nothing in the simulated cluster follows
// the rules: no VM is moved, and no migration is refused.
func (c *Cluster) SetHARules(rules ...HARule) error {
	var b strings.Builder
	for _, r := range rules {
		kind := "resource-affinity"
		if len(r.Nodes) > 0 {
			kind = "node-affinity"
		}
		fmt.Fprintf(&b, "%s: %s\n", kind, r.ID)
		if r.Disable {
			b.WriteString("\tdisable\n")
		}
		if len(r.Nodes) > 0 {
			fmt.Fprintf(&b, "\tnodes %s\n", haNodes(r.Nodes))
		} else {
			fmt.Fprintf(&b, "\taffinity %s\n", r.Affinity)
		}
		fmt.Fprintf(&b, "\tresources %s\n", haSIDs(r.Resources))
		if r.Strict {
			b.WriteString("\tstrict 1\n")
		}
		b.WriteString("\n")
	}
	return c.tree.writeFile("ha/rules.cfg", []byte(b.String()), 0o640)
}

// SetHAGroups replaces ha/groups.cfg. Nothing follows them either.
func (c *Cluster) SetHAGroups(groups ...HAGroup) error {
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "group: %s\n\tnodes %s\n\tnofailback 0\n\trestricted %d\n\n", g.ID, haNodes(g.Nodes), bit(g.Restricted))
		for _, vmid := range g.VMs {
			if err := c.haEdit(vmid, func(p map[string]string) { p["group"] = g.ID }, false); err != nil {
				return err
			}
		}
	}
	return c.tree.writeFile("ha/groups.cfg", []byte(b.String()), 0o640)
}

// haNodes is a list of nodes as PVE writes it.
func haNodes(nodes map[string]int) string {
	var out []string
	for _, name := range sortedKeys(nodes) {
		if p := nodes[name]; p != 0 {
			name = fmt.Sprintf("%s:%d", name, p)
		}
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

func haSIDs(vmids []int) string {
	var out []string
	for _, vmid := range vmids {
		out = append(out, "vm:"+itoa(vmid))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// SetMaintenance puts a node into HA's maintenance mode, or ends it, as
// "ha-manager crm-command node-maintenance" does. VMs stay where they are.
func (c *Cluster) SetMaintenance(node string, on bool) error {
	if err := c.known(node); err != nil {
		return err
	}
	c.ha.mu.Lock()
	defer c.ha.mu.Unlock()
	if c.ha.maintenance == nil {
		c.ha.maintenance = map[string]bool{}
	}
	c.ha.maintenance[node] = on
	return c.lockedManagerStatus()
}

// lockedManagerStatus writes what the HA manager knows.
func (c *Cluster) lockedManagerStatus() error {
	master := c.ring.names[0]
	states, requests, services := map[string]string{}, map[string]any{}, map[string]any{}
	for _, name := range c.ring.names {
		switch {
		case c.ha.maintenance[name]:
			states[name], requests[name] = "maintenance", map[string]int{"maintenance": 1}
		case c.tree.isOnline(master, name):
			states[name] = "online"
		default:
			states[name] = "unknown"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.ha.maintenance)) {
		if !c.ha.maintenance[name] {
			requests[name] = map[string]int{}
		}
	}
	for _, e := range c.haEntries() {
		if owner, ok := c.tree.owner(e.vmid); ok && e.props["state"] != "ignored" {
			services["vm:"+itoa(e.vmid)] = map[string]any{"node": owner, "state": "started", "uid": "S3jDsQ/UqXTgZSW8RAZgnA"}
		}
	}
	text, err := json.Marshal(map[string]any{
		"master_node": master, "node_request": requests, "node_status": states, "service_status": services, "timestamp": time.Now().Unix(),
	})
	if err != nil {
		return fmt.Errorf("ha/manager_status: %w", err)
	}
	return c.tree.writeFile("ha/manager_status", text, 0o640)
}
