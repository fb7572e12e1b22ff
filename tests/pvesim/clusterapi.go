package pvesim

import (
	"context"
	"strconv"
)

func clusterRoutes(c *Cluster, add adder) {
	add(get, "/version", nil, c.version)
	add(get, "/access/ticket", nil, fixed(nil))
	add(post, "/access/ticket", nil, c.login)
	add(get, "/access/permissions", nil, c.permissions)
	add(get, "/access/domains", nil, fixed([]any{map[string]any{"realm": "pam", "type": "pam"}, map[string]any{"realm": "pve", "type": "pve"}}))
	add(get, "/cluster/status", rootPerm("Sys.Audit"), c.clusterStatus)
	add(get, "/cluster/resources", nil, c.resources)
	add(get, "/cluster/nextid", nil, c.nextID)
	add(get, "/cluster/tasks", nil, c.clusterTasks)
	add(get, "/cluster/options", nil, fixed(map[string]any{"keyboard": "en-us", "mac_prefix": "BC:24:11"}))
	add(get, "/cluster/ha/resources", rootPerm("Sys.Audit"), c.haList)
	add(post, "/cluster/ha/resources", rootPerm("Sys.Console"), c.haAdd)
	add(get, "/cluster/ha/resources/{sid}", rootPerm("Sys.Audit"), c.haGet)
	add(put, "/cluster/ha/resources/{sid}", rootPerm("Sys.Console"), c.haSet)
	add(del, "/cluster/ha/resources/{sid}", rootPerm("Sys.Console"), c.haDelete)
	add(get, "/cluster/ha/status/current", rootPerm("Sys.Audit"), c.haStatus)
	add(get, "/storage", nil, c.storageConfig)
	add(get, "/storage/{storage}", storageAny("Datastore.Allocate"), c.storageConfigOne)
}

func (c *Cluster) version(context.Context, *request) (any, error) {
	return map[string]any{"version": c.cfg.Version + ".6", "release": c.cfg.Version, "repoid": "14a22df35955d97d"}, nil
}

func (c *Cluster) permissions(_ context.Context, rq *request) (any, error) {
	who := rq.who
	if id := rq.param("userid"); id != "" && id != who.authID() && id != who.user {
		if err := who.check("/access", "Sys.Audit"); err != nil {
			return nil, err
		}
		c.accounts.mu.Lock()
		acc, ok := c.accounts.users[id]
		if !ok {
			acc, ok = c.accounts.tokens[id]
		}
		c.accounts.mu.Unlock()
		if !ok {
			return nil, dief("no such user ('%s')", id)
		}
		who = principal{user: id, acl: acc.acl}
	}
	return who.permissions(rq.param("path"), c.cfg.Version), nil
}

func (c *Cluster) clusterStatus(_ context.Context, rq *request) (any, error) {
	out := []any{map[string]any{
		"type": "cluster", "id": "cluster", "name": ClusterName, "version": len(c.nodes), "nodes": len(c.nodes),
		"quorate": bit(c.tree.isQuorate(rq.via.Name)),
	}}
	for _, n := range c.nodes {
		out = append(out, map[string]any{
			"type": "node", "id": "node/" + n.Name, "name": n.Name, "nodeid": n.Index + 1, "ip": n.IP.String(),
			"online": bit(c.tree.isOnline(rq.via.Name, n.Name)), "local": bit(n == rq.via), "level": "",
		})
	}
	return out, nil
}

func (c *Cluster) nextID(_ context.Context, rq *request) (any, error) {
	_, taken := c.tree.idsFor(rq.via.Name)
	if rq.has("vmid") {
		id := rq.number("vmid", 0)
		if _, ok := taken[id]; ok {
			return nil, paramError("vmid", "VM %d already exists", id)
		}
		return rq.param("vmid"), nil
	}
	for id := 100; id < 1000000; id++ {
		if _, ok := taken[id]; !ok {
			return strconv.Itoa(id), nil
		}
	}
	return nil, dief("unable to get any free VMID in range [100, 1000000]")
}

func (c *Cluster) clusterTasks(_ context.Context, rq *request) (any, error) {
	out := []any{}
	all := c.Tasks()
	for i := len(all) - 1; i >= 0 && len(out) < 25*len(c.nodes); i-- {
		if ownTask(rq, all[i], "Sys.Audit") == nil {
			out = append(out, all[i].entry())
		}
	}
	return out, nil
}

func (s Storage) config() map[string]any {
	out := map[string]any{"storage": s.Name, "type": s.Type, "shared": bit(s.Shared), "content": joined(s.Content)}
	if len(s.Nodes) > 0 {
		out["nodes"] = joined(s.Nodes)
	}
	if s.Disabled {
		out["disable"] = 1
	}
	return out
}

func (s Storage) addPath(e map[string]any, node string) {
	if !s.block() {
		e["path"] = s.dirs[node]
	}
}

func joined(list []string) string {
	out := ""
	for i, s := range list {
		if i > 0 {
			out += ","
		}
		out += s
	}
	return out
}

func (c *Cluster) storageConfig(_ context.Context, rq *request) (any, error) {
	out := []any{}
	for _, s := range c.pool.all() {
		if rq.who.checkAny("/storage/"+s.Name, "Datastore.Audit", "Datastore.AllocateSpace") == nil {
			e := s.config()
			s.addPath(e, rq.node.Name)
			out = append(out, e)
		}
	}
	return out, nil
}

func (c *Cluster) storageConfigOne(_ context.Context, rq *request) (any, error) {
	s, err := c.pool.get(rq.vars["storage"])
	if err != nil {
		return nil, err
	}
	e := s.config()
	s.addPath(e, rq.node.Name)
	return e, nil
}
