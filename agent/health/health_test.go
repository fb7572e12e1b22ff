package health

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a node: a tree of files and an API.
type world struct {
	*Monitor
	watcher *pmxcfs.Watcher
	client  *pve.Client
	dir     string
	nodes   atomic.Pointer[string] // answer of GET /nodes; nil: no answer at all
}

const (
	bothNodes = `{"data":[{"node":"pve1","status":"online","maxcpu":16},{"node":"pve2","status":"online","maxcpu":6}]}`
	oneNode   = `{"data":[{"node":"pve1","status":"online","maxcpu":16},{"node":"pve2","status":"offline"}]}`
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.answer(bothNodes)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		text := w.nodes.Load()
		if text == nil {
			panic(http.ErrAbortHandler)
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write([]byte(*text)) // the client may be gone
	}))
	t.Cleanup(server.Close)
	var err error
	if w.client, err = pve.New(pve.Config{Endpoint: server.URL, TokenID: "user@pve!agent", TokenSecret: "c"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.client.Close)
	w.write(t, ".version", `{"starttime":1700000000,"clinfo":1,"vmlist":1}`)
	w.write(t, ".vmlist", `{"version":1}`)
	w.write(t, "storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent images\n")
	w.quorum(t, 1)
	w.watcher = pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(w.dir), Node: "pve1"})
	w.Monitor = New(Config{PVE: w.client, Watcher: w.watcher, Interval: time.Hour, Log: slog.New(slog.DiscardHandler)})
	return w
}

func (w *world) answer(text string) { w.nodes.Store(&text) }

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) quorum(t *testing.T, n int) {
	t.Helper()
	q := map[int]string{0: "0", 1: "1"}[n]
	w.write(t, ".members", `{"nodename":"pve1","version":2,"cluster":{"name":"c","version":2,"nodes":2,"quorate":`+q+`},`+
		`"nodelist":{"pve1":{"id":1,"online":1,"ip":"192.0.2.1"},"pve2":{"id":2,"online":1,"ip":"192.0.2.2"}}}`)
}

// run runs the monitor until the test ends.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-w.Ready()
}

func (w *world) says(t *testing.T, want string) {
	t.Helper()
	got := w.Trouble()
	if want == "" && got != "" || !strings.Contains(got, want) {
		t.Errorf("trouble %q, want %q", got, want)
	}
}

func TestTrouble(t *testing.T) {
	w := newWorld(t)
	w.says(t, w.dir) // nothing is read yet
	if err := w.watcher.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	w.says(t, "")

	w.quorum(t, 0)
	if err := w.watcher.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.says(t, "node pve1 has no quorum")
	w.nodes.Store(nil)
	w.probe(t.Context())
	w.says(t, "not changed; the PVE API")
	w.says(t, "API cannot be used: ")
	w.Drain()
	w.says(t, "the agent is stopping; node pve1")
}

// TestEveryCallTells: trouble is not only what a probe has met, and is over as soon as any call succeeds.
func TestEveryCallTells(t *testing.T) {
	w := newWorld(t)
	if err := w.watcher.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	w.says(t, "")
	w.nodes.Store(nil)
	if _, err := w.client.Nodes(t.Context()); err == nil {
		t.Fatal("answered")
	}
	w.says(t, "API")
	w.answer(bothNodes)
	if _, err := w.client.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.says(t, "")
}

// TestCPUsOfANodeThatIsOff are remembered: a VM may run on it again tomorrow.
func TestCPUsOfANodeThatIsOff(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	if a, b, c := w.CPUs("pve1"), w.CPUs("pve2"), w.CPUs("pve3"); a != 16 || b != 6 || c != 0 {
		t.Errorf("%d, %d, %d CPUs", a, b, c)
	}
	w.answer(oneNode)
	w.probe(t.Context())
	if a, b := w.CPUs("pve1"), w.CPUs("pve2"); a != 16 || b != 6 {
		t.Errorf("%d, %d CPUs after pve2 went off", a, b)
	}
	w.nodes.Store(nil)
	w.probe(t.Context())
	if a := w.CPUs("pve1"); a != 16 {
		t.Errorf("%d CPUs while the API is away", a)
	}
}
