package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// crashWorld is a cluster whose nodes each take one row of the table after the other.
type crashWorld struct {
	*rig.Rig
	ctx      context.Context //nolint:containedctx // of the test
	patience time.Duration   // how long anything may take

	mu    sync.Mutex // guards all below
	rows  map[string]*crashRow
	table []string
	names int
}

// crashNodes starts a cluster with a template on each node, in which each task takes so long.
func crashNodes(t *testing.T, nodes int, kind pvesim.QEMU, slowness time.Duration) *crashWorld {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := rig.Start(ctx, rig.Config{Sim: pvesim.Config{
		Nodes: nodes, QEMU: kind, TaskDelay: slowness, AuthDelay: -1, AgentWait: 200 * time.Millisecond, PollUnit: 20 * time.Millisecond, Scan: 50 * time.Millisecond,
	}})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	w := &crashWorld{Rig: r, ctx: ctx, patience: 30 * time.Second, rows: map[string]*crashRow{}}
	t.Cleanup(func() {
		cancel()
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, e := range r.Sim.SchemaErrors() {
			t.Errorf("a request that PVE's schema does not allow: %s", e)
		}
	})
	args, err := r.Sim.Config(pvesim.TemplateID)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Sim.Nodes() {
		options := map[string]string{"template": "1", "name": crashTemplate(n.Name), "args": args["args"]}
		if err := r.Sim.AddVM(pvesim.TemplateID+100+n.Index, n.Name, options); err != nil {
			t.Fatal(err)
		}
	}
	r.Sim.Fail(func(rq *http.Request) bool {
		node, _, _ := strings.Cut(strings.TrimPrefix(rq.URL.Path, "/api2/json/nodes/"), "/")
		row := w.rowOn(node)
		return row != nil && row.refuse.Load() && pvesim.Match(http.MethodPut, "/nodes/*/qemu/*/config")(rq)
	}, http.StatusInternalServerError, crashRefusal, -1)
	r.Sim.Fail(func(rq *http.Request) bool {
		node, rest, _ := strings.Cut(strings.TrimPrefix(rq.URL.Path, "/api2/json/nodes/"), "/")
		row := w.rowOn(node)
		return row != nil && rest != "" && row.dropped.Load() > 0 && row.dropped.Add(-1) >= 0
	}, 0, "", -1)
	r.Sim.BeforeTask(func(task *pvesim.Task) {
		if row := w.rowOn(task.Node()); row != nil {
			row.task(task.Type())
		}
	})
	r.Sim.BeforeRequest(func(node string, rq *http.Request) {
		if row := w.rowOn(node); row != nil {
			row.asked(rq)
		}
	})
	r.Sim.AfterRequest(func(node string, rq *http.Request) {
		if row := w.rowOn(node); row != nil {
			row.answered(rq)
		}
	})
	return w
}

// crashTemplate is the name of a node's template. It has no cloud-init drive: Create adds one.
func crashTemplate(node string) string { return "template-" + node }

// crashFlags make an agent quick, and its addresses new in each life: nobody else can take them in between.
func (w *crashWorld) flags(node string) []string {
	return []string{
		"--config=" + w.Sim.Node(node).AgentYAML, "--listen-grpc=127.0.0.1:0", "--metrics=127.0.0.1:0",
		"--watch=100ms", "--sync-wait=5ms", "--tasks-poll-min=5ms", "--tasks-poll-max=100ms",
	}
}

func (w *crashWorld) rowOn(node string) *crashRow {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rows[node]
}

// put gives a node to a row; nil takes it away.
func (w *crashWorld) put(node string, r *crashRow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows[node] = r
}

// newName returns a name that no VM had.
func (w *crashWorld) newName() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names++
	return fmt.Sprintf("crash-%04d", w.names)
}

func (w *crashWorld) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.table = append(w.table, line)
}

// crashFailed is the outcome of a row that is not as it should be.
const crashFailed = "FAILED"

// failures counts such rows.
func (w *crashWorld) failures() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.table {
		if strings.HasSuffix(line, crashFailed) {
			n++
		}
	}
	return n
}

// print logs the table.
func (w *crashWorld) print(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.table)
	t.Logf("%d rows:\n%s", len(w.table), strings.Join(w.table, "\n"))
}

// named returns the VMs of a name in the whole cluster, with their configs.
func (w *crashWorld) named(name string) map[int]map[string]string {
	found := map[int]map[string]string{}
	for _, id := range w.Sim.VMIDs() {
		if conf, err := w.Sim.Config(id); err == nil && conf["name"] == name { // others come and go meanwhile
			found[id] = conf
		}
	}
	return found
}

// recordFile returns the file of a record, "" if there is none.
func (w *crashWorld) recordFile(name string) (string, error) {
	dir := filepath.Join(w.Sim.Tree(), "priv", "pve-rigaud", "vms")
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), strconv.Quote(name)) {
			return path, nil
		}
	}
	return "", err
}

// records returns the records of a name, of all generations.
func (w *crashWorld) records(name string) (found []record.Record, err error) {
	dir := filepath.Join(w.Sim.Tree(), "priv", "pve-rigaud", "vms")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(rerr, fs.ErrNotExist) {
			continue // of another row
		}
		err = errors.Join(err, rerr)
		var r record.Record
		if json.Unmarshal(b, &r) == nil && r.Name == name { // one that is cut short is seen at the end of the table
			found = append(found, r)
		}
	}
	return found, err
}

// inventory is everything there is of VMs on a node but their snippets, by its path below the cluster's directory.
func (w *crashWorld) inventory(node string) (map[string]bool, error) {
	found := map[string]bool{}
	for _, keep := range []string{"etc/pve/nodes/" + node, node + "/vz", node + "/run"} {
		err := filepath.WalkDir(filepath.Join(w.Dir, keep), func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			rel, rerr := filepath.Rel(w.Dir, path)
			if !ownSnippet.MatchString(path) {
				found[rel] = true
			}
			return errors.Join(err, rerr)
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// disks returns the images of a VMID on all storages that a node sees, as volume ids.
func (w *crashWorld) disks(node string, vmid int) (map[string]bool, error) {
	found := map[string]bool{}
	for _, storage := range []string{pvesim.StorageLocal, pvesim.StorageShared} {
		dir, err := w.Sim.StorageDir(node, storage)
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(filepath.Join(dir, "images", strconv.Itoa(vmid)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			found[fmt.Sprintf("%s:%d/%s", storage, vmid, e.Name())] = true
		}
	}
	return found, nil
}

// crashVolumes are the volumes that a config names.
func crashVolumes(conf map[string]string) map[string]bool {
	found := map[string]bool{}
	for _, v := range conf {
		volume, _, _ := strings.Cut(v, ",")
		if storage, name, ok := strings.Cut(volume, ":"); ok && strings.Contains(name, "/") && (storage == pvesim.StorageLocal || storage == pvesim.StorageShared) {
			found[volume] = true
		}
	}
	return found
}

// until polls for what nothing signals.
func (w *crashWorld) until(what string, holds func() (bool, error)) error {
	deadline := time.NewTimer(w.patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("did not come about in %s: %s", w.patience, what)
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
}

// same says how two sets differ.
func crashDiff(want, got map[string]bool) string {
	if maps.Equal(want, got) {
		return ""
	}
	return cmp.Diff(want, got)
}
