package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// requestLog keeps what the simulated API was asked.
type requestLog struct {
	mu   sync.Mutex // guards seen
	seen []string
}

// add notes a request with its parameters, from wherever they are, and leaves it as it was.
func (l *requestLog) add(r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = []byte("unreadable: " + err.Error())
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	params := r.URL.RawQuery
	if len(body) > 0 {
		params = string(body)
	}
	if text, err := url.QueryUnescape(params); err == nil {
		params = text
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api2/json")+"?"+params)
}

func (l *requestLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen)
}
