package pmxcfs

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Storage is one storage of storage.cfg.
type Storage struct {
	ID      string
	Type    string // dir, nfs, lvmthin, zfspool, rbd, ...
	Path    string // where a file-based storage is mounted; "" for the others
	Content []string
	Nodes   []string // the nodes it is limited to; nil for all
	Shared  bool     // the same content on every node
	Disable bool
	Options map[string]string // every option as written; one without a value is "1"
}

// Storages are the storages of a cluster in the order of storage.cfg.
type Storages []Storage

// Get returns the storage of that id.
func (s Storages) Get(id string) (Storage, bool) {
	if i := slices.IndexFunc(s, func(e Storage) bool { return e.ID == id }); i >= 0 {
		return s[i], true
	}
	return Storage{}, false
}

// ParseStorages decodes storage.cfg; path only names the file in errors. Like PVE it adds the storage "local" if there
// is none, fills in a type's default content, and knows which types are always shared.
func ParseStorages(path string, raw []byte) (Storages, error) {
	if bytes.IndexByte(raw, 0) >= 0 {
		return nil, &FormatError{Path: path, Reason: "zero byte"}
	}
	var list Storages
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		text := strings.Trim(line, whitespace)
		switch {
		case text == "" || text[0] == '#':
		case strings.Trim(line[:1], whitespace) != "":
			typ, id, ok := strings.Cut(text, ":")
			id = strings.Trim(id, whitespace)
			if !ok || typ == "" || id == "" || strings.ContainsAny(id, whitespace) {
				return nil, &FormatError{Path: path, Reason: fmt.Sprintf("line %d: no `type: id`: %q", n, text)}
			}
			list = append(list, Storage{ID: id, Type: strings.ToLower(typ), Options: map[string]string{}})
		case len(list) == 0:
			return nil, &FormatError{Path: path, Reason: fmt.Sprintf("line %d: an option outside of a storage", n)}
		default:
			list[len(list)-1].setOption(text)
		}
	}
	return list.complete(), nil
}

func (s *Storage) setOption(text string) {
	key, value := text, "1"
	if i := strings.IndexAny(text, whitespace); i >= 0 {
		key, value = text[:i], strings.Trim(text[i:], whitespace)
	}
	s.Options[key] = value
	switch key {
	case "path":
		s.Path = value
	case "content":
		s.Content = fields(value)
	case "nodes":
		s.Nodes = fields(value)
	case "shared":
		s.Shared = boolean(value)
	case "disable":
		s.Disable = boolean(value)
	}
}

// complete adds what PVE adds when it reads the file.
func (s Storages) complete() Storages {
	if local, ok := s.Get("local"); !ok || local.Type != "dir" {
		s = slices.DeleteFunc(s, func(e Storage) bool { return e.ID == "local" })
		s = slices.Insert(s, 0, Storage{
			ID: "local", Type: "dir", Content: []string{"backup", "images", "iso", "rootdir", "snippets", "vztmpl"},
			Options: map[string]string{},
		})
	}
	for i := range s {
		e := &s[i]
		if e.ID == "local" {
			e.Nodes = nil
		}
		if e.Content == nil {
			e.Content = defaultContent[e.Type]
		}
		e.Shared = e.Shared || slices.Contains(sharedTypes, e.Type)
		if e.Path == "" {
			e.Path = e.defaultPath()
		}
	}
	return s
}

// defaultPath is where PVE mounts a file-based storage whose definition names no path.
func (s *Storage) defaultPath() string {
	switch {
	case s.ID == "local":
		return "/var/lib/vz"
	case slices.Contains([]string{"nfs", "cifs", "cephfs"}, s.Type):
		return "/mnt/pve/" + s.ID
	default:
		return ""
	}
}

// sharedTypes are shared whatever the definition says (pve-storage, PVE::Storage::Plugin).
var sharedTypes = []string{"iscsi", "nfs", "cifs", "rbd", "cephfs", "iscsidirect", "glusterfs", "zfs", "drbd", "pbs"}

