package capacity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a node: an /etc/pve, a /proc, a /sys, and what a Source asks beside them.
type host struct {
	t       *testing.T
	etc     string
	watcher *pmxcfs.Watcher
	gone    error // why there is no World
	running map[int]bool
	making  []Making
	flags   struct{ cordoned, draining bool }
	log     bytes.Buffer
	cfg     Config
}

// newHost makes node pve1, which owns the VMs given by their configs; lines are joined with newlines.
func newHost(t *testing.T, proc string, vms map[int]string) *host {
	t.Helper()
	h := &host{t: t, etc: t.TempDir(), running: map[int]bool{}}
	var ids []string
	for id, conf := range vms {
		h.write(fmt.Sprintf("nodes/pve1/qemu-server/%d.conf", id), conf)
		ids = append(ids, fmt.Sprintf(`"%d":{"node":"pve1","type":"qemu","version":%d}`, id, id))
	}
	h.write("nodes/pve2/qemu-server/200.conf", "memory: 4096\nname: elsewhere\ntags: a;b\n")
	ids = append(ids, `"200":{"node":"pve2","type":"qemu","version":1}`, `"201":{"node":"pve1","type":"lxc","version":1}`)
	h.write(".vmlist", `{"version":1,"ids":{`+strings.Join(ids, ",")+`}}`)
	h.write(".version", `{"starttime":1700000000,"clinfo":1,"vmlist":1}`)
	h.write("storage.cfg", "dir: local\n\tpath /var/lib/vz\n")
	h.quorum(1)
	h.watcher = pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(h.etc), Node: "pve1"})
	h.look()
	h.cfg = Config{
		Node: "pve1", ProcDir: proc, SysDir: t.TempDir(), World: h.world,
		Running:  func(vmid int) bool { return h.running[vmid] },
		Making:   func() []Making { return h.making },
		Cordoned: func() bool { return h.flags.cordoned }, Draining: func() bool { return h.flags.draining },
		Log: slog.New(slog.NewTextHandler(&h.log, nil)),
	}
	h.sys("class/net/lo/operstate")
	return h
}

func (h *host) world() (*pmxcfs.World, error) {
	if h.gone != nil {
		return nil, h.gone
	}
	return h.watcher.World()
}

// look makes the watcher see what was written.
func (h *host) look() {
	h.t.Helper()
	if err := h.watcher.Refresh(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) quorum(n int) {
	h.t.Helper()
	h.write(".members", fmt.Sprintf(`{"nodename":"pve1","version":2,"cluster":{"name":"c","version":2,"nodes":2,"quorate":%d},`+
		`"nodelist":{"pve1":{"id":1,"online":1,"ip":"192.0.2.1"},"pve2":{"id":2,"online":1,"ip":"192.0.2.2"}}}`, n))
}

func (h *host) write(name, text string) { put(h.t, filepath.Join(h.etc, name), text) }

func (h *host) sys(name string) { put(h.t, filepath.Join(h.cfg.SysDir, name), "\n") }

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// api answers as PVE does, or fails.
type api struct {
	mu       sync.Mutex // guards what follows
	calls    int
	storages []pve.Storage
	err      error
}

func (a *api) Storages(_ context.Context, node string) ([]pve.Storage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	if node != "pve1" {
		return nil, fmt.Errorf("asked for node %q", node)
	}
	return a.storages, a.err
}

func (a *api) Version(context.Context) (pve.Version, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return pve.Version{Version: "9.1.2"}, a.err
}

func (a *api) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

func (a *api) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}
