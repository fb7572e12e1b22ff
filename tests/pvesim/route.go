package pvesim

import (
	"context"
	"net/http"
	"net/url"
	"strings"
)

// route is one method of one path of the API.
type route struct {
	method string
	tmpl   string // "/nodes/{node}/qemu/{vmid}/config", as in PVE's schema
	perm   func(*request) error
	run    func(context.Context, *request) (any, error)

	parts []string
}

// vmPerm wants privileges on the VM; vmAny one of them.
func vmPerm(privs ...string) func(*request) error {
	return func(rq *request) error { return rq.who.check(rq.vmPath(), privs...) }
}

func vmAny(privs ...string) func(*request) error {
	return func(rq *request) error { return rq.who.checkAny(rq.vmPath(), privs...) }
}

func nodePerm(privs ...string) func(*request) error {
	return func(rq *request) error { return rq.who.check("/nodes/"+rq.vars["node"], privs...) }
}

func storageAny(privs ...string) func(*request) error {
	return func(rq *request) error { return rq.who.checkAny("/storage/"+rq.vars["storage"], privs...) }
}

func rootPerm(privs ...string) func(*request) error {
	return func(rq *request) error { return rq.who.check("/", privs...) }
}

// agentPerm is the privilege of the guest agent's calls; since PVE 9 it is
// not the same for all of them.
func agentPerm(since9 string) func(*request) error {
	return func(rq *request) error {
		if rq.c.cfg.major() < 9 {
			return rq.who.check(rq.vmPath(), "VM.Monitor")
		}
		return rq.who.checkAny(rq.vmPath(), since9, "VM.GuestAgent.Unrestricted")
	}
}

var configPrivileges = []string{
	"VM.Config.Disk", "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Memory",
	"VM.Config.Network", "VM.Config.HWType", "VM.Config.Options", "VM.Config.Cloudinit",
}

func clonePerm(rq *request) error {
	if err := rq.who.check(rq.vmPath(), "VM.Clone"); err != nil {
		return err
	}
	if rq.who.may("/vms/"+rq.param("newid"), "VM.Allocate") ||
		(rq.has("pool") && rq.who.may("/pool/"+rq.param("pool"), "VM.Allocate")) {
		return nil
	}
	return denied("")
}

func (c *Cluster) routeTable() []*route {
	var out []*route
	add := func(method, tmpl string, perm func(*request) error, run func(context.Context, *request) (any, error)) {
		out = append(out, &route{method: method, tmpl: tmpl, perm: perm, run: run, parts: strings.Split(tmpl, "/")})
	}
	clusterRoutes(c, add)
	nodeRoutes(c, add)
	poolRoutes(c, add)
	capabilityRoutes(c, add)
	vmRoutes(c, add)
	return out
}

type adder func(method, tmpl string, perm func(*request) error, run func(context.Context, *request) (any, error))

const (
	get  = http.MethodGet
	put  = http.MethodPut
	post = http.MethodPost
	del  = http.MethodDelete
)

// match finds the route of a path and the values in it.
func (c *Cluster) match(method, path string) (*route, map[string]string) {
	parts := strings.Split(path, "/")
	for _, r := range c.routes {
		if r.method != method {
			continue
		}
		if vars, ok := matchParts(r.parts, parts); ok {
			return r, vars
		}
	}
	return nil, nil
}

func matchParts(tmpl, parts []string) (map[string]string, bool) {
	if n := len(tmpl); tmpl[n-1] == "{volume}" && len(parts) > n {
		// The name of a volume has slashes in it and is the rest of the path.
		parts = append(parts[:n-1:n-1], strings.Join(parts[n-1:], "/"))
	}
	if len(tmpl) != len(parts) {
		return nil, false
	}
	vars := map[string]string{}
	for i, t := range tmpl {
		name, isVar := strings.CutPrefix(t, "{")
		if !isVar {
			if t != parts[i] {
				return nil, false
			}
			continue
		}
		v, err := url.PathUnescape(parts[i])
		if err != nil || v == "" {
			return nil, false
		}
		vars[strings.TrimSuffix(name, "}")] = v
	}
	return vars, true
}
