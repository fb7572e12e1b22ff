package pvesim

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// tree is the shared /etc/pve: configs, and the status files that pmxcfs
// makes of them.
type tree struct {
	root   string
	nodes  []string
	ips    []netip.Addr
	own    map[string]string // by node: directory of what it alone has
	linked bool              // nodes see the tree by links
	later  func(time.Duration, func())
	warn   func(error)

	foreign atomic.Int64 // changes through FUSE

	mu sync.Mutex // guards all below, and orders the writes

	shown          // as it is
	start    int64 // of .version: counters are worth nothing across it
	clinfo   int
	stamps   map[string]stamp
	views    map[string]*nodeView
	status   map[string]string // status files as they are
	moving   map[int]bool      // guests that are between two nodes
	tmpCount int
	dirs     map[string]scanned // what the last scan found in each directory
	scans    int
	scanned  int64 // foreign, as of the last scan
}

type guest struct {
	node    string
	kind    string // "qemu" or "lxc"
	version int
}

// stamp tells whether a file is the one seen last.
type stamp struct {
	mtime time.Time
	size  int64
	inode uint64
}

// tracked are the files .version counts; the list is a running cluster's.
var tracked = strings.Fields(`corosync.conf corosync.conf.new storage.cfg user.cfg domains.cfg
 notifications.cfg priv/notifications.cfg priv/shadow.cfg priv/acme/plugins.cfg priv/tfa.cfg priv/token.cfg
 datacenter.cfg vzdump.cron vzdump.conf jobs.cfg ha/crm_commands ha/manager_status ha/resources.cfg
 ha/rules.cfg ha/groups.cfg ha/fence.cfg status.cfg replication.cfg ceph.conf sdn/vnets.cfg sdn/zones.cfg
 firewall/cluster.fw mapping/directory.cfg mapping/pci.cfg mapping/usb.cfg`)

func newTree(root string, nodes []string, own map[string]string, ips []netip.Addr) *tree {
	t := &tree{
		root: root, nodes: nodes, ips: ips, own: own,
		start: time.Now().Unix(), clinfo: len(nodes), shown: shown{guests: map[int]guest{}, files: map[string]int{}},
		stamps: map[string]stamp{}, views: map[string]*nodeView{}, moving: map[int]bool{}, status: map[string]string{}, dirs: map[string]scanned{},
	}
	for _, f := range tracked {
		t.files[f] = 1
	}
	for _, n := range nodes {
		t.views[n] = &nodeView{start: t.start, standing: standing{members: nodes, quorate: true, live: true, writable: true}}
	}
	return t
}

// create makes the directories and the first status files.
func (t *tree) create() error {
	for _, d := range []string{"ha", "priv/lock", "nodes"} {
		if err := os.MkdirAll(filepath.Join(t.root, d), 0o755); err != nil {
			return fmt.Errorf("tree: %w", err)
		}
	}
	for _, n := range t.nodes {
		for _, d := range []string{"qemu-server", "lxc"} {
			if err := os.MkdirAll(filepath.Join(t.root, "nodes", n, d), 0o755); err != nil {
				return fmt.Errorf("tree: %w", err)
			}
		}
	}
	if err := os.Chmod(filepath.Join(t.root, "priv"), 0o700); err != nil { //nolint:gosec // a directory
		return fmt.Errorf("tree: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.lockedPublish(), t.lockedMembers())
}

func (t *tree) confPath(node string, vmid int) string {
	return filepath.Join(t.root, "nodes", node, "qemu-server", strconv.Itoa(vmid)+".conf")
}

// readConf returns a config's bytes as the node itself sees them;
// fs.ErrNotExist if it has none.
func (t *tree) readConf(node string, vmid int) ([]byte, error) { return t.readConfAs(node, node, vmid) }

// readConfAs is readConf as another node sees it.
func (t *tree) readConfAs(viewer, node string, vmid int) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(t.source(viewer), "nodes", node, "qemu-server", strconv.Itoa(vmid)+".conf"))
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return b, nil
}

// readLive is readConf as the quorate part sees it.
func (t *tree) readLive(node string, vmid int) ([]byte, error) {
	b, err := os.ReadFile(t.confPath(node, vmid))
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return b, nil
}

// writeConf replaces a config. Like pmxcfs it refuses a number that another
// node has, and nothing is written without quorum.
func (t *tree) writeConf(node string, vmid int, b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.lockedWritable(node, t.confPath(node, vmid)); err != nil {
		return err
	}
	if g, ok := t.guests[vmid]; ok && g.node != node {
		return dief("close (rename) atomic file '/etc/pve/nodes/%s/qemu-server/%d.conf' failed: File exists", node, vmid)
	}
	path := t.confPath(node, vmid)
	if err := t.lockedReplace(path, b, 0o640); err != nil {
		return err
	}
	return t.lockedRegister(node, vmid)
}

