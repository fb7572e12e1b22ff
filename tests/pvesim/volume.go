package pvesim

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// volume is a volume of a directory storage.
type volume struct {
	storage string
	kind    string // content type: images, iso, snippets, import, vztmpl, backup
	name    string // file name
	owner   int    // VM the image belongs to
	base    string // "900/base-900-disk-0.qcow2" of a linked clone
	isBase  bool
	format  string
}

var (
	linkedName = regexp.MustCompile(`^(\d+/base-[^/]+)/(\d+)/([^/]+)$`)
	imageName  = regexp.MustCompile(`^(\d+)/([^/]+)$`)
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
	} else if m := fileName.FindStringSubmatch(name); m != nil {
		v.kind, v.name = m[1], m[2]
	} else {
		return volume{}, dief("unable to parse directory volume name '%s'", name)
	}
	v.isBase = strings.HasPrefix(v.name, "base-")
	v.format = strings.TrimPrefix(filepath.Ext(v.name), ".")
	if v.kind == "iso" || v.kind == "snippets" {
		v.format = map[string]string{"iso": "iso", "snippets": "snippet"}[v.kind]
	}
	return v, nil
}

func (v volume) String() string {
	switch {
	case v.kind != "images":
		return v.storage + ":" + v.kind + "/" + v.name
	case v.base != "":
		return fmt.Sprintf("%s:%s/%d/%s", v.storage, v.base, v.owner, v.name)
	}
	return fmt.Sprintf("%s:%d/%s", v.storage, v.owner, v.name)
}

// file is the volume's path below the storage's directory.
func (v volume) file() string {
	switch v.kind {
	case "images":
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
