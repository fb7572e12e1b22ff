package plan

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Blank is a VM that is not cloned from another one.
type Blank struct {
	Values Values       // for the call that creates it
	Conf   *pmxcfs.Conf // as its config will be then, for further plans
	Volume string       // what it is made from, which has to exist
}

// rootKey is where the root disk of a VM that is made new stands.
const rootKey = "scsi0"

// isoVolume is the volume id of an installation medium.
var isoVolume = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.-]*):iso/[^/]+\.(?i:iso|img)$`)

// diskVolume is the volume id of a disk; of its parts only the storage matters here.
var diskVolume = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.-]*):[^:]+$`)

// BlankVolume returns the volume that an image names instead of a template: an installation medium
// ("local:iso/debian.iso"), or a disk ("local-lvm:vm-9100-disk-0", "local:import/debian.qcow2"); "" if it names none.
func BlankVolume(image spec.Image) string {
	for _, name := range []string{image.TemplateName, image.Path} {
		if name == image.Path && strings.HasPrefix(name, spec.PreparedPath) {
			continue // names an image
		}
		if isoVolume.MatchString(name) || diskVolume.MatchString(name) {
			return name
		}
	}
	return ""
}

// MakeBlank plans a VM with an empty root disk and an installation medium, or with a root disk that is a copy of a
// volume. format is what the request says of it; "": nothing.
func MakeBlank(volume, format string, w Wish, site Site) (Blank, error) {
	if iso := isoVolume.MatchString(volume); (format == "iso") != iso && format != "" && format != "template" {
		return Blank{}, fault.New(fault.Invalid, "image_json: Format: %q does not fit volume %s", format, volume)
	}
	b := Blank{Volume: volume, Values: Values{"ostype": "l26", "scsihw": "virtio-scsi-single"}}
	class := spec.Class{}
	if w.Class != nil {
		class = *w.Class
	}
	storage, err := site.blankStorage(volume, class, w.Placement)
	if err != nil {
		return Blank{}, err
	}
	size := 0
	if isoVolume.MatchString(volume) {
		if class.DiskDefaults == nil || class.DiskDefaults.SizeGiB == 0 {
			return Blank{}, site.class(fault.Invalid, "DiskDefaults.SizeGiB", "is needed for a VM that is installed from %s: there is no template to take the size from", volume)
		}
		size = class.DiskDefaults.SizeGiB
		b.Values[rootKey] = fmt.Sprintf("%s:%d", storage, size)
		b.Values["ide2"] = volume + ",media=cdrom"
		b.Values["boot"] = "order=" + rootKey + ";ide2"
	} else {
		b.Values[rootKey] = storage + ":0,import-from=" + volume
		b.Values["boot"] = "order=" + rootKey
	}
	if format := site.format(storage); format != "" {
		b.Values[rootKey] += ",format=" + format
	}
	if len(w.Networks) == 0 {
		lan, _ := site.bridge("default")
		b.Values["net0"] = "virtio,bridge=" + cmp.Or(lan, defaultBridge)
	}
	b.Conf, err = blankConf(b.Values, storage, size)
	return b, err
}

// blankConf is the config that PVE will write.
func blankConf(values Values, storage string, size int) (*pmxcfs.Conf, error) {
	have := maps.Clone(values)
	have[rootKey] = fmt.Sprintf("%s:vm-0-disk-0,size=%dG", storage, size)
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(have)) {
		fmt.Fprintf(&b, "%s: %s\n", k, have[k])
	}
	conf, err := pmxcfs.ParseConf("new VM", []byte(b.String()))
	if err != nil {
		return nil, fault.New(fault.Internal, "plan a new VM: %w", err)
	}
	return conf, nil
}

// blankStorage is where the root disk goes: where the request says, or where the volume is, or the only storage there is.
func (s Site) blankStorage(volume string, class spec.Class, p spec.Placement) (string, error) {
	said := p.Datastore
	if d := class.DiskDefaults; said == "" && d != nil {
		found, err := s.storageClass(cmp.Or(d.StorageClass, d.Type))
		if err != nil {
			field := "DiskDefaults.Type"
			if d.StorageClass != "" {
				field = "DiskDefaults.StorageClass"
			}
			return "", s.class(fault.Precondition, field, "%v", err)
		}
		said = found.Storage
	}
	if said != "" {
		return said, nil
	}
	own, _, _ := strings.Cut(volume, ":")
	if !isoVolume.MatchString(volume) && s.holdsDisks(own) == nil {
		return own, nil
	}
	var able []string
	for _, found := range s.World.Storages {
		if s.holdsDisks(found.ID) == nil {
			able = append(able, found.ID)
		}
	}
	if len(able) == 1 {
		return able[0], nil
	}
	return "", s.fail(fault.Precondition, s.Dialect.PlacementError("Datastore",
		fmt.Sprintf("has to say where the disk of a VM made from %s goes; node %s has: %s", volume, s.Node, strings.Join(able, ", "))))
}
