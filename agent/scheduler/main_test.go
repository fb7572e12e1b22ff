package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gib = 1 << 30

var nodes = []string{"pve1", "pve2", "pve3"}

// here is a cluster of three equal nodes, seen by the scheduler of pve1. Its clock stands still.
type here struct {
	*testing.T
	*Scheduler
	root    string
	version int
	vms     map[int]string // VMID to node
	offline map[string]bool

	now     time.Time
	told    map[string]*view.Node // by node, what its agent has told; pve1's is what it has, but for Making
	peers   map[string]cluster.Peer
	cordons map[string]string
	unread  error // why the cordons cannot be read
	made    []record.Record
	answer  func(node, method string, req, resp proto.Message) error // of other agents

	calls sync.Mutex // guards asked
	asked []string   // the calls of other agents, in order
	log   strings.Builder
}

func newHere(t *testing.T, change ...func(*Config)) *here {
	t.Helper()
	h := &here{
		T: t, root: t.TempDir(), vms: map[int]string{}, offline: map[string]bool{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		told: map[string]*view.Node{}, peers: map[string]cluster.Peer{}, cordons: map[string]string{},
		answer: func(string, string, proto.Message, proto.Message) error { return nil },
	}
	for _, node := range nodes {
		h.must(os.MkdirAll(filepath.Join(h.root, "nodes", node, "qemu-server"), 0o700))
		h.must(os.MkdirAll(filepath.Join(h.root, "nodes", node, "lxc"), 0o700))
		h.tell(node, 0)
	}
	h.must(os.MkdirAll(filepath.Join(h.root, "ha"), 0o700))
	h.write("storage.cfg", "dir: local\n\tpath /var/lib/vz\n\nnfs: shared\n\tserver s\n\texport /e\n\tshared 1\n")
	watcher := pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(h.root), Node: "pve1", MaxAge: time.Hour})
	journal, err := ops.OpenJournal(filepath.Join(t.TempDir(), "journal.db"))
	h.must(err)
	t.Cleanup(func() { h.must(journal.Close()) })
	cfg := Config{
		Node: "pve1", Watcher: watcher, Settings: placement.Settings{MemoryReserve: gib}, Peers: h.gossip, Digest: h.digest,
		Facts: func() view.Facts {
			runtime.Gosched() // between a look at the room and what is made of it
			return h.told["pve1"].Facts
		}, CPUs: func(string) int { return 16 },
		Cordons: func(context.Context) (map[string]string, error) { return h.cordons, h.unread },
		Made:    func() ([]record.Record, error) { return h.made, nil },
		Call:    h.call, Journal: journal, Now: func() time.Time { return h.now }, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
	}
	for _, f := range change {
		f(&cfg)
	}
	h.Scheduler = New(cfg)
	h.sync()
	return h
}

func (h *here) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *here) write(name, text string) {
	h.Helper()
	h.must(os.WriteFile(filepath.Join(h.root, name), []byte(text), 0o600))
}

// sync writes the files that tell the rest, and has them read.
func (h *here) sync() {
	h.Helper()
	h.version++
	ids, members := map[string]any{}, map[string]any{}
	for id, node := range h.vms {
		ids[fmt.Sprint(id)] = map[string]any{"node": node, "type": "qemu", "version": h.version}
	}
	for i, node := range nodes {
		members[node] = map[string]any{"id": i + 1, "online": map[bool]int{false: 1}[h.offline[node]], "ip": fmt.Sprintf("192.0.2.%d", i+1)}
	}
	for name, content := range map[string]any{
		".version": map[string]any{
			"starttime": 1, "clinfo": h.version, "vmlist": h.version, "storage.cfg": 1,
			"ha/rules.cfg": h.version, "ha/resources.cfg": h.version, "ha/groups.cfg": h.version, "ha/manager_status": h.version, "user.cfg": h.version,
		},
		".vmlist": map[string]any{"version": h.version, "ids": ids},
		".members": map[string]any{
			"nodename": "pve1", "version": h.version, "nodelist": members,
			"cluster": map[string]any{"name": "c", "version": 1, "nodes": 3, "quorate": 1},
		},
	} {
		raw, err := json.Marshal(content)
		h.must(err)
		h.write(name, string(raw))
	}
	h.must(h.cfg.Watcher.Refresh(h.Context()))
}