// defaultContent is what a storage without `content` holds (plugindata of the storage plugins).
var defaultContent = map[string][]string{
	"dir": {"images", "rootdir"}, "btrfs": {"images", "rootdir"}, "nfs": {"images"}, "cifs": {"images"},
	"lvm": {"images"}, "lvmthin": {"images", "rootdir"}, "zfspool": {"images", "rootdir"}, "rbd": {"images"},
	"iscsi": {"images"}, "iscsidirect": {"images"}, "zfs": {"images"}, "glusterfs": {"images"},
	"cephfs": {"backup"}, "pbs": {"backup"}, "esxi": {"import"},
}

// contentDirs are the directories of a file-based storage by content type (PVE::Storage::Plugin, vtype_subdirs).
var contentDirs = map[string]string{
	"images": "images", "rootdir": "private", "iso": "template/iso", "vztmpl": "template/cache", "backup": "dump",
	"snippets": "snippets", "import": "import",
}

// Has reports whether the storage may hold that type of content: images, iso, snippets, ...
func (s Storage) Has(content string) bool { return slices.Contains(s.Content, content) }

// OnNode reports whether the storage is enabled and meant for that node.
func (s Storage) OnNode(node string) bool {
	return !s.Disable && (len(s.Nodes) == 0 || slices.Contains(s.Nodes, node))
}

// Format is the image format of one of the storage's volumes: a file's extension, raw on block storage. (LVM holds
// qcow2 too, from PVE 9 on.)
func (s Storage) Format(volume string) string {
	if ext := extension(volume); ext != "" && (s.Path != "" || s.Type == "lvm" || s.Type == "glusterfs") {
		return ext
	}
	return "raw"
}

// dir is the directory for a type of content.
func (s Storage) dir(content string) (string, error) {
	if s.Path == "" {
		return "", fmt.Errorf("storage %s of type %s has no files", s.ID, s.Type)
	}
	sub, ok := contentDirs[content]
	if !ok {
		return "", fmt.Errorf("storage %s: no directory for content %q", s.ID, content)
	}
	if over, ok := Props(s.Options["content-dirs"]).Get(content); ok {
		sub = over
	}
	return filepath.Join(s.Path, sub), nil
}

// SnippetPath is the file of the snippet `<storage>:snippets/<file>`.
func (s Storage) SnippetPath(file string) (string, error) {
	if file == "" || file == "." || file == ".." || strings.Contains(file, "/") {
		return "", fmt.Errorf("storage %s: not a snippet's file name: %q", s.ID, file)
	}
	dir, err := s.dir("snippets")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, file), nil
}

// VolumePath is the file of a volume, `<storage>:<volume>` or without the storage, of a file-based storage.
func (s Storage) VolumePath(volid string) (string, error) {
	volume := strings.TrimPrefix(volid, s.ID+":")
	content, rest, ok := strings.Cut(volume, "/")
	if !ok || path.Clean("/"+volume) != "/"+volume || strings.Contains(volume, ":") {
		return "", fmt.Errorf("storage %s: not a volume of it: %q", s.ID, volid)
	}
	if digits(content) {
		return s.imagePath(volume)
	}
	dir, err := s.dir(content)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, rest), nil
}

// imagePath is the file of `<vmid>/<name>`, or of the linked clone `<base vmid>/<base>/<vmid>/<name>`.
func (s Storage) imagePath(volume string) (string, error) {
	dir, err := s.dir("images")
	if err != nil {
		return "", err
	}
	parts := strings.Split(volume, "/")
	if len(parts) == 4 {
		parts = parts[2:]
	}
	if len(parts) != 2 || !digits(parts[0]) {
		return "", fmt.Errorf("storage %s: not an image: %q", s.ID, volume)
	}
	name := parts[1]
	if base, ok := strings.CutSuffix(name, ".raw"); ok && s.Type == "btrfs" {
		name = base + "/disk.raw" // a raw image is a subvolume there
	}
	return filepath.Join(dir, parts[0], name), nil
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
