package image

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is an /etc/pve on disk, seen by the agent of pve1.
type lab struct {
	*testing.T
	*Images
	dir    string
	guests map[int]string // owners
	serial int
	off    string // a node that is offline
}

const storages = `dir: local
	path /var/lib/vz
	content images,iso,snippets,import

lvmthin: local-lvm
	vgname pve
	thinpool data
	content images

nfs: ceph
	path /mnt/pve/ceph
	content images
`

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{T: t, dir: t.TempDir(), guests: map[int]string{}}
	l.write("storage.cfg", storages)
	l.write("priv/.keep", "")
	tree := pmxcfs.Open(l.dir)
	journal, err := ops.OpenJournal(filepath.Join(t.TempDir(), "journal.db"))
	l.must(err)
	t.Cleanup(func() { l.must(journal.Close()) })
	cfg := Config{
		Node: "pve1", Tree: tree, Watcher: pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: tree, Node: "pve1"}),
		Records: record.NewImages(record.Config{Dir: filepath.Join(l.dir, "priv", "pve-rigaud")}),
		Ops:     ops.New(ops.Config{Journal: journal, Log: slog.New(slog.DiscardHandler)}), Replicas: 1,
	}
	for _, f := range change {
		f(&cfg)
	}
	l.Images = New(cfg)
	l.refresh()
	return l
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) write(name, text string) {
	l.Helper()
	path := filepath.Join(l.dir, name)
	l.must(os.MkdirAll(filepath.Dir(path), 0o755))
	l.must(os.WriteFile(path, []byte(text), 0o600))
}

// put gives a node a VM with a config; "" takes it away.
func (l *lab) put(vmid int, node, conf string) {
	l.Helper()
	if before := l.guests[vmid]; before != "" {
		l.must(os.Remove(filepath.Join(l.dir, "nodes", before, "qemu-server", fmt.Sprintf("%d.conf", vmid))))
		delete(l.guests, vmid)
	}
	if conf != "" {
		l.guests[vmid] = node
		l.write(fmt.Sprintf("nodes/%s/qemu-server/%d.conf", node, vmid), conf)
	}
}

// refresh shows what was put.
func (l *lab) refresh() {
	l.Helper()
	l.serial++
	ids := map[string]any{}
	for id, node := range l.guests {
		ids[fmt.Sprint(id)] = map[string]any{"node": node, "type": "qemu", "version": l.serial}
	}
	list, err := json.Marshal(map[string]any{"version": l.serial, "ids": ids})
	l.must(err)
	l.write(".vmlist", string(list))
	l.write(".version", fmt.Sprintf(`{"starttime":1,"vmlist":%d,"storage.cfg":1}`, l.serial))
	nodes := map[string]any{}
	for n, name := range []string{"pve1", "pve2", "pve3"} {
		online := 1
		if name == l.off {
			online = 0
		}
		nodes[name] = map[string]any{"id": n + 1, "online": online, "ip": fmt.Sprintf("192.0.2.%d", n+1)}
	}
	members, err := json.Marshal(map[string]any{
		"nodename": "pve1", "version": 3, "nodelist": nodes, "cluster": map[string]any{"name": "lab", "version": 1, "nodes": 3, "quorate": 1},
	})
	l.must(err)
	l.write(".members", string(members))
	l.must(l.cfg.Watcher.Refresh(l.Context()))
}

// templateConf is the config of a template.
func templateConf(vmid int, name, storage, uuid string) string {
	volume := fmt.Sprintf("%s:base-%d-disk-0", storage, vmid)
	if storage == "local" || storage == "ceph" {
		volume = fmt.Sprintf("%s:%d/base-%d-disk-0.qcow2", storage, vmid, vmid)
	}
	return fmt.Sprintf("boot: order=scsi0\nname: %s\nscsi0: %s,size=2G\nsmbios1: uuid=%s\ntemplate: 1\n", name, volume, uuid)
}

const (
	uuidA = "aaaaaaaa-89ab-cdef-0123-456789abcdef"
	uuidB = "bbbbbbbb-89ab-cdef-0123-456789abcdef"
	uuidC = "cccccccc-89ab-cdef-0123-456789abcdef"
)

func (l *lab) world() *pmxcfs.World {
	l.Helper()
	world, err := l.cfg.Watcher.World()
	l.must(err)
	return world
}
