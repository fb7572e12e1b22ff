package pvesim

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// request is one call of the API.
type request struct {
	c      *Cluster
	via    *Node // whose API was asked
	node   *Node // who carries it out
	who    principal
	method string
	path   string // without /api2/json
	route  *route
	vars   map[string]string // from the path
	params url.Values        // query and body
	pool   string            // of a VM that is about to be made
}

func (rq *request) param(name string) string {
	if v, ok := rq.vars[name]; ok {
		return v
	}
	return rq.params.Get(name)
}

func (rq *request) has(name string) bool { return rq.params.Has(name) }

func (rq *request) flag(name string) bool { return rq.params.Get(name) == "1" }

func (rq *request) number(name string, def int) int {
	n, err := strconv.Atoi(rq.params.Get(name))
	if err != nil {
		return def
	}
	return n
}

// vmid is the number in the path. handle has checked it.
func (rq *request) vmid() int {
	n, err := strconv.Atoi(rq.vars["vmid"])
	if err != nil {
		return 0
	}
	return n
}

func (rq *request) vmPath() string { return "/vms/" + rq.vars["vmid"] }

// vmCheck wants privileges on the VM; those on the pool that a new one goes
// into are as good.
func (rq *request) vmCheck(privs ...string) error {
	if rq.pool != "" && rq.who.may("/pool/"+rq.pool, privs...) {
		return nil
	}
	return rq.who.check(rq.vmPath(), privs...)
}

// vmCheckAny is vmCheck for one of the privileges.
func (rq *request) vmCheckAny(privs ...string) error {
	if rq.pool != "" && rq.who.checkAny("/pool/"+rq.pool, privs...) == nil {
		return nil
	}
	return rq.who.checkAny(rq.vmPath(), privs...)
}

// rootOnly refuses options that only root@pam may use.
func (rq *request) rootOnly(names ...string) error {
	for _, name := range names {
		if v := rq.params.Get(name); v != "" && v != "0" && !rq.who.root() {
			return paramError(name, "Only root may use this option.")
		}
	}
	return nil
}

// handle carries out one call.
func (c *Cluster) handle(ctx context.Context, via *Node, r *http.Request) (any, error) {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/api2/json")
	if !ok {
		return nil, &apiError{status: http.StatusNotFound, message: fmt.Sprintf("no such file '%s'", r.URL.Path), noBody: true}
	}
	path = "/" + strings.Trim(path, "/")
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	who, err := c.accounts.authenticate(r, path)
	if err != nil {
		c.stats.count("401")
		c.pause(ctx, c.cfg.AuthDelay)
		return nil, err
	}
	who.pools = c.pools
	rq := &request{c: c, via: via, node: via, who: who, method: r.Method, path: path}
	if rq.params, err = parseParams(r, body); err != nil {
		return nil, err
	}
	return c.dispatch(ctx, rq)
}

func (c *Cluster) dispatch(ctx context.Context, rq *request) (any, error) {
	rq.route, rq.vars = c.match(rq.method, rq.path)
	if rq.route == nil {
		c.stats.count("501 " + rq.method + " " + rq.path)
		c.schemaMiss(rq)
		return nil, c.notImplemented(rq)
	}
	c.stats.count(rq.method + " " + rq.route.tmpl)
	for name, v := range rq.vars {
		if rq.params.Has(name) && rq.params.Get(name) != v {
			return nil, paramError(name, "duplicate parameter (already defined in URI) with conflicting values!")
		}
	}
	if rq.route.perm != nil {
		if err := rq.route.perm(rq); err != nil {
			return nil, err
		}
	}
	if err := c.proxy(ctx, rq); err != nil {
		return nil, err
	}
	if err := c.checkParams(rq); err != nil {
		return nil, err
	}
	return rq.route.run(ctx, rq)
}

func (c *Cluster) notImplemented(rq *request) error {
	return &apiError{
		status:  http.StatusNotImplemented,
		message: fmt.Sprintf("Method '%s %s' not implemented", rq.method, rq.path),
	}
}

// proxy finds the node that carries the call out. PVE sends it on to that
// node's pveproxy; here the nodes share a process.
func (c *Cluster) proxy(ctx context.Context, rq *request) error {
	name, ok := rq.vars["node"]
	if !ok || name == rq.via.Name || name == "localhost" {
		return nil
	}
	node, ok := c.byName[name]
	if !ok {
		return dief("hostname lookup '%s' failed - failed to get address info for: %s: Temporary failure in name resolution", name, name)
	}
	rq.node = node
	return c.reach(ctx, rq.via.Name, name)
}

// checkParams checks the parameters against the schema; without one it looks
// at the number of the VM alone.
func (c *Cluster) checkParams(rq *request) error {
	if v, ok := rq.vars["vmid"]; ok && c.schema == nil {
		if _, err := strconv.Atoi(v); err != nil {
			return paramError("vmid", "type check ('integer') failed - got '%s'", v)
		}
	}
	return c.checkSchema(rq)
}

func parseParams(r *http.Request, body []byte) (url.Values, error) {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, message: "unable to parse query: " + err.Error()}
	}
	if len(body) == 0 {
		return params, nil
	}
	ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch strings.TrimSpace(ct) {
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, &apiError{status: http.StatusBadRequest, message: "unable to parse body: " + err.Error()}
		}
		for k, v := range form {
			params[k] = v
		}
	case "application/json":
		if err := jsonParams(params, body); err != nil {
			return nil, err
		}
	default:
		return nil, &apiError{status: http.StatusNotImplemented, message: "upload not supported"}
	}
	return params, nil
}

func jsonParams(params url.Values, body []byte) error {
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		return &apiError{status: http.StatusBadRequest, message: "malformed JSON string: " + err.Error()}
	}
	for k, v := range m {
		params.Del(k)
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, x := range list {
			params.Add(k, jsonText(x))
		}
	}
	return nil
}

func jsonText(v any) string {
	switch x := v.(type) {
	case bool:
		return strconv.Itoa(bit(x))
	case float64:
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}
