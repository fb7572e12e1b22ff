// Package snippet keeps the files in which PVE finds cloud-init data: `cicustom` in a VM's config names volumes of
// content type snippets, which no API call can write. The agent sits on the node and writes them itself.
//
// A file's name is a hash of its content, so that writing it twice is no change, and a file never changes under a VM. It
// holds secrets: mode 0600, never logged. It has to be on every node on which a VM that refers to it may start, be moved
// to or be restarted by HA: where the storage is not shared, agents send files to each other before a config refers to
// them, and one that comes back fetches what it has missed before it is ready.
//
// A file stays as long as any section of any VM's config refers to it, and seven days more: clones, restores and
// rollbacks that somebody makes in PVE's GUI keep working.
package snippet

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

const (
	prefix  = "pve-rigaud-" // begins the names of our files
	suffix  = ".yaml"
	hashLen = 32 // hexadecimal digits of the hash in a name
	fileLen = len(prefix) + hashLen + len(suffix)
	content = "snippets" // PVE's content type, and the part of a volume's name before the file
	marker  = ":" + content + "/"
)

// Volume is the name of the volume that holds a snippet on a storage, "<storage>:snippets/pve-rigaud-<hash>.yaml".
func Volume(storage string, data []byte) string { return storage + marker + fileOf(data) }

// fileOf is the name of the file for a content.
func fileOf(data []byte) string {
	sum := sha256.Sum256(data)
	return prefix + hex.EncodeToString(sum[:hashLen/2]) + suffix
}

// ours reports whether a file has a name that we give.
func ours(file string) bool {
	if len(file) != fileLen || !strings.HasPrefix(file, prefix) || !strings.HasSuffix(file, suffix) {
		return false
	}
	return strings.Trim(file[len(prefix):len(prefix)+hashLen], "0123456789abcdef") == ""
}

// split takes the name of a volume of ours apart. What it accepts names a file right in the directory of snippets.
func split(volume string) (storage, file string, err error) {
	storage, file, _ = strings.Cut(volume, marker)
	if !ours(file) || storage == "" || strings.TrimLeft(storage, storageChars) != "" {
		return "", "", fmt.Errorf("%.200q is no snippet of pve-rigaud", volume)
	}
	return storage, file, nil
}

// storageChars are those of a storage's id.
const storageChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

// In returns the volumes of ours that a text names, such as a VM's config with all its sections; each once, in their
// order.
func In(text string) []string {
	var found []string
	for at := 0; ; {
		i := strings.Index(text[at:], marker+prefix)
		if i < 0 {
			return found
		}
		i += at
		at = i + len(marker)
		start := len(strings.TrimRight(text[:i], storageChars))
		volume := text[start:min(at+fileLen, len(text))]
		if _, _, err := split(volume); err == nil && !slices.Contains(found, volume) {
			found = append(found, volume)
		}
	}
}

// Storage is where snippets go on this node: the storage that the configuration names, else the first that can hold
// them. The failure says how to get one.
func (s *Store) Storage(world *pmxcfs.World) (pmxcfs.Storage, error) {
	for _, st := range world.Storages {
		if (s.cfg.Storage == "" || st.ID == s.cfg.Storage) && s.holds(st) {
			return st, nil
		}
	}
	if s.cfg.Storage != "" {
		return pmxcfs.Storage{}, fault.New(fault.Precondition, "user_data: storage %q (snippets-storage) does not exist on node %s or lacks content type snippets", s.cfg.Storage, s.cfg.Node)
	}
	return pmxcfs.Storage{}, fault.New(fault.Precondition, "user_data: no storage of node %s holds snippets, and PVE takes user-data from nowhere else; "+
		"add the content type to one: pvesm set local --content <its present types>,snippets", s.cfg.Node)
}

// holds reports whether this node may have snippets on a storage.
func (s *Store) holds(st pmxcfs.Storage) bool { return st.OnNode(s.cfg.Node) && st.Has(content) }
