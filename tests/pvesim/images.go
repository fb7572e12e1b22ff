package pvesim

import (
	"bytes"
	"context"
	"errors"
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

// stencil is an image file of which many copies are made: what is in it but
// its holes.
type stencil struct {
	size   int64
	blocks map[int64][]byte // by offset
}

const stencilBlock = 4096

func readStencil(path string) (*stencil, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("stencil: %w", err)
	}
	s := &stencil{size: int64(len(b)), blocks: map[int64][]byte{}}
	empty := make([]byte, stencilBlock)
	for off := 0; off < len(b); off += stencilBlock {
		block := b[off:min(off+stencilBlock, len(b))]
		if !bytes.Equal(block, empty[:len(block)]) {
			s.blocks[int64(off)] = bytes.Clone(block)
		}
	}
	return s, nil
}

func (s *stencil) write(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("stencil: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for off, block := range s.blocks {
		if _, err := f.WriteAt(block, off); err != nil {
			return fmt.Errorf("stencil: %w", err)
		}
	}
	if err := f.Truncate(s.size); err != nil {
		return fmt.Errorf("stencil: %w", err)
	}
	return nil
}