// put puts a VM on a node, wherever it was; no node: nowhere.
func (h *here) put(id int, node, conf string) {
	h.Helper()
	if was := h.vms[id]; was != "" {
		h.must(os.Remove(filepath.Join(h.root, "nodes", was, "qemu-server", fmt.Sprintf("%d.conf", id))))
	}
	delete(h.vms, id)
	if node != "" {
		h.vms[id] = node
		h.write(fmt.Sprintf("nodes/%s/qemu-server/%d.conf", node, id), conf)
	}
	h.sync()
}

// tell lets a node have, and tell now, that so much of its 64 GiB is promised.
func (h *here) tell(node string, promised uint64) {
	n := &view.Node{
		DigestAt: h.now, Digest: view.Digest{Quorate: true, MemoryTotal: 64 * gib, MemoryPromised: promised, VCPUs: 16},
		FactsAt: h.now, Facts: view.Facts{Storages: []view.Storage{
			{Name: "local", Content: []string{"images"}, Free: 100 * gib, Total: 200 * gib},
			{Name: "shared", Content: []string{"images"}, Free: 100 * gib, Total: 200 * gib, Shared: true},
		}, Bridges: []string{"vmbr0"}},
	}
	h.told[node] = n
	h.peers[node] = cluster.Peer{Member: cluster.Member{Name: node}, Alive: true, Compatible: true}
}

// fill leaves so much room for VMs on each node.
func (h *here) fill(free ...uint64) {
	for i, node := range nodes {
		h.tell(node, 63*gib-free[i])
	}
}

func (h *here) gossip() []cluster.Peer {
	var all []cluster.Peer
	for _, node := range slices.Sorted(maps.Keys(h.peers)) {
		p := h.peers[node]
		p.State = *h.told[node]
		all = append(all, p)
	}
	return all
}

// digest counts what is being made as package capacity does.
func (h *here) digest() view.Digest {
	d := h.told["pve1"].Digest
	for _, m := range h.Making() {
		d.MemoryPromised += m.Memory
	}
	return d
}

func (h *here) call(_ context.Context, node, method string, req, resp proto.Message) error {
	h.calls.Lock()
	h.asked = append(h.asked, node+" "+method[strings.LastIndex(method, "/")+1:])
	h.calls.Unlock()
	return h.answer(node, method, req, resp)
}

func (h *here) after(d time.Duration) { h.now = h.now.Add(d) }

// vm is what a small VM wants.
func vm(name string, memory uint64) guest.Placing {
	return guest.Placing{
		Kind: ops.Create, Key: "create/me/" + name, Owner: "me", Makers: map[string]string{},
		Want: placement.Want{Name: name, Memory: memory, CPUs: 2, Disks: []placement.Disk{{Storage: "local", Content: "images", Bytes: gib}}, Bridges: []string{"vmbr0"}},
	}
}

// on limits a placing to nodes.
func on(p guest.Placing, nodes ...string) guest.Placing {
	p.Want.Only, p.Want.OnlyWhy = nodes, "the test"
	return p
}

// chosen is the node of a choice that has to succeed.
func (h *here) chosen(p guest.Placing) forward.Way {
	h.Helper()
	way, err := h.Choose(h.Context(), p)
	if err != nil {
		h.Fatalf("%s: %v", p.Want.Name, err)
	}
	return way
}

// refused checks the error of something that must not succeed.
func (h *here) refused(err error, reason fault.Reason, words ...string) {
	h.Helper()
	if err == nil || fault.Of(err) != reason {
		h.Errorf("got %v (%s), want %s", err, fault.Of(err), reason)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			h.Errorf("%q does not say %q", err, w)
		}
	}
}

// run runs the scheduler's task while f runs, and until all it has to write is written.
func (h *here) run(f func()) {
	h.Helper()
	ctx, cancel := context.WithCancel(h.Context())
	done := make(chan error)
	go func() { done <- h.Scheduler.Run(ctx) }()
	<-h.Ready()
	f()
	cancel()
	h.must(<-done)
	h.ready = make(chan struct{}) // for the next run
}

var errBroken = errors.New("broken")
