package snippet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secret is what must be in files and nowhere else.
const secret = "#cloud-config\npassword: top-secret\n"

// world is a cluster of three nodes with real files: one tree of configs and records, and for each node its own storages.
type world struct {
	t       *testing.T
	dir     string
	watch   time.Duration
	records *record.Store
	log     logText
	nodes   map[string]*node

	mu      sync.Mutex // guards what follows
	version int
	offline map[string]bool
	quorate bool
	vms     map[int]string // by number: the node
	cfg     string         // of storages; NODE is a node's name, DIR the directory of all
}

type node struct {
	*Store
	name    string
	watcher *pmxcfs.Watcher
	service *Service

	mu     sync.Mutex // guards what follows
	down   bool       // its agent does not answer
	lies   bool       // what it sends is not what it has
	answer error      // what it answers to everything
	asked  int
	heard  chan struct{}
	stop   func()
}

const plainCfg = "dir: local\n\tpath DIR/NODE/vz\n\tcontent images,snippets\n\ndir: shared\n\tpath DIR/shared\n\tcontent snippets\n\tshared 1\n"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), watch: time.Second, offline: map[string]bool{}, quorate: true, vms: map[int]string{}, cfg: plainCfg, nodes: map[string]*node{}}
	for _, name := range []string{"pve1", "pve2", "pve3"} {
		for _, d := range []string{"nodes/" + name + "/qemu-server", "nodes/" + name + "/lxc", "priv", "shared", name + "/vz", name + "/etc"} {
			w.must(os.MkdirAll(filepath.Join(w.dir, d), 0o755))
		}
		for _, d := range []string{"nodes", "priv"} {
			w.must(os.Symlink(filepath.Join(w.dir, d), filepath.Join(w.dir, name, "etc", d)))
		}
		w.write(name+"/etc/corosync.conf", "totem {}\n")
	}
	w.records = record.New(record.Config{Dir: filepath.Join(w.dir, "priv/pve-rigaud")})
	w.publish()
	for _, name := range []string{"pve1", "pve2", "pve3"} {
		w.boot(name)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	w.must(os.WriteFile(path+".new", []byte(text), 0o600))
	w.must(os.Rename(path+".new", path))
}

// publish writes what pmxcfs tells.
func (w *world) publish() {
	w.t.Helper()
	w.version++
	list, ids := map[string]any{}, map[string]any{}
	for i, name := range []string{"pve1", "pve2", "pve3"} {
		list[name] = map[string]any{"id": i + 1, "online": map[bool]int{false: 1}[w.offline[name]], "ip": fmt.Sprintf("192.0.2.%d", i+1)}
	}
	for id, node := range w.vms {
		ids[strconv.Itoa(id)] = map[string]any{"node": node, "type": "qemu", "version": w.version}
	}
	for _, name := range []string{"pve1", "pve2", "pve3"} {
		w.write(name+"/etc/storage.cfg", strings.NewReplacer("DIR", w.dir, "NODE", name).Replace(w.cfg))
		for file, v := range map[string]any{
			".vmlist": map[string]any{"version": w.version, "ids": ids},
			".members": map[string]any{
				"nodename": name, "version": w.version, "nodelist": list,
				"cluster": map[string]any{"name": "c", "version": 1, "nodes": 3, "quorate": map[bool]int{true: 1}[w.quorate]},
			},
			".version": map[string]any{"starttime": 1, "clinfo": w.version, "vmlist": w.version, "storage.cfg": w.version},
		} {
			raw, err := json.Marshal(v)
			w.must(err)
			w.write(name+"/etc/"+file, string(raw))
		}
	}
}

// change changes the cluster; every agent sees it within a second.
func (w *world) change(f func()) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.publish()
}

// vm writes the config of a VM.
func (w *world) vm(id int, node, conf string) {
	w.t.Helper()
	w.change(func() {
		w.vms[id] = node
		w.write(fmt.Sprintf("nodes/%s/qemu-server/%d.conf", node, id), conf)
	})
}

func (w *world) removeVM(id int) {
	w.t.Helper()
	w.change(func() {
		w.must(os.Remove(filepath.Join(w.dir, "nodes", w.vms[id], "qemu-server", fmt.Sprintf("%d.conf", id))))
		delete(w.vms, id)
	})
}

