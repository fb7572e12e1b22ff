package pmxcfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
// PVE's lock of that VM, lock-<vmid>.conf in /var/lock/qemu-server.
func (t *Tree) Replace(node string, vmid int, conf *Conf) error {
	name := t.path(confName(TypeQEMU, node, vmid))
	temp := fmt.Sprintf("%s.tmp.%d", name, os.Getpid()) // as PVE names its own
	if err := os.WriteFile(temp, conf.Bytes(), 0o640); err != nil {
		return errors.Join(err, remove(temp))
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, remove(temp))
	}
	return nil
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
