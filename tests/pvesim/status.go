package pvesim

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// basicStatus is what PVE knows of a VM without asking QEMU.
func (c *Cluster) basicStatus(n *Node, vmid int, conf *vmconf.Conf) map[string]any {
	s := conf.Main
	out := map[string]any{
		"vmid": vmid, "status": "stopped", "name": s["name"], "disk": 0, "maxdisk": 0,
		"cpus": min(s.MaxCPUs(), n.cpus), "maxmem": int64(s.MemoryMiB()) << 20,
		"uptime": 0, "cpu": 0, "mem": 0, "netin": 0, "netout": 0,
	}
	if s["name"] == "" {
		out["name"] = fmt.Sprintf("VM %d", vmid)
	}
	if d, ok := s.BootDisk(); ok {
		out["maxdisk"] = d.Size()
	}
	if v := s.Int("vcpus", 0); v > 0 {
		out["cpus"] = v
	}
	if b := s.Int("balloon", 0); b > 0 {
		out["balloon_min"] = int64(b) << 20
		out["shares"] = s.Int("shares", 1000)
	}
	if s.Bool("template", false) {
		out["template"] = 1
	}
	if s.HasSerial() {
		out["serial"] = 1
	}
	for _, key := range []string{"lock", "tags"} {
		if s[key] != "" {
			out[key] = s[key]
		}
	}
	if c.cfg.major() >= 9 {
		out["memhost"] = 0
	}
	if m := c.machines.on(n.Name, vmid); m != nil {
		c.addRunning(out, m, s)
	}
	return out
}

func (c *Cluster) addRunning(out map[string]any, m *machine, s vmconf.Section) {
	mem := int64(s.MemoryMiB()) << 20 / 4
	out["status"], out["pid"] = "running", m.proc.PID()
	out["uptime"] = int(time.Since(m.since).Seconds())
	out["mem"] = mem
	if c.cfg.major() >= 9 {
		out["memhost"] = mem
		for _, what := range []string{"cpusome", "cpufull", "iosome", "iofull", "memorysome", "memoryfull"} {
			out["pressure"+what] = 0
		}
	}
}

// currentStatus is GET .../status/current.
func (c *Cluster) currentStatus(ctx context.Context, rq *request) (any, error) {
	n, vmid := rq.node, rq.vmid()
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return nil, err
	}
	out := c.basicStatus(n, vmid, conf)
	out["qmpstatus"] = out["status"]
	if m := c.machines.on(n.Name, vmid); m != nil {
		c.addQMP(ctx, out, m, conf.Main)
	}
	out["ha"] = map[string]any{"managed": bit(c.haConfigured(vmid))}
	if conf.Main.AgentEnabled() {
		out["agent"] = 1
	}
	return out, nil
}

// addQMP adds what QEMU says. PVE asks on <vmid>.qmp, which takes one client:
// while somebody else holds it this takes 3 s and says little.
func (c *Cluster) addQMP(ctx context.Context, out map[string]any, m *machine, s vmconf.Section) {
	if !c.qmpAnswers(ctx, m) {
		return
	}
	var status struct {
		Status string `json:"status"`
	}
	if ask(ctx, m, "query-status", &status) {
		out["qmpstatus"] = status.Status
	}
	var version struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	}
	if ask(ctx, m, "query-version", &version) {
		out["running-qemu"] = fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
		out["running-machine"] = fmt.Sprintf("pc-i440fx-%d.%d+pve0", version.QEMU.Major, version.QEMU.Minor)
	}
	stats := map[string]any{}
	nics := map[string]any{}
	for _, d := range s.Drives() {
		stats[d.Key] = map[string]any{"rd_bytes": 0, "wr_bytes": 0, "rd_operations": 0, "wr_operations": 0}
	}
	for key := range s {
		if i, ok := strings.CutPrefix(key, "net"); ok && vmconf.IsNIC(key) {
			nics[fmt.Sprintf("tap%di%s", m.vmid, i)] = map[string]any{"netin": 0, "netout": 0}
		}
	}
	out["blockstat"], out["nics"], out["diskread"], out["diskwrite"] = stats, nics, 0, 0
	out["proxmox-support"] = map[string]any{}
	var balloon struct {
		Actual int64 `json:"actual"`
	}
	if s["balloon"] != "0" && ask(ctx, m, "query-balloon", &balloon) {
		out["balloon"] = balloon.Actual
		out["ballooninfo"] = map[string]any{"actual": balloon.Actual, "max_mem": out["maxmem"]}
	}
}

