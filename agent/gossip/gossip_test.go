package gossip

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// nodes is /etc/pve with nothing but nodes in it: by name, whether each is online.
type nodes map[string]bool

// watch returns a watcher of pve1 that has read the tree once.
func (n nodes) watch(t *testing.T, quorate bool) (*pmxcfs.Watcher, string) {
	t.Helper()
	root := t.TempDir()
	list := map[string]any{}
	for name, online := range n {
		list[name] = map[string]any{"id": 1, "online": map[bool]int{true: 1}[online], "ip": "127.77.0." + name[len(name)-1:]}
		for _, kind := range []string{"qemu-server", "lxc"} {
			if err := os.MkdirAll(filepath.Join(root, "nodes", name, kind), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for file, content := range map[string]any{
		".version": map[string]any{"starttime": 1, "clinfo": 1, "vmlist": 1, "storage.cfg": 1},
		".vmlist":  map[string]any{"version": 1, "ids": map[string]any{}},
		".members": map[string]any{
			"nodename": "pve1", "version": 1, "nodelist": list,
			"cluster": map[string]any{"name": "c", "version": 1, "nodes": len(n), "quorate": map[bool]int{true: 1}[quorate]},
		},
	} {
		raw, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"priv"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "storage.cfg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(root), Node: "pve1", MaxAge: time.Hour})
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, root
}

func config(w *pmxcfs.Watcher, root string) Config {
	return Config{
		Node: "pve1", Version: "test", Protocol: cluster.Protocols{Min: 1, Max: 1}, Watcher: w,
		Bind: ":7946", KeyFile: filepath.Join(root, "priv", "pve-rigaud", "gossip.key"), Service: ":9443",
		Digest: func() view.Digest { return view.Digest{} }, Facts: func() view.Facts { return view.Facts{} },
		Log: slog.New(slog.DiscardHandler),
	}
}

func TestWithoutConfigurationEverythingIsInMembers(t *testing.T) {
	w, root := nodes{"pve1": true, "pve2": true, "pve3": false}.watch(t, true)
	g := New(config(w, root))
	c, err := g.clusterConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Bind.String(); got != "127.77.0.1:7946" {
		t.Errorf("bind %s", got)
	}
	if got := c.Self.Address.String(); got != "127.77.0.1:9443" {
		t.Errorf("service %s", got)
	}
	seeds := c.Seeds()
	if len(seeds) != 1 || seeds[0].Name != "pve2" || seeds[0].AddrPort.String() != "127.77.0.2:7946" {
		t.Errorf("seeds %v: the others that are online", seeds)
	}
}

func TestConfiguredAddresses(t *testing.T) {
	w, root := nodes{"pve1": true}.watch(t, true)
	cfg := config(w, root)
	cfg.Bind, cfg.Advertise, cfg.Join = "127.0.0.9:1", "192.0.2.1:2", []string{"192.0.2.2:3"}
	cfg.Service, cfg.ServiceAdvertise = "127.0.0.9:4", "192.0.2.1:5"
	c, err := New(cfg).clusterConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Bind.String() != "127.0.0.9:1" || c.Advertise.String() != "192.0.2.1:2" || c.Self.Address.String() != "192.0.2.1:5" {
		t.Errorf("%v, %v, %v", c.Bind, c.Advertise, c.Self.Address)
	}
	if seeds := c.Seeds(); len(seeds) != 1 || seeds[0].AddrPort.String() != "192.0.2.2:3" {
		t.Errorf("seeds %v", seeds)
	}
}

// TestAddress: an agent that gossip has not heard of is looked for at its node; one that is offline is not asked.
func TestAddress(t *testing.T) {
	w, root := nodes{"pve1": true, "pve2": true, "pve3": false}.watch(t, true)
	g := New(config(w, root))
	for node, want := range map[string]string{"pve2": "127.77.0.2:9443", "pve3": "", "pve9": ""} {
		if got, ok := g.Address(node); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", node, got, ok)
		}
	}
	blind, root := nodes{"pve1": true, "pve2": false}.watch(t, false)
	if got, _ := New(config(blind, root)).Address("pve2"); got != "127.77.0.2:9443" {
		t.Errorf("without quorum who is offline is not known, so %q", got)
	}
}

// TestGossipBegins: the task makes the key, listens, and knows itself.
func TestGossipBegins(t *testing.T) {
	w, root := nodes{"pve1": true}.watch(t, true)
	cfg := config(w, root)
	cfg.Bind = "127.0.0.1:0"
	g := New(cfg)
	if p := g.Peers(); p != nil {
		t.Errorf("peers before the beginning: %v", p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if _, ok := g.agent("pve1"); ok {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("no gossip")
		}
	}
	if q := g.Quorate(); len(q) != 0 {
		t.Errorf("others with quorum: %v", q)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
