package pvesim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// cloudInitSize is the size of every cloud-init drive.
const cloudInitSize = 4 << 20

// cachedDisks keeps what is known of an image until its file changes: a list
// of a storage's content would cost one qemu-img for each image.
type cachedDisks struct {
	disk.Store

	mu    sync.Mutex // guards known
	known map[string]knownImage
}

type knownImage struct {
	stamp stamp
	info  disk.Info
}

func cacheDisks(s disk.Store) *cachedDisks {
	return &cachedDisks{Store: s, known: map[string]knownImage{}}
}

// Info implements [disk.Store].
func (d *cachedDisks) Info(ctx context.Context, path string) (disk.Info, error) {
	s, err := statStamp(path)
	if err != nil {
		return disk.Info{}, err
	}
	d.mu.Lock()
	k, ok := d.known[path]
	d.mu.Unlock()
	if ok && k.stamp == s {
		return k.info, nil
	}
	info, err := d.Store.Info(ctx, path)
	if err != nil {
		return disk.Info{}, fmt.Errorf("image: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[path] = knownImage{stamp: s, info: info}
	return info, nil
}

// growRunning has QEMU grow an image that it holds open. A stand-in has no
// disk: then the file is grown here.
func (c *Cluster) growRunning(ctx context.Context, m *machine, d vmconf.Drive, path string, size int64) error {
	if m.real {
		args := map[string]any{"node-name": "drive-" + d.Key, "size": size}
		if _, err := m.proc.Execute(ctx, "block_resize", args); err != nil {
			return dief("VM %d qmp command 'block_resize' failed - %s", m.vmid, err)
		}
		return nil
	}
	return c.disks.Resize(ctx, path, filepath.Ext(path)[1:], size)
}

// copyFile copies a small file as it is.
func copyFile(src, dst string) error {
	b, err := os.ReadFile(src)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := os.WriteFile(dst, b, 0o600); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}
