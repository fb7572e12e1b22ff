package pvesim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// haState is what the HA manager would remember beside its files.
type haState struct {
	mu          sync.Mutex // guards what follows, the resources file and the manager's status
	place       map[int]string
	maintenance map[string]bool // by node; false: it was, and is over
}

// haEntry is one "vm:" section of ha/resources.cfg.
type haEntry struct {
	vmid  int
	props map[string]string
}

func (c *Cluster) haPath() string { return filepath.Join(c.tree.root, "ha", "resources.cfg") }

func (c *Cluster) haEntries() []haEntry {
	b, err := os.ReadFile(c.haPath())
	if err != nil {
		return nil
	}
	var out []haEntry
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "vm:"); ok && line[0] != '\t' && line[0] != ' ' {
			out = append(out, haEntry{vmid: atoi(strings.TrimSpace(id)), props: map[string]string{}})
			continue
		}
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && len(out) > 0 {
			out[len(out)-1].props[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func (c *Cluster) haWrite(entries []haEntry) error {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "vm: %d\n", e.vmid)
		for _, k := range sortedKeys(e.props) {
			fmt.Fprintf(&b, "\t%s %s\n", k, e.props[k])
		}
		b.WriteString("\n")
	}
	return c.tree.writeFile("ha/resources.cfg", []byte(b.String()), 0o640)
}

func (c *Cluster) haFind(vmid int) (haEntry, bool) {
	for _, e := range c.haEntries() {
		if e.vmid == vmid {
			return e, true
		}
	}
	return haEntry{}, false
}

func (c *Cluster) haConfigured(vmid int) bool {
	_, ok := c.haFind(vmid)
	return ok
}

// haManaged says whether HA starts and stops the VM. A resource in state
// "ignored" is left alone.
func (c *Cluster) haManaged(vmid int) bool {
	e, ok := c.haFind(vmid)
	return ok && e.props["state"] != "ignored"
}

func (c *Cluster) haState(vmid int) (string, bool) {
	e, ok := c.haFind(vmid)
	if !ok {
		return "", false
	}
	if s := e.props["state"]; s != "" {
		return s, true
	}
	return "started", true
}

// haEdit changes one entry; del removes it.
func (c *Cluster) haEdit(vmid int, edit func(props map[string]string), del bool) error {
	c.ha.mu.Lock()
	defer c.ha.mu.Unlock()
	entries, found := c.haEntries(), false
	var next []haEntry
	for _, e := range entries {
		if e.vmid == vmid {
			found = true
			if del {
				continue
			}
			edit(e.props)
		}
		next = append(next, e)
	}
	if !found && !del {
		e := haEntry{vmid: vmid, props: map[string]string{}}
		edit(e.props)
		next = append(next, e)
	}
	return c.haWrite(next)
}

func (c *Cluster) haRemove(vmid int) error { return c.haEdit(vmid, nil, true) }

// AddHA puts a VM under HA's care, in a state ("started", "stopped", "ignored").
func (c *Cluster) AddHA(vmid int, state string) error {
	return c.haEdit(vmid, func(p map[string]string) { p["state"] = state }, false)
}

// HAMove lets the next start by HA happen on another node; the VM is moved there.
func (c *Cluster) HAMove(vmid int, node string) {
	c.ha.mu.Lock()
	defer c.ha.mu.Unlock()
	if c.ha.place == nil {
		c.ha.place = map[int]string{}
	}
	c.ha.place[vmid] = node
}

// haTask files a request: the task is OK at once, the HA manager acts later.
func (c *Cluster) haTask(rq *request, kind, state, verb string) string {
	vmid := rq.vmid()
	return c.fork(rq.node.Name, kind, itoa(vmid), rq.who, work{run: func(_ context.Context, t *Task) error {
		t.logf("Requesting HA %s for VM %d", verb, vmid)
		if err := c.needQuorum(rq.node); err != nil {
			return err
		}
		if err := c.AddHA(vmid, state); err != nil {
			return err
		}
		c.wg.Go(func() { c.haAct(vmid, state) })
		return nil
	}})
}

