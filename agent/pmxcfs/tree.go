package pmxcfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is a mounted pmxcfs. It keeps no state but the path; every call reads. A call may hang for as long as pmxcfs
// does; Watcher's methods do not.
type Tree struct {
	root string
}

// Open names the tree at root, usually /etc/pve. Nothing is read.
func Open(root string) *Tree {
	return &Tree{root: filepath.Clean(root)}
}

// Root is the directory of the tree.
func (t *Tree) Root() string { return t.root }

// Version reads .version.
func (t *Tree) Version() (Version, error) {
	raw, err := t.readStatus(".version")
	if err != nil {
		return Version{}, t.versionError(err)
	}
	return ParseVersion(t.path(".version"), raw)
}

// versionError says "not mounted" when .version, which pmxcfs always has, is not there.
func (t *Tree) versionError(err error) error {
	if missing(err) || unmounted(err) {
		return fmt.Errorf("%s: %w: %w", t.root, ErrNotMounted, err)
	}
	return err
}

// VMList reads .vmlist.
func (t *Tree) VMList() (VMList, error) {
	raw, err := t.readStatus(".vmlist")
	if err != nil {
		return VMList{}, err
	}
	return ParseVMList(t.path(".vmlist"), raw)
}

// Members reads .members.
func (t *Tree) Members() (Members, error) {
	raw, err := t.readStatus(".members")
	if err != nil {
		return Members{}, err
	}
	m, err := ParseMembers(t.path(".members"), raw)
	if err != nil || m.clustered {
		return m, err
	}
	return m, t.standalone(&m)
}

// standalone decides what a .members without a cluster means: a node that never joined one, which counts as
// quorate (pmxcfs "local mode": no corosync.conf), or a pmxcfs that has not heard from corosync yet.
func (t *Tree) standalone(m *Members) error {
	_, err := t.read("corosync.conf")
	switch {
	case err == nil:
		return nil
	case missing(err):
		m.Quorate = true
		m.Nodes = map[string]Member{m.Node: {Name: m.Node, Online: true}}
		return nil
	default:
		return err
	}
}

// Storages reads storage.cfg. A cluster without that file has PVE's built-in storage "local".
func (t *Tree) Storages() (Storages, error) {
	raw, err := t.read("storage.cfg")
	if err != nil && !missing(err) {
		return nil, err
	}
	return ParseStorages(t.path("storage.cfg"), raw)
}

// Conf reads the config of QEMU VM vmid under node's directory. The error satisfies errors.Is(err, fs.ErrNotExist) if
// that node does not own it.
func (t *Tree) Conf(node string, vmid int) (*Conf, error) {
	name := confName(TypeQEMU, node, vmid)
	raw, err := t.read(name)
	if err != nil {
		return nil, err
	}
	return ParseConf(t.path(name), raw)
}

// Replace puts a changed config in the place of a VM's config: a reader sees the old one or the new one. The caller holds
// PVE's lock of that VM, see LockConf.
func (t *Tree) Replace(node string, vmid int, conf *Conf) error {
	staged, err := t.Stage(node, vmid, conf)
	if err != nil {
		return err
	}
	return staged.Commit()
}

// Staged is a changed config that lies beside the one it is to replace.
type Staged struct {
	temp, name string // paths
}

// Stage writes a changed config beside a VM's config, where it counts for nothing yet: a disk that is full or a cluster
// without quorum shows before anything has been done that the config must say. The caller holds PVE's lock of that VM
// until it has called Commit or Discard.
func (t *Tree) Stage(node string, vmid int, conf *Conf) (*Staged, error) {
	name := t.path(confName(TypeQEMU, node, vmid))
	temp := fmt.Sprintf("%s.tmp.%d", name, os.Getpid()) // as PVE names its own
	if err := writeSynced(temp, conf.Bytes()); err != nil {
		return nil, errors.Join(err, remove(temp))
	}
	return &Staged{temp: temp, name: name}, nil
}

// Commit puts the staged config in the place of the old one.
func (s *Staged) Commit() error {
	if err := os.Rename(s.temp, s.name); err != nil {
		return errors.Join(err, s.Discard())
	}
	return nil
}

// Discard removes the staged config.
func (s *Staged) Discard() error { return remove(s.temp) }

// DropAbandoned removes what processes that are dead have staged for a VM of this node. The caller holds PVE's lock of it.
func (t *Tree) DropAbandoned(node string, vmid int) error {
	name := t.path(confName(TypeQEMU, node, vmid))
	staged, err := filepath.Glob(name + ".tmp.*")
	if err != nil {
		return err
	}
	for _, path := range staged {
		pid, err := strconv.Atoi(strings.TrimPrefix(path, name+".tmp."))
		if err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		if err := remove(path); err != nil {
			return err
		}
	}
	return nil
}

// writeSynced writes a new file that is on the disk, or in the cluster's memory, when it returns.
func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !missing(err) {
		return err
	}
	return nil
}

// prove opens the config of a guest under node's directory and closes it again: an open, unlike a stat, is never
// answered from the kernel's cache.
func (t *Tree) prove(typ, node string, vmid int) error {
	f, err := os.Open(t.path(confName(typ, node, vmid)))
	if err != nil {
		return err
	}
	return f.Close()
}

// confName is the path of a guest's config inside the tree.
func confName(typ, node string, vmid int) string {
	dir := "qemu-server"
	if typ == TypeLXC {
		dir = "lxc"
	}
	return filepath.Join("nodes", node, dir, strconv.Itoa(vmid)+".conf")
}

func (t *Tree) path(name string) string { return filepath.Join(t.root, name) }
