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
	Unmount(ctx context.Context) error
}

// links is a mount without FUSE: the mount point is a link to the node's own
// directory, which has links to what all nodes share.
type links struct{ at string }

// SetQuorate does nothing: files of a directory cannot be closed to root.
func (links) SetQuorate(bool) {}

// Unmount implements mount.
func (l links) Unmount(context.Context) error {
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
	m.SetQuorate(c.tree.isQuorate(n.Name))
	n.mount = m
	return nil
}

func (c *Cluster) mountAs(ctx context.Context, n *Node) (mount, error) {
	if c.cfg.PMXCFS == FUSE {
		if err := os.MkdirAll(n.PMXCFS, 0o755); err != nil {
			return nil, err
		}
		return pmxfuse.Mount(ctx, pmxfuse.Config{
			Source: c.tree.root, View: n.own, MountPoint: n.PMXCFS, ReadDelay: c.cfg.ReadDelay,
		})
	}
	if err := c.linkView(n); err != nil {
		return nil, err
	}
	if err := os.Remove(n.PMXCFS); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return links{n.PMXCFS}, os.Symlink(filepath.Join("..", filepath.Base(n.own)), n.PMXCFS)
}

// viewLinks are the entries of /etc/pve that all nodes share.
var viewLinks = []string{"nodes", "priv", "ha", ".vmlist", ".version", "pve-root-ca.pem", "pve-rigaud.yaml"}

// linkView fills a node's own directory up with links into the shared tree,
// beside the files that differ from node to node (.members, storage.cfg).
func (c *Cluster) linkView(n *Node) error {
	links := map[string]string{
		"local": filepath.Join("nodes", n.Name), "qemu-server": filepath.Join("nodes", n.Name, "qemu-server"),
	}
	for _, name := range viewLinks {
		links[name] = filepath.Join("..", "..", "etc", "pve", name)
	}
	for name, to := range links {
		path := filepath.Join(n.own, name)
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

func (n *Node) setQuorate(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mount != nil {
		n.mount.SetQuorate(on)
	}
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
