package pvesim

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// requestsPerConnection is how many answers pveproxy gives on one connection
// (measured: 99).
const requestsPerConnection = 99

// front is one listening API server: a node's pveproxy (TLS) or its
// pvedaemon (plain, loopback).
type front struct {
	node *Node
	addr string
	tls  *tls.Config // nil: plain

	mu     sync.Mutex // guards server
	server *http.Server
	busy   sync.WaitGroup // handlers under way
}

type connState struct{ served int }

type connKey struct{}

// open listens, on the same port as before if it was open before.
func (f *front) open(c *Cluster) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server != nil {
		return nil
	}
	ln, err := c.cfg.Network.Listen(c.ctx, "tcp", f.addr)
	if err != nil {
		return fmt.Errorf("api of %s: %w", f.node.Name, err)
	}
	f.addr = ln.Addr().String()
	if f.tls != nil {
		ln = tls.NewListener(ln, f.tls)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(f.serve),
		IdleTimeout:       c.cfg.IdleTimeout,
		ReadHeaderTimeout: c.cfg.IdleTimeout,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		BaseContext:       func(net.Listener) context.Context { return c.ctx },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, &connState{})
		},
	}
	f.server = srv
	c.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("api server ended", "node", f.node.Name, "err", err)
		}
	})
	return nil
}

func (f *front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server != nil {
		_ = f.server.Close()
		f.server = nil
	}
}

func (f *front) wait() { f.busy.Wait() }

func (f *front) serve(w http.ResponseWriter, r *http.Request) {
	f.busy.Add(1)
	defer f.busy.Done()
	conn, _ := r.Context().Value(connKey{}).(*connState)
	conn.served++
	c := f.node.cluster
	if fault := c.faults.take(r, true); fault != nil {
		c.stats.count("injected")
		answerFault(w, fault)
		return
	}
	c.faults.hooks.run(f.node.Name, r, false)
	ctx, cancel := c.untilClose(r.Context())
	defer cancel()
	data, err := c.handle(ctx, f.node, r)
	c.faults.hooks.run(f.node.Name, r, true)
	if fault := c.faults.take(r, false); fault != nil {
		answerFault(w, fault)
		return
	}
	if err != nil {
		answerError(w, asAPIError(err))
		return
	}
	answer(w, data, conn.served >= requestsPerConnection)
}

// untilClose is a context that ends with the cluster, not with the client:
// PVE carries out what it was asked whether or not the client is still there.
func (c *Cluster) untilClose(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// page is an answer with a "total" beside the data.
type page struct {
	data  any
	total int
}

func answer(w http.ResponseWriter, data any, last bool) {
	body := map[string]any{"data": data}
	if p, ok := data.(page); ok {
		body = map[string]any{"data": p.data, "total": p.total}
	}
	h := w.Header()
	h.Set("Content-Type", "application/json;charset=UTF-8")
	h.Set("Cache-Control", "max-age=0")
	h.Set("Pragma", "no-cache")
	h.Set("Server", "pve-api-daemon/3.0")
	h.Set("Connection", "Keep-Alive")
	if last {
		h.Set("Connection", "close")
	}
	b, err := json.Marshal(body)
	if err != nil {
		answerError(w, &apiError{status: http.StatusInternalServerError, message: err.Error()})
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b) // the client may be gone
}

func answerFault(w http.ResponseWriter, f *fault) {
	if f.drop {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close()
		}
		return
	}
	answerError(w, f.err)
}

// answerError writes the answer by hand: the status line carries the reason,
// and the connection ends with it.
func answerError(w http.ResponseWriter, e *apiError) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, e.message, e.status)
		return
	}
	defer func() { _ = conn.Close() }()
	reason, _, _ := strings.Cut(e.message, "\n")
	body := e.body()
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", e.status, reason)
	fmt.Fprintf(&b, "Cache-Control: max-age=0\r\nConnection: close\r\nDate: %s\r\nPragma: no-cache\r\nServer: pve-api-daemon/3.0\r\n",
		time.Now().UTC().Format(http.TimeFormat))
	if len(body) > 0 {
		b.WriteString("Content-Type: application/json;charset=UTF-8\r\n")
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(body))
	b.Write(body)
	_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write(b.Bytes()) // the client may be gone
}

func (e *apiError) body() []byte {
	if e.noBody {
		return nil
	}
	msg := e.message
	if e.status != http.StatusNotImplemented {
		msg = strings.TrimRight(msg, "\n") + "\n"
	}
	out := map[string]any{"data": nil, "message": msg}
	if e.params != nil {
		out["errors"] = e.params
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	return b
}

// maxBody is the largest body pveproxy takes (512 KiB).
const maxBody = 512 * 1024

// readBody reads the whole body, so that an answer can be written by hand.
func readBody(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if len(b) > maxBody {
		return nil, &apiError{status: http.StatusNotImplemented, message: "for data too large"}
	}
	if len(b) > 0 && (r.Method == http.MethodGet || r.Method == http.MethodDelete) {
		return nil, &apiError{status: http.StatusNotImplemented, message: "Unexpected content for method '" + r.Method + "'"}
	}
	return b, nil
}

// requestStats counts what the API was asked.
type requestStats struct {
	mu     sync.Mutex // guards counts
	counts map[string]int
}

func (s *requestStats) count(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[key]++
}

func (s *requestStats) snapshot() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// sortedKeys is for output that does not change from run to run.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
