package pvesim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Storage names of every simulated cluster.
const (
	StorageLocal  = "local"  // a directory of each node
	StorageShared = "shared" // one directory for all
)

// Storage is one entry of storage.cfg.
type Storage struct {
	Name     string
	Type     string // TypeDir, ...; "" is TypeDir
	Format   string // of new images where none is asked for; "" is PVE's own default, raw
	Shared   bool
	Content  []string // "images", "snippets", "iso", "import", ...
	Nodes    []string // where it is available; empty = everywhere
	Disabled bool
	// Free is what is left of Total in bytes; an allocation that needs more
	// fails with "No space left on device".
	Free, Total int64

	dirs map[string]string // by node
}

type storagePool struct {
	c *Cluster

	mu   sync.Mutex // guards list and what the entries hold
	list []*Storage

	names   sync.Mutex // guards the choice of free disk names
	claimed map[string]bool
}

const storageTotal = 256 << 30

func newStoragePool(c *Cluster) *storagePool {
	p := &storagePool{c: c, claimed: map[string]bool{}}
	all := []string{"backup", "rootdir", "snippets", "vztmpl", "import", "iso", "images"}
	p.add(Storage{Name: StorageLocal, Content: all})
	p.add(Storage{Name: StorageShared, Shared: true, Content: all[1:]})
	return p
}

func (p *storagePool) add(s Storage) {
	def(&s.Type, TypeDir)
	s.Shared = s.Shared || s.Type == TypeRBD
	def(&s.Total, storageTotal)
	def(&s.Free, s.Total*2/3)
	s.dirs = map[string]string{}
	for _, n := range p.c.nodes {
		switch {
		case s.Shared:
			s.dirs[n.Name] = filepath.Join(p.c.cfg.Dir, "st", s.Name)
		case s.Name == StorageLocal:
			s.dirs[n.Name] = n.vz
		default:
			s.dirs[n.Name] = filepath.Join(p.c.cfg.Dir, n.Name, "st", s.Name)
		}
	}
	p.list = append(p.list, &s)
}

// create makes the directories and writes storage.cfg.
func (p *storagePool) create() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.list {
		for _, dir := range s.dirs {
			for _, sub := range []string{"images", "snippets", "import", "template/iso"} {
				if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
					return fmt.Errorf("storage %s: %w", s.Name, err)
				}
			}
		}
	}
	return p.lockedWrite()
}

// lockedWrite writes storage.cfg into the tree, and each node's own into its
// view: the path of a storage that is not shared is another on every node,
// because here all nodes live in one file system.
func (p *storagePool) lockedWrite() error {
	for _, n := range p.c.nodes {
		path := filepath.Join(n.own, "storage.cfg")
		if err := replaceFile(path, p.lockedText(n.Name), 0o640); err != nil {
			return err
		}
	}
	return p.c.tree.writeFile("storage.cfg", p.lockedText(p.c.nodes[0].Name), 0o640)
}

func (p *storagePool) lockedText(node string) []byte {
	var b strings.Builder
	for _, s := range p.list {
		fmt.Fprintf(&b, "%s: %s\n%s\tcontent %s\n", s.Type, s.Name, s.definition(node), strings.Join(s.Content, ","))
		if len(s.Nodes) > 0 {
			fmt.Fprintf(&b, "\tnodes %s\n", strings.Join(s.Nodes, ","))
		}
		if s.Disabled {
			b.WriteString("\tdisable\n")
		}
		if s.Shared && s.Type != TypeRBD {
			b.WriteString("\tshared 1\n")
		} else if s.Name == StorageLocal {
			b.WriteString("\tprune-backups keep-all=1\n")
		}
		b.WriteString("\n")
	}
	return []byte(b.String())
}

// AddStorage adds a storage.
func (c *Cluster) AddStorage(s Storage) error {
	c.pool.mu.Lock()
	c.pool.add(s)
	c.pool.mu.Unlock()
	return c.pool.create()
}

// ChangeStorage changes a storage ("full now", "disabled", "on pve1 only").
func (c *Cluster) ChangeStorage(name string, change func(*Storage)) error {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	for _, s := range c.pool.list {
		if s.Name == name {
			change(s)
			return c.pool.lockedWrite()
		}
	}
	return fmt.Errorf("pvesim: no storage %q", name)
}

// StorageDir is where a node has a storage's files.
func (c *Cluster) StorageDir(node, name string) (string, error) {
	s, err := c.pool.get(name)
	if err != nil {
		return "", err
	}
	return s.dirs[node], nil
}

// names in order.
func (p *storagePool) all() []Storage {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Storage, 0, len(p.list))
	for _, s := range p.list {
		out = append(out, *s)
	}
	return out
}

func (p *storagePool) get(name string) (Storage, error) {
	for _, s := range p.all() {
		if s.Name == name {
			return s, nil
		}
	}
	return Storage{}, dief("storage '%s' does not exist", name)
}

