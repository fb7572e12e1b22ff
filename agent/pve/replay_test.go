package pve

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// exchange is one recorded request and its answer.
type exchange struct {
	title, method, path string
	params              url.Values
	status              int
	reason, body        string
	task, log           string // answers of the task's /status and /log
}

// recorded reads a file of testdata/recorded.
func recorded(t testing.TB, name string) []exchange {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "recorded", name))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(raw), "\n#### ")
	var all []exchange
	for block := range strings.SplitSeq(text, "\n#### ") {
		all = append(all, parseExchange(t, strings.Split(strings.TrimRight(block, "\n"), "\n")))
	}
	if len(all) == 0 {
		t.Fatalf("%s holds nothing", name)
	}
	return all
}

func parseExchange(t testing.TB, lines []string) exchange {
	t.Helper()
	e := exchange{title: lines[0]}
	parts := strings.SplitN(lines[1], " ", 3)
	e.method, e.path = parts[0], parts[1]
	var err error
	if e.params, err = url.ParseQuery(parts[2]); err != nil {
		t.Fatalf("%s: %v", e.title, err)
	}
	if _, err := fmt.Sscanf(lines[2], "-> %d", &e.status); err != nil {
		t.Fatalf("%s: %v", e.title, err)
	}
	e.reason = strings.TrimPrefix(lines[2], fmt.Sprintf("-> %d ", e.status))
	for _, l := range lines[3:] {
		if task, ok := strings.CutPrefix(l, "task "); ok {
			e.task = task
		} else if log, ok := strings.CutPrefix(l, "log "); ok {
			e.log = log
		} else {
			e.body = l
		}
	}
	return e
}

// upid is the UPID in the body.
func (e exchange) upid(t testing.TB) UPID {
	t.Helper()
	var b struct{ Data UPID }
	if err := json.Unmarshal([]byte(e.body), &b); err != nil {
		t.Fatal(err)
	}
	return b.Data
}

// writeRaw answers with a status line that carries PVE's text, which net/http itself would not write, and behaves
// with the connection as PVE does.
func writeRaw(w http.ResponseWriter, status int, reason, body string) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		panic("the server's writer is no Hijacker")
	}
	conn, buf, err := hijacker.Hijack()
	if err != nil {
		panic(err)
	}
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\nServer: pve-api-daemon/3.0\r\nConnection: close\r\n", status, reason)
	if body != "" {
		head += fmt.Sprintf("Content-Type: application/json;charset=UTF-8\r\nContent-Length: %d\r\n", len(body))
	}
	_, _ = buf.WriteString(head + "\r\n" + body)
	_ = buf.Flush()
	_ = conn.Close()
}

// answer writes a recorded answer.
func (e exchange) answer(w http.ResponseWriter) {
	if e.status >= 400 {
		writeRaw(w, e.status, e.reason, e.body)
		return
	}
	_, _ = io.WriteString(w, e.body)
}

// replay is a server that answers as recorded, and reports what was never recorded.
func replay(t testing.TB, all ...exchange) *Client {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/api2/json")
		_ = r.ParseForm()
		for _, e := range all {
			if e.method == r.Method && e.path == path && sameValues(e.params, r.Form) {
				e.answer(w)
				return
			}
			if u, rest, ok := strings.Cut(path, ":/"); ok && e.task != "" && r.Method == http.MethodGet && strings.HasSuffix(u+":", string(e.upid(t))) {
				_, _ = io.WriteString(w, map[string]string{"status": e.task, "log": e.log}[rest])
				return
			}
		}
		t.Errorf("not recorded: %s %s %v", r.Method, path, r.Form)
		http.Error(w, "not recorded", http.StatusTeapot)
	})
}

func sameValues(a, b url.Values) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
}

const (
	testToken  = "virtrigaud@pve!agent"
	testSecret = "5e0c2a52-d1a9-4bb4-9a2c-5b6c1f0f4f0e"
)

// serve starts a server and a client of it.
func serve(t testing.TB, h http.HandlerFunc, with ...func(*Config)) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return client(t, srv.URL, with...)
}

func client(t testing.TB, endpoint string, with ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{Endpoint: endpoint, TokenID: testToken, TokenSecret: testSecret}
	for _, f := range with {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// pipes is a network inside the process: a synctest bubble can wait for it, so that its time can pass.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.done:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept is part of net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close is part of net.Listener.
func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr is part of net.Listener.
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// serveBubble is serve for use inside synctest.Test; stop ends the server and the client's connections.
func serveBubble(t testing.TB, h http.HandlerFunc, with ...func(*Config)) (c *Client, stop func()) {
	t.Helper()
	p := newPipes()
	var handlers atomic.Int32
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Add(-1)
		h(w, r)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(p) }()
	cfg := Config{Endpoint: "http://127.0.0.1:85", TokenID: testToken, TokenSecret: testSecret, Dial: p.dial}
	for _, f := range with {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, func() {
		c.Close()
		_ = srv.Close()
		<-served
		// Close waits for no handler, and those of some tests take their (the bubble's) time.
		for synctest.Wait(); handlers.Load() > 0; synctest.Wait() {
			time.Sleep(time.Second)
		}
	}
}

// rawServer speaks TCP itself: each connection is given to a function with its number, from 1.
func rawServer(t testing.TB, each func(n int, conn net.Conn, r *bufio.Reader)) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				each(n, conn, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return "http://" + l.Addr().String()
}

// readRequest reads one request, or returns nil when the connection ends.
func readRequest(r *bufio.Reader) *http.Request {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, req.Body)
	return req
}

// writeLast answers and says that the connection ends.
func writeLast(w io.Writer, status, body string) {
	_, _ = io.WriteString(w, "HTTP/1.1 "+status+"\r\nConnection: close\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
}

func writeOK(w io.Writer, body string) {
	_, _ = io.WriteString(w, "HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
}

func ok(w http.ResponseWriter, body string) { _, _ = io.WriteString(w, body) }
