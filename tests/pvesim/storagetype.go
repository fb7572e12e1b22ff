package pvesim

import (
	"fmt"
	"strings"
)

// The types of storage. All keep their volumes in files here; the others but
// TypeDir name and treat them as block storages of that type do.
const (
	TypeDir     = "dir"
	TypeLVM     = "lvm"
	TypeLVMThin = "lvmthin"
	TypeZFS     = "zfspool"
	TypeRBD     = "rbd" // always shared
)

// block says whether volumes are block devices: raw, and without a directory
// or an ending in their names.
func (s Storage) block() bool { return s.Type != TypeDir }

// features says per type what volumes can be used for, and in which state:
// "base" (of a template), "current", "snap" (a snapshot of it). From
// volume_has_feature of the plugins in PVE::Storage.
var features = map[string]map[string]string{
	TypeLVM:     {"copy": "base current"},
	TypeLVMThin: {"snapshot": "current", "clone": "base snap", "template": "current", "copy": "base current snap"},
	TypeZFS:     {"snapshot": "current snap", "clone": "base", "template": "current", "copy": "base current"},
	TypeRBD:     {"snapshot": "current snap", "clone": "base snap", "template": "current", "copy": "base current snap"},
}

// dirFeatures is the same for files; some want qcow2.
var dirFeatures = map[string]string{
	"snapshot": "qcow2:current qcow2:snap", "clone": "base", "template": "current", "copy": "base current qcow2:snap",
}

// hasFeature says whether PVE could use a volume ("snapshot", "clone",
// "copy", "template"); snap: a snapshot of it.
func (s Storage) hasFeature(feature string, v volume, snap bool) bool {
	state := "current"
	switch {
	case snap:
		state = "snap"
	case v.isBase:
		state = "base"
	}
	list := features[s.Type][feature]
	if !s.block() {
		list = dirFeatures[feature]
	}
	for _, want := range strings.Fields(list) {
		format, name, ok := strings.Cut(want, ":")
		if !ok {
			format, name = v.format, want
		}
		if name == state && format == v.format {
			return true
		}
	}
	return false
}

// hasFeature is Storage.hasFeature for a volume id; one that PVE could not
// read has none.
func (p *storagePool) hasFeature(feature, volid string, snap bool) bool {
	v, err := parseVolume(volid)
	if err != nil {
		return false
	}
	s, err := p.get(v.storage)
	return err == nil && s.hasFeature(feature, v, snap)
}

// chooseFormat is the format of a new volume: the one asked for, if the
// storage has it.
func (s Storage) chooseFormat(asked string) (string, error) {
	if asked == "" {
		asked = s.Format
	}
	switch {
	case asked == "":
		return "raw", nil
	case s.block() && asked != "raw", asked != "raw" && asked != "qcow2":
		return "", dief("storage '%s' does not support format '%s'", s.Name, asked)
	}
	return asked, nil
}

// roundSize is the size that a new volume gets: block storages have units.
func (s Storage) roundSize(size int64) int64 {
	unit := int64(1 << 10)
	switch s.Type {
	case TypeLVM, TypeLVMThin:
		unit = 4 << 20
	case TypeZFS, TypeRBD:
		unit = 1 << 20
	}
	return (size + unit - 1) / unit * unit
}

// volumeName is the name of a VM's volume ("disk-0", "cloudinit") on a storage.
func (s Storage) volumeName(vmid int, what, format string) string {
	name := fmt.Sprintf("vm-%d-%s", vmid, what)
	if s.block() {
		return name
	}
	return name + "." + format
}

// definition is the storage's entry in storage.cfg, without what all have.
func (s Storage) definition(node string) string {
	switch s.Type {
	case TypeLVM:
		return "\tvgname " + s.Name + "\n"
	case TypeLVMThin:
		return "\tthinpool data\n\tvgname " + s.Name + "\n"
	case TypeZFS:
		return "\tpool " + s.Name + "/data\n\tsparse 1\n"
	case TypeRBD:
		return "\tkrbd 0\n\tpool " + s.Name + "\n"
	}
	text := "\tpath " + s.dirs[node] + "\n"
	if s.Format != "" {
		text += "\tformat " + s.Format + "\n"
	}
	return text
}