func ask(ctx context.Context, m *machine, command string, into any) bool {
	raw, err := m.proc.Execute(ctx, command, nil)
	return err == nil && json.Unmarshal(raw, into) == nil
}

// listVMs is GET /nodes/{node}/qemu.
func (c *Cluster) listVMs(_ context.Context, rq *request) (any, error) {
	out := []any{}
	ids, nodes := c.tree.idsFor(rq.node.Name)
	for _, id := range ids {
		if nodes[id] != rq.node.Name || !rq.who.may("/vms/"+itoa(id), "VM.Audit") {
			continue
		}
		if conf, err := c.loadConf(rq.node, id); err == nil {
			out = append(out, c.basicStatus(rq.node, id, conf))
		}
	}
	return out, nil
}

// resources is GET /cluster/resources. The real one is up to 10 s old; this
// one is not.
func (c *Cluster) resources(_ context.Context, rq *request) (any, error) {
	kind := rq.param("type")
	out := []any{}
	if kind == "" || kind == "vm" {
		out = append(out, c.vmResources(rq)...)
	}
	if kind == "" || kind == "node" {
		for _, n := range c.nodes {
			e := c.nodeEntry(rq.via, n, rq.who.may("/nodes/"+n.Name, "Sys.Audit"))
			out = append(out, e)
		}
	}
	if kind == "" || kind == "storage" {
		out = append(out, c.storageResources(rq.who)...)
	}
	return out, nil
}

func (c *Cluster) vmResources(rq *request) []any {
	var out []any
	who, via := rq.who, rq.via.Name
	ids, nodes := c.tree.idsFor(via)
	for _, id := range ids {
		n := c.byName[nodes[id]]
		if n == nil || !who.may("/vms/"+itoa(id), "VM.Audit") {
			continue
		}
		conf, err := c.loadConfAs(rq.via, n, id)
		if err != nil {
			if c.tree.isContainer(id) {
				out = append(out, map[string]any{"id": fmt.Sprintf("lxc/%d", id), "type": "lxc", "node": n.Name, "vmid": id, "status": "stopped", "template": 0})
			}
			continue // else gone meanwhile
		}
		s := c.basicStatus(n, id, conf)
		e := map[string]any{
			"id": fmt.Sprintf("qemu/%d", id), "type": "qemu", "node": n.Name, "vmid": id,
			"template": bit(conf.Main.Bool("template", false)), "maxcpu": s["cpus"], "diskread": 0, "diskwrite": 0,
		}
		for _, key := range []string{"name", "status", "maxmem", "maxdisk", "disk", "uptime", "cpu", "mem", "memhost", "netin", "netout", "lock", "tags"} {
			if v, ok := s[key]; ok {
				e[key] = v
			}
		}
		if !c.tree.isOnline(via, n.Name) {
			e = map[string]any{"id": e["id"], "type": "qemu", "node": n.Name, "vmid": id, "status": "unknown", "template": e["template"]}
		}
		if pool := c.pools.poolOf(id); pool != "" {
			e["pool"] = pool
		}
		if state, ok := c.haState(id); ok {
			e["hastate"] = state
		}
		out = append(out, e)
	}
	return out
}

func (c *Cluster) storageResources(who principal) []any {
	var out []any
	for _, s := range c.pool.all() {
		if s.Disabled || !who.may("/storage/"+s.Name, "Datastore.Audit") {
			continue
		}
		for _, n := range c.nodes {
			if s.on(n.Name) {
				out = append(out, map[string]any{
					"id": "storage/" + n.Name + "/" + s.Name, "type": "storage", "storage": s.Name, "node": n.Name,
					"status": "available", "shared": bit(s.Shared), "plugintype": s.Type, "content": strings.Join(s.Content, ","),
					"disk": s.Total - s.Free, "maxdisk": s.Total,
				})
			}
		}
	}
	return out
}