func (s Storage) on(node string) bool { return len(s.Nodes) == 0 || slices.Contains(s.Nodes, node) }

func (s Storage) holds(content string) bool { return slices.Contains(s.Content, content) }

// enabled returns a storage that a node can use.
func (p *storagePool) enabled(name, node string) (Storage, error) {
	s, err := p.get(name)
	switch {
	case err != nil:
		return s, err
	case s.Disabled:
		return s, dief("storage '%s' is disabled", name)
	case !s.on(node):
		return s, dief("storage '%s' is not available on node '%s'", name, node)
	}
	return s, nil
}

// path is where a node finds a volume.
func (p *storagePool) path(node, volid string) (string, error) {
	v, err := parseVolume(volid)
	if err != nil {
		return "", err
	}
	s, err := p.enabled(v.storage, node)
	if err != nil {
		return "", err
	}
	if v.kind == "images" && v.block != s.block() || v.kind != "images" && s.block() {
		kind := map[bool]string{false: "directory", true: strings.TrimSuffix(s.Type, "thin")}[s.block()]
		return "", dief("unable to parse %s volume name '%s'", kind, strings.TrimPrefix(volid, v.storage+":"))
	}
	return filepath.Join(s.dirs[node], v.file()), nil
}

// exists is path for a volume that must be there.
func (p *storagePool) exists(node, volid string) (string, error) {
	path, err := p.path(node, volid)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", dief("volume '%s' does not exist", volid)
	}
	return path, nil
}

// room fails when a volume's storage has less than n bytes left.
func (p *storagePool) room(volid, path string, n int64) error {
	name, _, _ := strings.Cut(volid, ":")
	s, err := p.get(name)
	if err != nil {
		return err
	}
	if s.Free < n {
		return p.full(volid, path)
	}
	return nil
}

// full is how a storage says that it has no room for a volume.
func (p *storagePool) full(volid, path string) error {
	name, volume, _ := strings.Cut(volid, ":")
	s, err := p.get(name)
	if err != nil {
		return err
	}
	switch s.Type {
	case TypeLVM:
		return dief("lvcreate '%s/%s' error:   Volume group \"%[1]s\" has insufficient free space (0 extents): 1 required.", name, volume)
	case TypeLVMThin:
		return dief("lvcreate '%s/%s' error:   Cannot create new thin volume, free space in thin pool %[1]s/data reached threshold.", name, volume)
	case TypeZFS:
		return dief("zfs error: cannot create '%s/data/%s': out of space", name, volume)
	case TypeRBD:
		return dief("error with cfs lock 'storage-%s': rbd create '%s' error: rbd: create error: (28) No space left on device", name, volume)
	}
	return dief("unable to create image: qemu-img: %s: Could not resize file: No space left on device", path)
}

// newDisk chooses the next free disk name of a VM and makes its directory.
// done gives the name back when nothing came of it.
func (p *storagePool) newDisk(s Storage, node string, vmid int, format string) (name string, done func(), err error) {
	p.names.Lock()
	defer p.names.Unlock()
	dir := filepath.Join(s.dirs[node], "images", fmt.Sprint(vmid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("allocate: %w", err)
	}
	used := diskNumbers(dir)
	for i := 0; ; i++ {
		name := s.volumeName(vmid, fmt.Sprintf("disk-%d", i), format)
		claim := fmt.Sprintf("%s/%d", dir, i)
		if used[i] || p.claimed[claim] {
			continue
		}
		p.claimed[claim] = true
		return name, func() {
			p.names.Lock()
			defer p.names.Unlock()
			delete(p.claimed, claim)
		}, nil
	}
}

func diskNumbers(dir string) map[int]bool {
	used := map[int]bool{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return used
	}
	for _, e := range entries {
		if _, rest, ok := strings.Cut(e.Name(), "-disk-"); ok {
			n, _, _ := strings.Cut(rest, ".")
			used[atoi(n)] = true
		}
	}
	return used
}

// free removes a volume; its directory goes with the last one.
func (p *storagePool) free(node, volid string) error {
	path, err := p.path(node, volid)
	if err != nil {
		return err
	}
	v, err := parseVolume(volid)
	if err != nil {
		return err
	}
	if v.isBase && p.inUse(p.c.ctx, node, v) {
		return dief("base volume '%s' is still in use by linked clones", strings.TrimPrefix(volid, v.storage+":"))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dief("unlink '%s' failed - %s", path, err)
	}
	if v.kind == "images" {
		_ = os.Remove(filepath.Dir(path)) // fails unless it is empty
	}
	return nil
}

// inUse says whether a linked clone stands on a base volume.
func (p *storagePool) inUse(ctx context.Context, node string, base volume) bool {
	want := "/" + base.asBase()
	vols, err := p.volumes(ctx, node, base.storage)
	if err != nil {
		return false
	}
	for _, v := range vols {
		if strings.HasSuffix("/"+v.vol.base, want) {
			return true
		}
	}
	return false
}

func replaceFile(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
