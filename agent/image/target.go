package image

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// target is where the parts of a replica go on a node.
type target struct {
	Storages map[string]string // of each drive, by its key
	Staging  string            // file-based storage where disks lie until PVE has imported them
	Content  string            // type of content they are there: "import" or "images"
}

// targetOn says where a replica of a template would go on a node. The error says in words why it cannot go there, and which
// setting changes that.
func targetOn(world *pmxcfs.World, conf *pmxcfs.Conf, node string) (target, error) {
	t := target{Storages: map[string]string{}}
	for _, d := range conf.Drives() {
		if d.Storage == "" || d.CDROM && !d.CloudInit {
			continue
		}
		storage, err := storageFor(world, d.Storage, node)
		if err != nil {
			return t, fmt.Errorf("%s: %w", d.Key, err)
		}
		t.Storages[d.Key] = storage
	}
	var err error
	t.Staging, t.Content, err = staging(world, node)
	return t, err
}

// storageFor returns the storage of a node for a disk that is on a storage of another: the one of that name, or the only
// one of that type, or the only one there is.
func storageFor(world *pmxcfs.World, storage, node string) (string, error) {
	var all, alike []string
	from, _ := world.Storages.Get(storage)
	for _, s := range world.Storages {
		if !s.OnNode(node) || !s.Has("images") {
			continue
		}
		if s.ID == storage {
			return storage, nil
		}
		all = append(all, s.ID)
		if s.Type == from.Type {
			alike = append(alike, s.ID)
		}
	}
	switch {
	case len(alike) == 1:
		return alike[0], nil
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", fmt.Errorf("node %s has no storage for disks (content images in /etc/pve/storage.cfg)", node)
	}
	return "", fmt.Errorf("storage %s of its template is not on node %s, and which of %s is to take its place is not clear: make %s available there (nodes in /etc/pve/storage.cfg)",
		storage, node, strings.Join(all, ", "), storage)
}

// stageable are the types of storage whose files we may write beside PVE.
var stageable = []string{"dir", "nfs", "cifs", "cephfs", "btrfs"}

// staging returns a node's storage of files from which PVE imports disks: one that has content "import", which a token may
// read without being the owner of a VM there, or else one of disks, as PVE before 8.4 has no other. A storage of the node's
// own is preferred: what comes over the network once need not go over it again.
func staging(world *pmxcfs.World, node string) (storage, content string, err error) {
	for _, content := range []string{"import", "images"} {
		for _, isShared := range []bool{false, true} {
			for _, s := range world.Storages {
				if s.OnNode(node) && s.Has(content) && s.Path != "" && s.Shared == isShared && slices.Contains(stageable, s.Type) {
					return s.ID, content, nil
				}
			}
		}
	}
	return "", "", fmt.Errorf("node %s has no storage of files to stage its disks on: give one the content import (pvesm set local --content ...,import)", node)
}

// sizes returns how many bytes of disks a replica needs on each storage.
func (t target) sizes(conf *pmxcfs.Conf) map[string]uint64 {
	need := map[string]uint64{}
	var staged uint64
	for _, d := range copied(conf) {
		size := uint64(max(d.Size, 0))
		need[t.Storages[d.Key]] += size
		staged += size
	}
	if t.Staging != "" {
		need[t.Staging] += staged
	}
	return need
}
