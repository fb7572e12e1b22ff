// Package disk keeps the disk images of a simulated Proxmox VE storage: as
// qcow2 and raw files made by qemu-img, or, where nothing will ever boot from
// them, as plain files that only say what they would be.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// The image formats.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// What a store refuses, beside [fs.ErrExist] and [fs.ErrNotExist].
var (
	ErrShrink      = errors.New("shrinking disks is not supported")
	ErrFormat      = errors.New("no such image format")
	ErrNoSnapshots = errors.New("images of this format have no snapshots")
	ErrSnapshot    = errors.New("no such snapshot")
)

// Info describes an image.
type Info struct {
	Virtual   int64    // size that a guest sees, bytes
	Actual    int64    // room taken on the file system, bytes
	Format    string   // Raw or QCOW2
	Backing   string   // path of the image that this one is linked to, or ""
	Snapshots []string // names, oldest first
}

// Store makes and changes image files. Paths are absolute; the directory of a
// new image must be there. Every error names the path. A call that fails or
// whose context ends leaves no new file behind.
type Store interface {
	// Create makes an empty image of size bytes.
	Create(ctx context.Context, path, format string, size int64) error
	// Clone makes a full copy in the format; holes stay holes, links are
	// resolved, snapshots are not copied. src may be in use by a machine.
	Clone(ctx context.Context, src, dst, format string) error
	// CloneSnapshot is Clone for the content that an image had. The copy is as
	// large as the image is now.
	CloneSnapshot(ctx context.Context, src, name, dst, format string) error
	// Linked makes a qcow2 image that holds only the difference to base,
	// which must not change or go as long as it lives.
	Linked(ctx context.Context, base, dst string) error
	// Resize grows an image that no machine uses to size bytes.
	Resize(ctx context.Context, path, format string, size int64) error
	// Info describes an image, also one in use.
	Info(ctx context.Context, path string) (Info, error)
	// Remove deletes an image.
	Remove(path string) error
	// Snapshot keeps the state of a qcow2 image that no machine uses.
	Snapshot(ctx context.Context, path, name string) error
	// DeleteSnapshot forgets a state.
	DeleteSnapshot(ctx context.Context, path, name string) error
	// Revert brings a state back, with the size the image had.
	Revert(ctx context.Context, path, name string) error
	// CloudInit makes a cloud-init drive with the files (user-data, ...), in
	// qcow2 if path ends so, else raw. A drive that is there is replaced.
	CloudInit(ctx context.Context, path string, files map[string][]byte) error
}

// cloudInitSize is the size of Proxmox VE's cloud-init drives.
const cloudInitSize = 4 << 20

// cloudInitImage is the content of a cloud-init drive, in the NoCloud form.
func cloudInitImage(files map[string][]byte) ([]byte, error) {
	image, err := iso("cidata", files)
	if err != nil {
		return nil, err
	}
	if len(image) > cloudInitSize {
		return nil, fmt.Errorf("files need %d bytes of %d", len(image), cloudInitSize)
	}
	return append(image, make([]byte, cloudInitSize-len(image))...), nil
}

// reserve makes sure that path is new, and ours.
func reserve(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// making runs fill for a new file and removes what it leaves if it fails.
func making(path string, fill func() error) error {
	if err := reserve(path); err != nil {
		return err
	}
	if err := fill(); err != nil {
		if gone := os.Remove(path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return nil
}

// replacing runs fill for a file beside path, which then takes its place.
func replacing(path string, fill func(tmp string) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*"+filepath.Ext(path))
	if err != nil {
		return err
	}
	if err = tmp.Close(); err == nil {
		err = fill(tmp.Name())
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func checkFormat(format string) error {
	if format != Raw && format != QCOW2 {
		return fmt.Errorf("format %q: %w", format, ErrFormat)
	}
	return nil
}

// formatOf a cloud-init drive is by its name.
func formatOf(path string) string {
	if filepath.Ext(path) == "."+QCOW2 {
		return QCOW2
	}
	return Raw
}

// act wraps an error with what was done to which image.
func act(what, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}

// checkNewSnapshot refuses what cannot have a snapshot of that name.
func checkNewSnapshot(info Info, name string) error {
	if info.Format != QCOW2 {
		return fmt.Errorf("snapshot %q: %w", name, ErrNoSnapshots)
	}
	if slices.Contains(info.Snapshots, name) {
		return fmt.Errorf("snapshot %q: %w", name, fs.ErrExist)
	}
	return nil
}

// checkSnapshot refuses names that are none of the image's snapshots.
func checkSnapshot(info Info, name string) error {
	if info.Format != QCOW2 {
		return fmt.Errorf("snapshot %q: %w", name, ErrNoSnapshots)
	}
	if !slices.Contains(info.Snapshots, name) {
		return fmt.Errorf("snapshot %q: %w", name, ErrSnapshot)
	}
	return nil
}
