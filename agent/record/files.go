package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// files is the file system as this package uses it; tests put delays and faults in between.
type files interface {
	// list returns the names in a directory, in no order.
	list(dir string) ([]string, error)
	// create makes a new file, and fails with fs.ErrExist if there is one.
	create(path string) (file, error)
	read(path string) ([]byte, error)
	modTime(path string) (time.Time, error)
	rename(from, to string) error
	remove(path string) error
	mkdir(path string) error
}

// file is a new file being written.
type file interface {
	Write(p []byte) (int, error)
	Close() error
}

// disk is the real file system.
type disk struct{}

func (disk) list(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return names, err
}

func (disk) create(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// maxRecord is far above the size of any record, and surely one answer of FUSE.
const maxRecord = 64 << 10

// read takes the file in one read: pmxcfs looks a file up by its path for each read, so that two could get halves of an
// old and a new one.
func (disk) read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, maxRecord)
	n, err := f.Read(buf)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && n == len(buf) {
		err = fmt.Errorf("read %s: larger than %d bytes", path, n)
	}
	return bytes.Clone(buf[:n]), err
}

func (disk) modTime(path string) (time.Time, error) {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

func (disk) rename(from, to string) error { return os.Rename(from, to) }
func (disk) remove(path string) error     { return os.Remove(path) }
func (disk) mkdir(path string) error      { return os.Mkdir(path, 0o700) }

// folder is one directory of ours, parent/dir/name, of which parent is PVE's.
type folder struct {
	files
	root string // parent/dir
	path string // parent/dir/name
}

func newFolder(f files, root, name string) folder {
	return folder{files: f, root: root, path: filepath.Join(root, name)}
}

func (d folder) file(name string) string { return filepath.Join(d.path, name) }

// make creates the directory if need be, but never the parent: that would be one on the node's own disk, below a mount
// point where nothing is mounted.
func (d folder) make() error {
	for _, dir := range []string{d.root, d.path} {
		err := d.mkdir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return d.notMounted()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// names lists the directory, which may not have been created yet.
func (d folder) names() ([]string, error) {
	names, err := d.list(d.path)
	if !errors.Is(err, fs.ErrNotExist) {
		return names, err
	}
	return nil, d.mounted()
}

// mounted checks that the directory above ours is there: where /etc/pve is not mounted, that a file is missing says
// nothing.
func (d folder) mounted() error {
	_, err := d.modTime(filepath.Dir(d.root))
	if errors.Is(err, fs.ErrNotExist) {
		return d.notMounted()
	}
	return err
}

func (d folder) notMounted() error {
	return fmt.Errorf("%s: %w", filepath.Dir(d.root), ErrNotMounted)
}

// createIn creates a file in the directory, which it makes if need be.
func (d folder) createIn(name string) (file, error) {
	f, err := d.create(d.file(name))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := d.make(); err != nil {
		return nil, err
	}
	return d.create(d.file(name))
}

// drop removes a file that may be gone already.
func (d folder) drop(name string) error {
	if err := d.remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
