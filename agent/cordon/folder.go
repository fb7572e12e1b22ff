package cordon

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	cordonSuffix = ".json"
	movedSuffix  = ".moved.json"
	// tempMark is in the name of a file that is written before it replaces another.
	tempMark = ".tmp-"
	// deadAfter is the age at which such a file was left behind by a crash.
	deadAfter = time.Minute
)

// ErrNotMounted says that the directory above ours is missing.
var ErrNotMounted = errors.New("directory missing: pmxcfs not mounted?")

// folder is the directory of the files, parent/pve-rigaud/nodes, of which parent is PVE's.
type folder struct {
	root string // parent/pve-rigaud
}

func (d folder) path(name string) string { return filepath.Join(d.root, "nodes", name) }

// nodes lists the nodes that have a cordon's file.
func (d folder) nodes() ([]string, error) {
	f, err := os.Open(d.path(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.mounted()
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	var nodes []string
	for _, name := range names {
		if node, ok := strings.CutSuffix(name, cordonSuffix); ok && checkName(node) == nil {
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

// checkName refuses what is no name of a node, and would be another file's. PVE's are labels of the DNS.
func checkName(node string) error {
	if node == "" || strings.ContainsAny(node, "./") {
		return fmt.Errorf("node %q: no name of a node", node)
	}
	return nil
}

func (d folder) read(name string) ([]byte, error) { return os.ReadFile(d.path(name)) }

// mounted checks that the directory above ours is there: where /etc/pve is not mounted, that a file is missing says
// nothing.
func (d folder) mounted() error {
	_, err := os.Stat(filepath.Dir(d.root))
	if errors.Is(err, fs.ErrNotExist) {
		return d.notMounted()
	}
	return err
}

func (d folder) notMounted() error {
	return fmt.Errorf("%s: %w", filepath.Dir(d.root), ErrNotMounted)
}

// make creates the directory if need be, but never the parent: that would be one on the node's own disk, below a mount
// point where nothing is mounted.
func (d folder) make() error {
	for _, dir := range []string{d.root, d.path("")} {
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrNotExist) {
			return d.notMounted()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// replace writes a file in the place of the one of that name, if there is one.
func (d folder) replace(name string, raw []byte, now time.Time) error {
	if err := d.make(); err != nil {
		return err
	}
	d.sweep(name, now)
	var token [8]byte
	if _, err := rand.Read(token[:]); err != nil {
		return err
	}
	temp := name + tempMark + hex.EncodeToString(token[:])
	if err := writeNew(d.path(temp), raw); err != nil {
		return errors.Join(err, d.drop(temp))
	}
	if err := os.Rename(d.path(temp), d.path(name)); err != nil {
		return errors.Join(err, d.drop(temp))
	}
	return nil
}

func writeNew(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Close())
}

// sweep removes what a crash left of an earlier attempt at the same file. What cannot be removed does no harm.
func (d folder) sweep(name string, now time.Time) {
	left, _ := filepath.Glob(d.path(name) + tempMark + "*")
	for _, path := range left {
		if info, err := os.Stat(path); err == nil && now.Sub(info.ModTime()) > deadAfter {
			_ = os.Remove(path)
		}
	}
}

// drop removes a file that may be gone already.
func (d folder) drop(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return d.mounted()
	}
	return err
}
