package pvesim

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// pools are the cluster's resource pools. They live in user.cfg, with users,
// tokens and what these may do.
type pools struct {
	c *Cluster

	mu   sync.Mutex // guards what follows, and the writing of user.cfg
	list map[string]*pool
	of   map[int]string // pool of a VM
}

type pool struct {
	comment  string
	storages map[string]bool
}

func newPools(c *Cluster) *pools { return &pools{c: c, list: map[string]*pool{}, of: map[int]string{}} }

// AddPool adds an empty pool.
func (c *Cluster) AddPool(id string) error {
	return c.pools.change(func() error {
		c.pools.list[id] = &pool{storages: map[string]bool{}}
		return nil
	})
}

// PoolMembers returns the VMs of a pool, in order.
func (c *Cluster) PoolMembers(id string) []int {
	c.pools.mu.Lock()
	defer c.pools.mu.Unlock()
	return c.pools.lockedMembers(id)
}

func (p *pools) exists(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list[id] != nil
}

func (p *pools) poolOf(vmid int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[vmid]
}

func (p *pools) lockedMembers(id string) []int {
	var out []int
	for vmid, pool := range p.of {
		if pool == id {
			out = append(out, vmid)
		}
	}
	slices.Sort(out)
	return out
}

// change changes the pools and writes user.cfg, if the cluster has a tree yet.
func (p *pools) change(do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	if p.c.ctx == nil {
		return nil
	}
	return p.c.tree.writeFile("user.cfg", p.lockedText(), 0o640)
}

// addVM puts a new VM into a pool. Like PVE it passes over one that is gone.
func (p *pools) addVM(vmid int, id string) error {
	return p.change(func() error {
		if p.list[id] != nil {
			p.of[vmid] = id
		}
		return nil
	})
}

// removeVM takes a VM that is gone out of its pool.
func (p *pools) removeVM(vmid int) error {
	if p.poolOf(vmid) == "" {
		return nil
	}
	return p.change(func() error {
		delete(p.of, vmid)
		return nil
	})
}

// lockedText is user.cfg. Every list of privileges is a role of its own.
func (p *pools) lockedText() []byte {
	users, tokens := p.c.accounts.all()
	var b, roles, acls strings.Builder
	known := map[string]string{} // privileges to role
	grant := func(id string, acl ACL) {
		for _, path := range sortedKeys(acl) {
			privs := strings.Join(slices.Sorted(slices.Values(acl[path])), ",")
			if known[privs] == "" {
				known[privs] = fmt.Sprintf("Role%d", len(known)+1)
				fmt.Fprintf(&roles, "role:%s:%s:\n", known[privs], privs)
			}
			fmt.Fprintf(&acls, "acl:1:%s:%s:%s:\n", path, id, known[privs])
		}
	}
	for _, user := range sortedKeys(users) {
		fmt.Fprintf(&b, "user:%s:1:0::::::\n", user)
		if user != RootUser { // is always an administrator
			grant(user, users[user].acl)
		}
		for _, token := range sortedKeys(tokens) {
			if strings.HasPrefix(token, user+"!") {
				fmt.Fprintf(&b, "token:%s:0:1::\n", token)
				grant(token, tokens[token].acl)
			}
		}
	}
	b.WriteString("\n\n")
	for _, id := range sortedKeys(p.list) {
		var members []string
		for _, vmid := range p.lockedMembers(id) {
			members = append(members, itoa(vmid))
		}
		slices.Sort(members) // as texts, as in PVE
		fmt.Fprintf(&b, "pool:%s:%s:%s:%s:\n", id, p.list[id].comment, strings.Join(members, ","),
			strings.Join(sortedKeys(p.list[id].storages), ","))
	}
	b.WriteString("\n" + roles.String() + "\n" + acls.String())
	return []byte(b.String())
}

// all returns copies of the accounts.
func (a *accounts) all() (users, tokens map[string]account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.users), maps.Clone(a.tokens)
}

func poolRoutes(c *Cluster, add adder) {
	perm := func(privs ...string) func(*request) error {
		return func(rq *request) error { return rq.who.check("/pool/"+rq.param("poolid"), privs...) }
	}
	add(get, "/pools", nil, c.listPools)
	add(post, "/pools", perm("Pool.Allocate"), c.createPool)
	add(get, "/pools/{poolid}", perm("Pool.Audit"), c.getPool)
	add(put, "/pools/{poolid}", perm("Pool.Allocate"), c.updatePool)
	add(del, "/pools/{poolid}", perm("Pool.Allocate"), c.deletePool)
	if c.cfg.major() < 8 {
		return
	}
	// Pools in pools came with PVE 8, and with them the name as a parameter.
	add(put, "/pools", perm("Pool.Allocate"), c.updatePool)
	add(del, "/pools", perm("Pool.Allocate"), c.deletePool)
}

// listPools is GET /pools; with poolid it has the pool's members.
func (c *Cluster) listPools(_ context.Context, rq *request) (any, error) {
	if id := rq.param("poolid"); id != "" {
		e, err := c.poolEntry(rq, id)
		if err != nil {
			return nil, err
		}
		e["poolid"] = id
		return []any{e}, nil
	}
	c.pools.mu.Lock()
	defer c.pools.mu.Unlock()
	out := []any{}
	for _, id := range sortedKeys(c.pools.list) {
		if rq.who.root() || rq.who.acl.has("/pool/"+id, "Pool.Audit") {
			e := map[string]any{"poolid": id}
			if comment := c.pools.list[id].comment; comment != "" {
				e["comment"] = comment
			}
			out = append(out, e)
		}
	}
	return out, nil
}