// boot makes the agent of a node anew; nothing runs.
func (w *world) boot(name string) *node {
	w.t.Helper()
	n := &node{name: name, heard: make(chan struct{})}
	n.watcher = pmxcfs.NewWatcher(pmxcfs.WatchConfig{
		Tree: pmxcfs.Open(filepath.Join(w.dir, name, "etc")), Node: name, Interval: w.watch, MaxAge: max(5*time.Second, 2*w.watch),
	})
	w.must(n.watcher.Refresh(w.t.Context()))
	n.Store = New(Config{
		Node: name, Watcher: n.watcher, Records: w.records, Heard: func() <-chan struct{} { return n.heard },
		Call: func(ctx context.Context, to, method string, req, resp proto.Message) error {
			return w.call(ctx, name, to, method, req, resp)
		},
		Log: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name),
	})
	n.service = NewService(n.Store, func(ctx context.Context) (string, bool) {
		caller, ok := ctx.Value(callerKey{}).(string)
		return caller, ok
	})
	w.nodes[name] = n
	return n
}

// logText is what all agents log.
type logText struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type callerKey struct{}

// call is what forward.Forwarder.Call does: what does not answer is a *forward.PeerError, and answers begin with the
// node's name.
func (w *world) call(ctx context.Context, from, to, method string, req, resp proto.Message) error {
	n := w.nodes[to]
	n.mu.Lock()
	down, lies, answer := n.down, n.lies, n.answer
	n.asked++
	n.mu.Unlock()
	late := func() error { return status.FromContextError(ctx.Err()).Err() }
	if ctx.Err() != nil {
		return late()
	}
	if down {
		return &forward.PeerError{Node: to, Err: errors.New("no answer within 700ms")}
	}
	if answer != nil {
		return answer
	}
	err := n.watcher.Refresh(ctx) // as if it ran
	if ctx.Err() != nil {
		return late()
	}
	w.must(err)
	ctx = context.WithValue(ctx, callerKey{}, from)
	var got proto.Message
	switch rq := req.(type) {
	case *peerpb.PutSnippetRequest:
		got, err = n.service.PutSnippet(ctx, rq)
	case *peerpb.GetSnippetRequest:
		got, err = n.service.GetSnippet(ctx, rq)
	default:
		err = status.Error(codes.Unimplemented, method)
	}
	if err != nil {
		return status.Error(status.Code(err), to+": "+status.Convert(err).Message())
	}
	proto.Merge(resp, got)
	if sent, ok := resp.(*peerpb.GetSnippetResponse); ok && lies {
		sent.Content = []byte("something else")
	}
	return nil
}

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) calls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// run runs the agent of a node until the test ends, or its stop is called.
func (w *world) run(n *node) {
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	for _, run := range []func(context.Context) error{n.watcher.Run, n.Run} {
		tasks.Go(func() {
			if err := run(ctx); err != nil {
				w.t.Error(err)
			}
		})
	}
	n.stop = sync.OnceFunc(func() {
		cancel()
		tasks.Wait()
	})
	w.t.Cleanup(n.stop)
}

// have are the snippets on a storage of a node, in order.
func (w *world) have(dir string) []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, dir, "snippets"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	w.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// everywhere are the nodes that have a file on local.
func (w *world) everywhere(data string) (nodes string) {
	w.t.Helper()
	for _, name := range []string{"pve1", "pve2", "pve3"} {
		if slices.Contains(w.have(name+"/vz"), fileOf([]byte(data))) {
			nodes += name + " "
		}
	}
	return strings.TrimSpace(nodes)
}

func (w *world) path(name, data string) string {
	return filepath.Join(w.dir, name, "vz/snippets", fileOf([]byte(data)))
}

// put puts a file where an agent would have, of some age.
func (w *world) put(name, data string, age time.Duration) string {
	w.t.Helper()
	path := w.path(name, data)
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path, []byte(data), 0o600))
	w.age(path, age)
	return path
}

func (w *world) age(path string, age time.Duration) {
	w.t.Helper()
	then := time.Now().Add(-age)
	w.must(os.Chtimes(path, then, then))
}

// keptQuiet checks that nothing in the log, and in these errors, has the secret.
func (w *world) keptQuiet(errs ...error) {
	w.t.Helper()
	if text := w.log.String() + fmt.Sprint(errs); strings.Contains(text, "top-secret") {
		w.t.Errorf("the secret is told: %s", text)
	}
}
