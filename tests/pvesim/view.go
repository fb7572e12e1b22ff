package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/pmxfuse"
)

// mount is a node's /etc/pve that is there.
type mount interface {
	SetQuorate(on bool)
	SetSource(dir string) error
	Unmount(ctx context.Context) error
}

// links is a mount without FUSE: the mount point is a link to the node's own
// directory, which has links to what all nodes share, or to the copy of the
// tree that a node without quorum sees.
type links struct {
	node  *Node
	at    string // the mount point
	root  string // the tree that all nodes share
	shows string // the tree that is behind it
}

// SetQuorate does nothing: files of a directory cannot be closed to root.
// What is written without quorum goes into the node's copy and is lost with it.
func (*links) SetQuorate(bool) {}

// SetSource shows another tree, from one moment to the next.
func (l *links) SetSource(dir string) error {
	if dir == l.shows {
		return nil
	}
	to := l.node.own
	if dir != l.root {
		to = dir
		entries := l.node.shortcuts()
		for _, name := range ownEntries {
			entries[name] = filepath.Join("..", filepath.Base(l.node.own), name)
		}
		if err := linkAll(dir, entries); err != nil {
			return err
		}
	}
	next := l.at + ".next"
	if err := os.Symlink(filepath.Join("..", filepath.Base(to)), next); err != nil {
		return err
	}
	l.shows = dir
	return os.Rename(next, l.at)
}

// ownEntries are the entries of /etc/pve that differ from node to node.
var ownEntries = []string{".members", ".vmlist", ".version", "storage.cfg"}

// shortcuts are the links that pmxcfs has itself.
func (n *Node) shortcuts() map[string]string {
	return map[string]string{
		"local": filepath.Join("nodes", n.Name), "qemu-server": filepath.Join("nodes", n.Name, "qemu-server"),
	}
}

// Unmount implements mount.
func (l *links) Unmount(context.Context) error {
	if err := os.Remove(l.at); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := os.Mkdir(l.at, 0o755); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// mountView gives a node its /etc/pve.
func (c *Cluster) mountView(ctx context.Context, n *Node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mount != nil {
		return nil
	}
	m, err := c.mountAs(ctx, n)
	if err != nil {
		return fmt.Errorf("mount %s: %w", n.PMXCFS, err)
	}
	m.SetQuorate(n.writable)
	n.mount = m
	if err := m.SetSource(c.tree.source(n.Name)); err != nil {
		return fmt.Errorf("mount %s: %w", n.PMXCFS, err)
	}
	return nil
}

func (c *Cluster) mountAs(ctx context.Context, n *Node) (mount, error) {
	if c.cfg.PMXCFS == FUSE {
		if err := os.MkdirAll(n.PMXCFS, 0o755); err != nil {
			return nil, err
		}
		return pmxfuse.Mount(ctx, pmxfuse.Config{
			Source: c.tree.root, View: n.own, MountPoint: n.PMXCFS, ReadDelay: c.cfg.ReadDelay,
			Changes: &c.tree.foreign, Go: c.cfg.Go, NoCache: c.cfg.Go != nil,
		})
	}
	if err := c.linkView(n); err != nil {
		return nil, err
	}
	if err := os.Remove(n.PMXCFS); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l := &links{node: n, at: n.PMXCFS, root: c.tree.root, shows: c.tree.root}
	return l, os.Symlink(filepath.Join("..", filepath.Base(n.own)), n.PMXCFS)
}

// viewLinks are the entries of /etc/pve that all nodes share.
var viewLinks = []string{"nodes", "priv", "ha", ".vmlist", ".version", "pve-root-ca.pem", "pve-rigaud.yaml", "user.cfg"}

// linkView fills a node's own directory up with links into the shared tree,
// beside the files that differ from node to node (.members, storage.cfg).
func (c *Cluster) linkView(n *Node) error {
	links := n.shortcuts()
	for _, name := range viewLinks {
		links[name] = filepath.Join("..", "..", "etc", "pve", name)
	}
	if err := linkAll(n.own, links); err != nil {
		return err
	}
	c.tree.forget(n.Name)
	return c.tree.show(n.Name)
}

// linkAll makes links, in place of what is there.
func linkAll(dir string, links map[string]string) error {
	for name, to := range links {
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}

// unmountTime is how long readers may keep a file of the view open.
const unmountTime = 10 * time.Second

func (n *Node) unmount(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mount == nil {
		return nil
	}
	m := n.mount
	n.mount = nil
	ctx, cancel := context.WithTimeout(ctx, unmountTime)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		return fmt.Errorf("unmount %s: %w", n.PMXCFS, err)
	}
	return nil
}

func (n *Node) setWritable(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.writable = on
	if n.mount != nil {
		n.mount.SetQuorate(on)
	}
}

// setSource shows another tree in the node's /etc/pve, if that is mounted.
func (n *Node) setSource(dir string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mount == nil {
		return nil
	}
	if err := n.mount.SetSource(dir); err != nil {
		return fmt.Errorf("view of %s: %w", n.Name, err)
	}
	return nil
}

// SetMounted takes a node's /etc/pve away, as when pmxcfs stops, or brings it
// back. Unmounted, it is an empty directory.
func (c *Cluster) SetMounted(node string, on bool) error {
	n := c.byName[node]
	if n == nil {
		return fmt.Errorf("pvesim: no node %q", node)
	}
	if on {
		return c.mountView(c.ctx, n)
	}
	return n.unmount(c.base)
}