// getPool is GET /pools/{poolid}.
func (c *Cluster) getPool(_ context.Context, rq *request) (any, error) {
	return c.poolEntry(rq, rq.param("poolid"))
}

func (c *Cluster) poolEntry(rq *request, id string) (map[string]any, error) {
	if !c.pools.exists(id) {
		return nil, dief("pool '%s' does not exist", id)
	}
	members := []any{}
	kind := rq.param("type")
	if kind == "" || kind == "qemu" {
		for _, e := range c.vmResources(&request{c: c, via: rq.via, node: rq.via, who: rootPrincipal}) {
			if vm, ok := e.(map[string]any); ok && vm["pool"] == id {
				members = append(members, vm)
			}
		}
	}
	c.pools.mu.Lock()
	defer c.pools.mu.Unlock()
	p := c.pools.list[id]
	if p == nil {
		return nil, dief("pool '%s' does not exist", id)
	}
	if kind == "" || kind == "storage" {
		for _, name := range sortedKeys(p.storages) {
			members = append(members, map[string]any{"id": "storage/" + rq.via.Name + "/" + name, "type": "storage", "storage": name, "node": rq.via.Name})
		}
	}
	out := map[string]any{"members": members}
	if p.comment != "" {
		out["comment"] = p.comment
	}
	return out, nil
}

// createPool is POST /pools.
func (c *Cluster) createPool(_ context.Context, rq *request) (any, error) {
	if err := c.needQuorum(rq.node); err != nil {
		return nil, err
	}
	id := rq.param("poolid")
	return nil, c.pools.change(func() error {
		if c.pools.list[id] != nil {
			return dief("create pool failed: pool '%s' already exists", id)
		}
		if parent, _, ok := cutLast(id, "/"); ok && c.pools.list[parent] == nil {
			return dief("create pool failed: parent '%s' of pool '%s' does not exist", parent, id)
		}
		c.pools.list[id] = &pool{comment: rq.param("comment"), storages: map[string]bool{}}
		return nil
	})
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// deletePool is DELETE /pools/{poolid}.
func (c *Cluster) deletePool(_ context.Context, rq *request) (any, error) {
	if err := c.needQuorum(rq.node); err != nil {
		return nil, err
	}
	id := rq.param("poolid")
	return nil, c.pools.change(func() error {
		p := c.pools.list[id]
		if p == nil {
			return dief("delete pool failed: pool '%s' does not exist", id)
		}
		if vms := c.pools.lockedMembers(id); len(vms) > 0 {
			return dief("delete pool failed: pool '%s' is not empty (contains VM %d)", id, vms[0])
		}
		if storages := sortedKeys(p.storages); len(storages) > 0 {
			return dief("delete pool failed: pool '%s' is not empty (contains storage '%s')", id, storages[0])
		}
		delete(c.pools.list, id)
		return nil
	})
}

// updatePool is PUT /pools: members come or, with delete, go.
func (c *Cluster) updatePool(_ context.Context, rq *request) (any, error) {
	if err := c.needQuorum(rq.node); err != nil {
		return nil, err
	}
	vms, storages := vmconf.SplitList(rq.param("vms")), vmconf.SplitList(rq.param("storage"))
	for _, id := range vms {
		if err := rq.mayModify("/vms/" + id); err != nil {
			return nil, err
		}
	}
	for _, name := range storages {
		if err := rq.mayModify("/storage/" + name); err != nil {
			return nil, err
		}
	}
	id := rq.param("poolid")
	return nil, c.pools.change(func() error {
		p := c.pools.list[id]
		if p == nil {
			return dief("update pools failed: pool '%s' does not exist", id)
		}
		// All or nothing: the file is written at the end.
		of, held := maps.Clone(c.pools.of), maps.Clone(p.storages)
		for _, vm := range vms {
			if err := changeMember(rq, of, atoi(vm), id); err != nil {
				return dief("update pools failed: %s", err)
			}
		}
		for _, name := range storages {
			if held[name] != rq.flag("delete") {
				return dief("update pools failed: Storage '%s' is %s a pool member", name, map[bool]string{true: "already", false: "not"}[held[name]])
			}
			held[name] = !rq.flag("delete")
		}
		maps.DeleteFunc(held, func(_ string, in bool) bool { return !in })
		c.pools.of, p.storages = of, held
		if rq.has("comment") {
			p.comment = url.PathEscape(rq.param("comment"))
		}
		return nil
	})
}

// mayModify is check_perm_modify: who may change permissions on a path.
func (rq *request) mayModify(path string) error {
	if kind := strings.Split(path, "/")[1]; kind == "storage" {
		return rq.who.checkAny(path, "Permissions.Modify", "Datastore.Allocate")
	}
	return rq.who.checkAny(path, "Permissions.Modify", "VM.Allocate")
}

func changeMember(rq *request, of map[int]string, vmid int, id string) error {
	now := of[vmid]
	switch {
	case rq.flag("delete") && now != id:
		return fmt.Errorf("VM %d is not a pool member", vmid)
	case rq.flag("delete"):
		delete(of, vmid)
		return nil
	case now == id:
		return fmt.Errorf("VM %d is already a pool member", vmid)
	case now != "" && !rq.flag("allow-move"):
		return fmt.Errorf("VM %d belongs already to pool '%s' and 'allow-move' is not set", vmid, now)
	case now != "":
		if err := rq.who.check("/pool/"+now, "Pool.Allocate"); err != nil {
			return &apiError{status: http.StatusForbidden, message: err.Error()}
		}
	}
	of[vmid] = id
	return nil
}
