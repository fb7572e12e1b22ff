package pvesim

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// volume is a volume of a storage.
type volume struct {
	storage string
	kind    string // content type: images, iso, snippets, import, vztmpl, backup
	name    string // file name
	owner   int    // VM the image belongs to
	base    string // "900/base-900-disk-0.qcow2", "base-900-disk-0" of a linked clone
	isBase  bool
	format  string
	block   bool // named as block storages do
}

var (
	linkedName = regexp.MustCompile(`^(\d+/base-[^/]+)/(\d+)/([^/]+)$`)
	imageName  = regexp.MustCompile(`^(\d+)/([^/]+)$`)
	blockName  = regexp.MustCompile(`^(?:(base-\d+-[^/.]+)/)?((?:vm|base)-(\d+)-[^/.]+)$`)
	fileName   = regexp.MustCompile(`^(iso|snippets|import|vztmpl|backup)/([^/]+)$`)
)

// parseVolume reads a volume id ("local:100/vm-100-disk-0.qcow2").
func parseVolume(volid string) (volume, error) {
	storage, name, ok := strings.Cut(volid, ":")
	if !ok || storage == "" || name == "" {
		return volume{}, dief("unable to parse volume ID '%s'", volid)
	}
	v := volume{storage: storage}
	if m := linkedName.FindStringSubmatch(name); m != nil {
		v.kind, v.base, v.owner, v.name = "images", m[1], atoi(m[2]), m[3]
	} else if m := imageName.FindStringSubmatch(name); m != nil {
		v.kind, v.owner, v.name = "images", atoi(m[1]), m[2]
	} else if m := blockName.FindStringSubmatch(name); m != nil {
		v.kind, v.base, v.name, v.owner, v.block = "images", m[1], m[2], atoi(m[3]), true
	} else if m := fileName.FindStringSubmatch(name); m != nil {
		v.kind, v.name = m[1], m[2]
	} else {
		return volume{}, dief("unable to parse directory volume name '%s'", name)
	}
	v.isBase = strings.HasPrefix(v.name, "base-")
	v.format = strings.TrimPrefix(filepath.Ext(v.name), ".")
	if v.block {
		v.format = "raw"
	}
	if v.kind == "iso" || v.kind == "snippets" {
		v.format = map[string]string{"iso": "iso", "snippets": "snippet"}[v.kind]
	}
	return v, nil
}

func (v volume) String() string {
	switch {
	case v.kind != "images":
		return v.storage + ":" + v.kind + "/" + v.name
	case v.block && v.base != "":
		return v.storage + ":" + v.base + "/" + v.name
	case v.block:
		return v.storage + ":" + v.name
	case v.base != "":
		return fmt.Sprintf("%s:%s/%d/%s", v.storage, v.base, v.owner, v.name)
	}
	return fmt.Sprintf("%s:%d/%s", v.storage, v.owner, v.name)
}

// asBase is how a linked clone names it.
func (v volume) asBase() string {
	if v.block {
		return v.name
	}
	return fmt.Sprintf("%d/%s", v.owner, v.name)
}

// file is the volume's path below the storage's directory. Block devices are
// played by qcow2 images, which can have snapshots.
func (v volume) file() string {
	switch v.kind {
	case "images":
		if v.block {
			return filepath.Join("images", strconv.Itoa(v.owner), v.name+".qcow2")
		}
		return filepath.Join("images", strconv.Itoa(v.owner), v.name)
	case "iso":
		return filepath.Join("template", "iso", v.name)
	case "vztmpl":
		return filepath.Join("template", "cache", v.name)
	case "backup":
		return filepath.Join("dump", v.name)
	}
	return filepath.Join(v.kind, v.name)
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}