// addConfs writes many configs and publishes them once.
func (t *tree) addConfs(confs map[int]string, text func(vmid int) []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for vmid, node := range confs {
		if err := t.lockedReplace(t.confPath(node, vmid), text(vmid), 0o640); err != nil {
			return err
		}
		t.lockedGuest(node, vmid, "qemu")
	}
	return t.lockedPublish()
}

func (t *tree) lockedWritable(node, path string) error {
	if !t.views[node].writable {
		rel, _ := filepath.Rel(t.root, path)
		t.tmpCount++
		return dief("unable to open file '/etc/pve/%s.tmp.%d' - Permission denied", rel, 20000+t.tmpCount)
	}
	return nil
}

// lockedReplace writes beside the file and renames: a reader sees the old or
// the new file, whole.
func (t *tree) lockedReplace(path string, b []byte, mode fs.FileMode) error {
	t.tmpCount++
	tmp := fmt.Sprintf("%s.tmp.%d", path, t.tmpCount)
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	if s, err := statStamp(path); err == nil {
		t.stamps[path] = s
	}
	return nil
}

func (t *tree) lockedGuest(node string, vmid int, kind string) {
	t.counter++
	t.vmlist++
	t.guests[vmid] = guest{node: node, kind: kind, version: t.counter}
}

func (t *tree) lockedRegister(node string, vmid int) error {
	t.lockedGuest(node, vmid, "qemu")
	return t.lockedPublish()
}

// removeConf deletes a config; absent is fine.
func (t *tree) removeConf(node string, vmid int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	path := t.confPath(node, vmid)
	if err := t.lockedWritable(node, path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tree: %w", err)
	}
	delete(t.stamps, path)
	if g, ok := t.guests[vmid]; ok && g.node == node {
		delete(t.guests, vmid)
		t.vmlist++
	}
	return t.lockedPublish()
}

// moveConf hands a VM to another node. Inside pmxcfs that is a delete and
// then a register: for a moment .vmlist does not have the VM at all. wait, if
// any, is called twice in that moment: while the file is still at the old node,
// and while it is already at the new one.
func (t *tree) moveConf(vmid int, from, to string, wait func()) error {
	kind, err := t.beginMove(vmid, from)
	if err != nil {
		return err
	}
	if wait != nil {
		wait()
	}
	err = t.moveFile(vmid, from, to)
	if wait != nil {
		wait()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.moving, vmid)
	if err == nil {
		t.lockedGuest(to, vmid, kind)
	} else {
		t.lockedGuest(from, vmid, kind)
	}
	return errors.Join(err, t.lockedPublish())
}

func (t *tree) beginMove(vmid int, from string) (kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.guests[vmid]
	if !ok || g.node != from {
		return "", noSuchVM(from, vmid)
	}
	delete(t.guests, vmid)
	t.moving[vmid] = true
	t.vmlist++
	return g.kind, t.lockedPublish()
}

func (t *tree) moveFile(vmid int, from, to string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	dst := t.confPath(to, vmid)
	if err := os.Rename(t.confPath(from, vmid), dst); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	delete(t.stamps, t.confPath(from, vmid))
	if s, err := statStamp(dst); err == nil {
		t.stamps[dst] = s
	}
	return nil
}

// owner returns the node that has a VM.
func (t *tree) owner(vmid int) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.guests[vmid]
	return g.node, ok
}

func (t *tree) isContainer(id int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.guests[id].kind == "lxc"
}

// ids returns the numbers in use, in order, with their nodes.
func (t *tree) ids() ([]int, map[int]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	nodes := make(map[int]string, len(t.guests))
	for id, g := range t.guests {
		nodes[id] = g.node
	}
	return slices.Sorted(maps.Keys(nodes)), nodes
}

// writeFile replaces any other file of the tree.
func (t *tree) writeFile(rel string, b []byte, mode fs.FileMode) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	path := filepath.Join(t.root, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	if err := t.lockedReplace(path, b, mode); err != nil {
		return err
	}
	if _, ok := t.files[rel]; ok {
		t.files[rel]++
		return t.lockedPublish()
	}
	return nil
}

func statStamp(path string) (stamp, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{}, fmt.Errorf("stat: %w", err)
	}
	return stampOf(fi), nil
}
