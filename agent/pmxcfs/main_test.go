package pmxcfs

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// cluster is a directory kept as pmxcfs keeps /etc/pve: every change moves the counters that it moves there.
type cluster struct {
	t       testing.TB
	root    string
	start   int64
	counter uint64 // of .vmlist and of single guests
	clinfo  uint64
	storage uint64
	side    uint64 // of all files beside the guests' configs together
	guests  map[int]Guest
	online  map[string]bool
	quorate bool
}

// newCluster makes a cluster of nodes pve1, pve2 and pve3 with the recorded storage.cfg.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{
		t: t, root: t.TempDir(), start: 1000, counter: 1, clinfo: 1, storage: 1, side: 1, quorate: true,
		guests: map[int]Guest{}, online: map[string]bool{"pve1": true, "pve2": true, "pve3": true},
	}
	for node := range c.online {
		for _, dir := range []string{"qemu-server", "lxc"} {
			c.check(os.MkdirAll(filepath.Join(c.root, "nodes", node, dir), 0o755))
		}
	}
	c.write("storage.cfg", string(testdata(t, "storage.cfg")))
	c.write("corosync.conf", "totem {}\n")
	c.sync()
	return c
}

func (c *cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) path(name string) string { return filepath.Join(c.root, name) }

// write replaces a file as pmxcfs does: nobody sees half of it.
func (c *cluster) write(name, content string) {
	c.t.Helper()
	c.check(os.WriteFile(c.path(".new"), []byte(content), 0o644))
	c.check(os.Rename(c.path(".new"), c.path(name)))
}

// sync writes .vmlist, .members and .version from the cluster's state.
func (c *cluster) sync() {
	c.t.Helper()
	list := map[string]any{"version": c.counter}
	if len(c.guests) > 0 {
		ids := map[string]any{}
		for id, g := range c.guests {
			ids[strconv.Itoa(id)] = g
		}
		list["ids"] = ids
	}
	c.write(".vmlist", c.json(list))
	nodes, i := map[string]any{}, 0
	for _, node := range slices.Sorted(maps.Keys(c.online)) {
		i++
		nodes[node] = map[string]any{"id": i, "online": number(c.online[node]), "ip": "10.77.0.1"}
	}
	c.write(".members", c.json(map[string]any{
		"nodename": "pve1", "version": c.clinfo, "nodelist": nodes,
		"cluster": map[string]any{"name": "pvelab", "version": 3, "nodes": len(nodes), "quorate": number(c.quorate)},
	}))
	var sides strings.Builder
	for _, name := range sideFiles {
		fmt.Fprintf(&sides, `"%s":%d,`, name, c.side)
	}
	c.write(".version", fmt.Sprintf(`{"starttime":%d,"clinfo":%d,"vmlist":%d,"storage.cfg":%d,%s"kvstore":{"pve1":{"tasklist":5}}}`,
		c.start, c.clinfo, c.counter, c.storage, &sides))
}

func (c *cluster) json(v any) string {
	raw, err := json.Marshal(v)
	c.check(err)
	return string(raw)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *cluster) register(node, typ string, id int) {
	c.counter++
	c.guests[id] = Guest{Node: node, Type: typ, Version: c.counter}
}

// put writes a VM's config, new or not.
func (c *cluster) put(node string, id int, conf string) {
	c.t.Helper()
	c.write(confName(TypeQEMU, node, id), conf)
	c.register(node, TypeQEMU, id)
	c.sync()
}

// move takes a config to another node's directory; as another file, since that is what a name in pmxcfs is.
func (c *cluster) move(id int, to string) {
	c.t.Helper()
	from := confName(TypeQEMU, c.guests[id].Node, id)
	conf, err := os.ReadFile(c.path(from))
	c.check(err)
	c.write(confName(TypeQEMU, to, id), string(conf))
	c.check(os.Remove(c.path(from)))
	c.register(to, TypeQEMU, id)
	c.sync()
}

// remove deletes a VM.
func (c *cluster) remove(id int) {
	c.t.Helper()
	c.check(os.Remove(c.path(confName(TypeQEMU, c.guests[id].Node, id))))
	delete(c.guests, id)
	c.counter++
	c.sync()
}

// restart starts all counters again, as a restarted pmxcfs does.
func (c *cluster) restart() {
	c.t.Helper()
	c.start += 100
	c.counter, c.clinfo, c.storage = 0, 1, 1
	for id, g := range c.guests {
		c.register(g.Node, g.Type, id)
	}
	c.sync()
}

func (c *cluster) watcher(change ...func(*WatchConfig)) *Watcher {
	cfg := WatchConfig{Tree: Open(c.root), Node: "pve1", Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	return NewWatcher(cfg)
}

// eventually waits for a condition of the real world.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
