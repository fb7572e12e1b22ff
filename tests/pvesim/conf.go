package pvesim

import (
	"context"
	"errors"
	"io/fs"
	"strconv"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

func itoa(n int) string { return strconv.Itoa(n) }

// loadConf reads a VM's config from the node that is asked; another node's
// VM does not exist for it.
func (c *Cluster) loadConf(n *Node, vmid int) (*vmconf.Conf, error) { return c.loadConfAs(n, n, vmid) }

// loadConfAs is loadConf with the eyes of another node.
func (c *Cluster) loadConfAs(viewer, n *Node, vmid int) (*vmconf.Conf, error) {
	b, err := c.tree.readConfAs(viewer.Name, n.Name, vmid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSuchVM(n.Name, vmid)
	}
	if err != nil {
		return nil, err
	}
	return vmconf.Parse(b), nil
}

// running returns the VM's process, nil if it does not run. The node has to
// own the VM.
func (c *Cluster) running(n *Node, vmid int) (*machine, error) {
	if _, err := c.tree.readConf(n.Name, vmid); errors.Is(err, fs.ErrNotExist) {
		return nil, dief("unable to find configuration file for VM %d on node '%s'", vmid, n.Name)
	}
	return c.machines.on(n.Name, vmid), nil
}

// saveConf writes a config back. A volume that is in use, or will be, is no
// longer an unused one.
func (c *Cluster) saveConf(n *Node, vmid int, conf *vmconf.Conf) error {
	dropUsed(conf.Main, conf.Pending)
	return c.tree.writeConf(n.Name, vmid, conf.Bytes())
}

// checkLock refuses a VM whose config has a lock.
func checkLock(conf *vmconf.Conf) error {
	if lock := conf.Main["lock"]; lock != "" {
		return dief("VM is locked (%s)", lock)
	}
	return nil
}

func checkProtection(conf *vmconf.Conf, what string) error {
	if conf.Main.Bool("protection", false) {
		return dief("%s - protection mode enabled", what)
	}
	return nil
}

const hiddenPassword = "**********"

// getConfig is GET .../config: with the pending values applied unless current=1.
func (c *Cluster) getConfig(_ context.Context, rq *request) (any, error) {
	if rq.has("snapshot") && rq.flag("current") {
		const msg = "cannot use 'snapshot' parameter with 'current'"
		return nil, paramErrors(map[string]string{"snapshot": msg, "current": msg})
	}
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	section := conf.Main
	if name := rq.param("snapshot"); name != "" {
		snap, ok := conf.Snapshots[name]
		if !ok {
			return nil, dief("snapshot '%s' does not exist", name)
		}
		return withDigest(snap, conf.Digest), nil
	}
	if !rq.flag("current") {
		section = effective(conf)
	}
	return withDigest(section, conf.Digest), nil
}

// effective is the config as it will be after the next start.
func effective(conf *vmconf.Conf) vmconf.Section {
	out := conf.Main.Clone()
	for key := range conf.PendingDelete() {
		delete(out, key)
	}
	for key, v := range conf.Pending {
		if key != "delete" {
			out[key] = v
		}
	}
	return out
}

func withDigest(s vmconf.Section, digest string) map[string]any {
	out := sectionJSON(s)
	out["digest"] = digest
	return out
}

func sectionJSON(s vmconf.Section) map[string]any {
	out := map[string]any{}
	for key, v := range s {
		if key == "cipassword" {
			v = hiddenPassword
		}
		out[key] = vmconf.Typed(key, v)
	}
	return out
}

// getPending is GET .../pending: every option with its value, the pending
// one, and whether it is about to go.
func (c *Cluster) getPending(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	deletes := conf.PendingDelete()
	out := []any{map[string]any{"key": "digest", "value": conf.Digest}}
	current, pending := sectionJSON(conf.Main), sectionJSON(conf.Pending)
	for _, key := range sortedKeys(current) {
		item := map[string]any{"key": key, "value": current[key]}
		if v, ok := pending[key]; ok {
			item["pending"] = v
		}
		if force, ok := deletes[key]; ok {
			item["delete"] = 1 + bit(force)
		}
		out = append(out, item)
	}
	for _, key := range sortedKeys(pending) {
		if _, ok := current[key]; !ok && key != "delete" {
			out = append(out, map[string]any{"key": key, "pending": pending[key]})
		}
	}
	return out, nil
}