// haAct is the local resource manager doing what the state asks for.
func (c *Cluster) haAct(vmid int, state string) {
	c.pause(c.ctx, c.cfg.HADelay)
	owner, ok := c.tree.owner(vmid)
	if !ok || c.ctx.Err() != nil {
		return
	}
	c.ha.mu.Lock()
	target := c.ha.place[vmid]
	if state == "started" {
		delete(c.ha.place, vmid)
	}
	c.ha.mu.Unlock()
	if state != "started" {
		c.fork(owner, "qmshutdown", itoa(vmid), rootPrincipal, c.stopWork(c.byName[owner], vmid, stopRequest{shutdown: true, force: true}))
		return
	}
	if target != "" && target != owner && c.machines.on(owner, vmid) == nil {
		if err := c.MoveVM(vmid, target); err != nil {
			c.log.Warn("HA move", "vmid", vmid, "err", err)
			return
		}
		owner = target
	}
	c.fork(owner, "qmstart", itoa(vmid), rootPrincipal, c.startWork(c.byName[owner], vmid))
}

func (e haEntry) json() map[string]any {
	out := map[string]any{"sid": "vm:" + itoa(e.vmid), "type": "vm"}
	for k, v := range e.props {
		out[k] = v
	}
	return out
}

func (c *Cluster) haList(context.Context, *request) (any, error) {
	out := []any{}
	for _, e := range c.haEntries() {
		out = append(out, e.json())
	}
	return out, nil
}

// haSID reads "vm:100" or "100".
func haSID(sid string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(sid, "vm:"))
	if err != nil {
		return 0, paramError("sid", "invalid format - unable to parse HA resource ID '%s'\n", sid)
	}
	return n, nil
}

func (c *Cluster) haGet(_ context.Context, rq *request) (any, error) {
	vmid, err := haSID(rq.vars["sid"])
	if err != nil {
		return nil, err
	}
	e, ok := c.haFind(vmid)
	if !ok {
		return nil, dief("no such resource 'vm:%d'", vmid)
	}
	return e.json(), nil
}

func (c *Cluster) haAdd(_ context.Context, rq *request) (any, error) {
	vmid, err := haSID(rq.param("sid"))
	if err != nil {
		return nil, err
	}
	if err := c.needQuorum(rq.via); err != nil {
		return nil, err
	}
	if c.haConfigured(vmid) {
		return nil, dief("resource ID 'vm:%d' already defined", vmid)
	}
	return nil, c.haChange(rq, vmid)
}

func (c *Cluster) haSet(_ context.Context, rq *request) (any, error) {
	vmid, err := haSID(rq.vars["sid"])
	if err != nil {
		return nil, err
	}
	if err := c.needQuorum(rq.via); err != nil {
		return nil, err
	}
	if !c.haConfigured(vmid) {
		return nil, dief("no such resource 'vm:%d'", vmid)
	}
	return nil, c.haChange(rq, vmid)
}

func (c *Cluster) haChange(rq *request, vmid int) error {
	err := c.haEdit(vmid, func(p map[string]string) {
		for _, k := range []string{"state", "comment", "group", "max_relocate", "max_restart"} {
			if rq.has(k) {
				p[k] = rq.param(k)
			}
		}
	}, false)
	if state := rq.param("state"); err == nil && (state == "started" || state == "stopped") {
		c.wg.Go(func() { c.haAct(vmid, state) })
	}
	return err
}

func (c *Cluster) haDelete(_ context.Context, rq *request) (any, error) {
	vmid, err := haSID(rq.vars["sid"])
	if err != nil {
		return nil, err
	}
	if err := c.needQuorum(rq.via); err != nil {
		return nil, err
	}
	if !c.haConfigured(vmid) {
		return nil, dief("cannot delete service 'vm:%d', not HA managed!", vmid)
	}
	return nil, c.haRemove(vmid)
}

func (c *Cluster) haStatus(_ context.Context, rq *request) (any, error) {
	out := []any{map[string]any{"id": "quorum", "type": "quorum", "node": rq.via.Name, "quorate": bit(c.tree.isQuorate(rq.via.Name)), "status": "OK"}}
	for _, e := range c.haEntries() {
		owner, _ := c.tree.owner(e.vmid)
		state, _ := c.haState(e.vmid)
		out = append(out, map[string]any{"id": "service:vm:" + itoa(e.vmid), "type": "service", "sid": "vm:" + itoa(e.vmid), "node": owner, "state": state, "status": state})
	}
	return out, nil
}
