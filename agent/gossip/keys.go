package gossip

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster"
)

// tornAfter is how old a key file without a key must be before it counts as left behind by a crash.
const tornAfter = time.Minute

// errNoKeys is the finding that a key file is being written: in /etc/pve creating and writing are two rounds.
var errNoKeys = errors.New("no key in it yet")

// keyFile is the file with the keys of the gossip, which all nodes share through /etc/pve.
//
// To change the key while agents run: add the new one as the second line, wait until all have read it (a few seconds),
// exchange the lines, wait again, and remove the old one.
type keyFile struct {
	path string
	now  func() time.Time
}

// read returns the keys, the one to encrypt with first. If there is no file it makes one, with one random key: of
// several nodes that do so at once, one wins and the others read its key.
func (f keyFile) read() ([][]byte, error) {
	keys, err := f.parse()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := f.create(); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make a gossip key: %w", err)
		}
		return f.parse()
	case errors.Is(err, errNoKeys):
		return nil, errors.Join(err, f.removeTorn())
	}
	return keys, err
}

func (f keyFile) parse() ([][]byte, error) {
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("read the gossip keys: %w", err)
	}
	var keys [][]byte
	for line := range strings.Lines(string(raw)) {
		text := strings.TrimSpace(line)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(key) != cluster.KeySize { // never print it
			return nil, fmt.Errorf("read the gossip keys: %s: line %d is not a key: expected %d bytes in base64, as from: head -c %d /dev/urandom | base64",
				f.path, len(keys)+1, cluster.KeySize, cluster.KeySize)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("read the gossip keys: %s: %w", f.path, errNoKeys)
	}
	return keys, nil
}

// create writes a new key unless there is a file. The directory above its own must be there: where /etc/pve is not
// mounted nothing is written below its mount point.
func (f keyFile) create() error {
	if err := os.Mkdir(filepath.Dir(f.path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	key := make([]byte, cluster.KeySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(f.path))
	}
	return nil
}

// removeTorn removes a file that somebody has created, and died before it was written.
func (f keyFile) removeTorn() error {
	info, err := os.Stat(f.path)
	if err != nil || info.Size() > 0 || f.now().Sub(info.ModTime()) < tornAfter {
		return nil //nolint:nilerr // the next read tells
	}
	return os.Remove(f.path)
}
