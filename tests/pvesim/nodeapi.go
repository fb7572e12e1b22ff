package pvesim

import (
	"context"
	"strings"
	"time"
)

func nodeRoutes(c *Cluster, add adder) {
	add(get, "/nodes", nil, c.listNodes)
	add(get, "/nodes/{node}", nil, fixed([]any{map[string]any{"name": "qemu"}, map[string]any{"name": "storage"}, map[string]any{"name": "tasks"}}))
	add(get, "/nodes/{node}/status", nodePerm("Sys.Audit"), c.nodeStatus)
	add(get, "/nodes/{node}/version", nil, c.version)
	add(get, "/nodes/{node}/network", nil, c.network)
	add(get, "/nodes/{node}/qemu", nil, c.listVMs)
	add(post, "/nodes/{node}/qemu", nil, c.create)
	add(get, "/nodes/{node}/storage", nil, c.listStorage)
	add(get, "/nodes/{node}/storage/{storage}/status", storageAny("Datastore.Audit", "Datastore.AllocateSpace"), c.storageStatus)
	add(get, "/nodes/{node}/storage/{storage}/content", storageAny("Datastore.Audit", "Datastore.AllocateSpace"), c.listContent)
	add(del, "/nodes/{node}/storage/{storage}/content/{volume}", nil, c.deleteContent)
	add(get, "/nodes/{node}/tasks", nil, c.listTasks)
	add(get, "/nodes/{node}/tasks/{upid}/status", nil, c.taskStatus)
	add(get, "/nodes/{node}/tasks/{upid}/log", nil, c.taskLog)
	add(del, "/nodes/{node}/tasks/{upid}", nil, c.stopTask)
}

func fixed(data any) func(context.Context, *request) (any, error) {
	return func(context.Context, *request) (any, error) { return data, nil }
}

func (c *Cluster) nodeEntry(via, n *Node, full bool) map[string]any {
	e := map[string]any{
		"id": "node/" + n.Name, "type": "node", "node": n.Name, "level": "", "status": "online",
		"ssl_fingerprint": fingerprint(n.cert), "maxcpu": n.cpus, "maxmem": n.memory, "maxdisk": int64(storageTotal),
	}
	if !c.tree.isOnline(via.Name, n.Name) {
		e["status"] = "offline"
		return e
	}
	if !full {
		delete(e, "maxcpu")
		delete(e, "maxmem")
		delete(e, "maxdisk")
		return e
	}
	e["cpu"], e["disk"], e["uptime"] = 0.05, int64(storageTotal/10), int(time.Since(c.workers.boot).Seconds())
	e["mem"] = c.usedMemory(n)
	return e
}

// usedMemory is the host's own and what the running VMs may take.
func (c *Cluster) usedMemory(n *Node) int64 {
	used := int64(1<<30) + n.arc
	for _, m := range c.machines.list() {
		if m.node == n && m.alive() {
			used += m.memory / 4
		}
	}
	return used
}

func (c *Cluster) listNodes(_ context.Context, rq *request) (any, error) {
	out := []any{}
	for _, n := range c.nodes {
		out = append(out, c.nodeEntry(rq.via, n, rq.who.may("/nodes/"+n.Name, "Sys.Audit")))
	}
	return out, nil
}

func (c *Cluster) nodeStatus(_ context.Context, rq *request) (any, error) {
	n := rq.node
	used := c.usedMemory(n)
	return map[string]any{
		"uptime": int(time.Since(c.workers.boot).Seconds()), "idle": 0, "loadavg": strings.Fields(loadAverage),
		"kversion": "Linux 6.14.8-2-pve", "cpu": 0.05, "wait": 0,
		"cpuinfo": map[string]any{"cpus": n.cpus, "cores": n.cpus, "sockets": 1, "model": "QEMU Virtual CPU", "mhz": "2000", "hvm": "0", "flags": "", "user_hz": 100},
		"memory":  map[string]any{"total": n.memory, "used": used, "free": n.memory - used, "available": n.memory - used},
		"swap":    map[string]any{"total": 0, "used": 0, "free": 0}, "ksm": map[string]any{"shared": 0},
		"rootfs":     map[string]any{"total": int64(storageTotal), "used": int64(storageTotal / 10), "avail": int64(storageTotal / 10 * 9), "free": int64(storageTotal / 10 * 9)},
		"pveversion": "pve-manager/" + c.cfg.Version + ".6/simulated",
	}, nil
}

func (c *Cluster) network(_ context.Context, rq *request) (any, error) {
	out := []any{}
	for _, b := range rq.node.bridges {
		if c.cfg.major() >= 8 && rq.who.checkAny("/sdn/zones/localnetwork/"+b, "SDN.Audit", "SDN.Use") != nil {
			continue
		}
		out = append(out, map[string]any{"iface": b, "type": "bridge", "active": 1, "autostart": 1, "method": "manual", "priority": 3})
	}
	return out, nil
}

func (s Storage) json() map[string]any {
	return map[string]any{
		"type": s.Type, "total": s.Total, "used": s.Total - s.Free, "avail": s.Free, "active": bit(!s.Disabled),
		"enabled": bit(!s.Disabled), "shared": bit(s.Shared), "content": strings.Join(s.Content, ","),
	}
}

// listStorage is GET /nodes/{node}/storage.
func (c *Cluster) listStorage(_ context.Context, rq *request) (any, error) {
	out := []any{}
	target := rq.param("target")
	for _, s := range c.pool.all() {
		switch {
		case !s.on(rq.node.Name),
			rq.who.checkAny("/storage/"+s.Name, "Datastore.Audit", "Datastore.AllocateSpace") != nil,
			rq.has("storage") && rq.param("storage") != s.Name,
			rq.flag("enabled") && s.Disabled,
			rq.has("content") && !anyContent(s, rq.param("content")),
			target != "" && target != rq.node.Name && (!s.Shared || !s.on(target)):
			continue
		}
		e := s.json()
		e["storage"], e["used_fraction"] = s.Name, float64(s.Total-s.Free)/float64(s.Total)
		out = append(out, e)
	}
	if rq.has("storage") && len(out) == 0 {
		return nil, paramError("storage", "No such storage.")
	}
	return out, nil
}

func anyContent(s Storage, list string) bool {
	for _, kind := range strings.Split(list, ",") {
		if s.holds(kind) {
			return true
		}
	}
	return false
}

func (c *Cluster) storageStatus(_ context.Context, rq *request) (any, error) {
	s, err := c.pool.enabled(rq.vars["storage"], rq.node.Name)
	if err != nil {
		return nil, err
	}
	return s.json(), nil
}
