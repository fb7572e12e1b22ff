package pvesim

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

// schemaLog keeps the requests that PVE would have refused for their form.
type schemaLog struct {
	mu   sync.Mutex // guards list
	list []string
}

func (l *schemaLog) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := fmt.Sprintf(format, args...); !slices.Contains(l.list, s) {
		l.list = append(l.list, s)
	}
}

// loadSchema reads Config.SchemaFile.
func (c *Cluster) loadSchema() error {
	if c.cfg.SchemaFile == "" {
		return nil
	}
	s, err := schema.Load(c.cfg.SchemaFile)
	if err != nil {
		return fmt.Errorf("pvesim: %w", err)
	}
	c.schema = s
	return nil
}

// Schema says against which schema requests are checked.
func (c *Cluster) Schema() string {
	if c.schema == nil {
		return "requests are not checked (set PVE_API_SCHEMA to a file like 9.1.json)"
	}
	return "requests are checked against " + c.schema.String()
}

// SchemaErrors lists the requests that did not fit PVE's schema: unknown
// paths and parameters, wrong types, missing parameters. Each of them was
// answered as PVE does, too.
func (c *Cluster) SchemaErrors() []string {
	c.broken.mu.Lock()
	defer c.broken.mu.Unlock()
	return slices.Clone(c.broken.list)
}

// ForgetSchemaErrors is for tests that send nonsense on purpose.
func (c *Cluster) ForgetSchemaErrors() {
	c.broken.mu.Lock()
	defer c.broken.mu.Unlock()
	c.broken.list = nil
}

func (c *Cluster) checkSchema(rq *request) error {
	if c.schema == nil {
		return nil
	}
	if !c.schema.Has(rq.method, rq.route.tmpl) {
		c.broken.add("%s %s: PVE %s has no such call", rq.method, rq.route.tmpl, c.cfg.Version)
		return c.notImplemented(rq)
	}
	params := url.Values{}
	maps.Copy(params, rq.params)
	for k, v := range rq.vars {
		params.Set(k, v)
	}
	errs := c.schema.Check(rq.method, rq.route.tmpl, params)
	if errs == nil {
		return nil
	}
	for _, k := range sortedKeys(errs) {
		c.broken.add("%s %s: %s: %q", rq.method, rq.route.tmpl, k, errs[k])
	}
	return paramErrors(errs)
}

// schemaMiss notes a call that the simulation does not have.
func (c *Cluster) schemaMiss(rq *request) {
	if c.schema == nil {
		return
	}
	if tmpl, ok := c.schema.Match(rq.method, rq.path); ok {
		c.broken.add("%s %s: not simulated", rq.method, tmpl)
		return
	}
	c.broken.add("%s %s: PVE %s has no such call", rq.method, rq.path, c.cfg.Version)
}
