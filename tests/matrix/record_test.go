package matrix

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// recorder keeps the calls that change something, with their parameters.
type recorder struct {
	mu    sync.Mutex // guards calls
	calls []call
}

// call is a call of PVE's API: what it does to what, and its parameters.
type call struct {
	what   string
	params map[string]string
}

// hook is for pvesim's BeforeRequest.
func (r *recorder) hook(_ string, rq *http.Request) {
	if rq.Method == http.MethodGet {
		return
	}
	body, err := io.ReadAll(rq.Body)
	if err != nil {
		body = []byte("unreadable=" + url.QueryEscape(err.Error()))
	}
	rq.Body = io.NopCloser(bytes.NewReader(body))
	query := rq.URL.RawQuery
	if len(body) > 0 {
		query = string(body)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		values = url.Values{"unreadable": {err.Error()}}
	}
	c := call{what: rq.Method + " " + strings.TrimPrefix(rq.URL.Path, "/api2/json/nodes/pve1"), params: map[string]string{}}
	for k := range values {
		c.params[k] = values.Get(k)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
}

// take returns the calls since the last time.
func (r *recorder) take() []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// volatile is what differs from run to run.
var volatile = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`(?i)BC:24:11:[0-9A-F:]{8}`), "MAC"},
	{regexp.MustCompile(`pve-rigaud-[0-9a-f]{32}`), "pve-rigaud-HASH"},
	{regexp.MustCompile(`\b1\d{4}(-[0-9a-f]{8})?\b`), "VMID"},
}

// steady replaces what differs from run to run.
func steady(text string) string {
	for _, v := range volatile {
		text = v.pattern.ReplaceAllString(text, v.text)
	}
	return text
}

// lines are the calls as text, one line for each and one for each of its parameters.
func (c call) lines() []string {
	out := []string{steady(c.what)}
	for _, k := range slices.Sorted(maps.Keys(c.params)) {
		if k != "digest" {
			out = append(out, steady(fmt.Sprintf("  %s = %s", k, c.params[k])))
		}
	}
	return out
}

// against are the calls as they differ from those of the base: parameters that are other or more, and with a '-' those
// that are missing; calls that the base does not make stand there whole.
func against(base, calls []call) []string {
	var out []string
	rest := slices.Clone(base)
	for _, c := range calls {
		i := slices.IndexFunc(rest, func(b call) bool { return steady(b.what) == steady(c.what) })
		if i < 0 {
			out = append(out, c.lines()...)
			continue
		}
		out = append(out, c.differs(rest[i])...)
		rest = slices.Delete(rest, i, i+1)
	}
	for _, b := range rest {
		out = append(out, "- "+steady(b.what))
	}
	return out
}

func (c call) differs(base call) []string {
	mine, theirs := c.lines()[1:], base.lines()[1:]
	var out []string
	for _, line := range mine {
		if !slices.Contains(theirs, line) {
			out = append(out, line)
		}
	}
	for k := range base.params {
		if _, has := c.params[k]; !has && k != "digest" {
			out = append(out, "  -"+k)
		}
	}
	if len(out) == 0 {
		return nil
	}
	slices.Sort(out)
	return append([]string{steady(c.what)}, out...)
}
