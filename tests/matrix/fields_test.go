package matrix

import (
	"reflect"
	"slices"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// whole are types that are refused as a whole: their parts are not asked about.
var whole = []reflect.Type{reflect.TypeFor[spec.Sysprep](), reflect.TypeFor[spec.GuestCommand](), reflect.TypeFor[spec.Certificate]()}

// absent are fields of types that several requests share, which this one's payload does not carry.
var absent = map[string][]string{
	"create":      {"Class.DiskDefaults.IOPS", "Class.DiskDefaults.StorageClass"},
	"reconfigure": {"Class.DiskDefaults.IOPS", "Class.DiskDefaults.StorageClass"},
	"clone":       {"Networks.Portgroup", "Networks.NetworkName", "Networks.Bridge", "Networks.VLAN", "Networks.Model", "Networks.PCISlotNumber"},
}

// fields are all leaves of a wish, as "Class.Firmware"; an element of a list stands for all.
func fields(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || slices.Contains(whole, t) {
		return []string{path}
	}
	var out []string
	for i := range t.NumField() {
		name := t.Field(i).Name
		if name == "Unknown" { // what is no field
			continue
		}
		if path != "" {
			name = path + "." + name
		}
		out = append(out, fields(t.Field(i).Type, name)...)
	}
	return out
}

// TestEveryFieldIsAsked compares the files with the types that requests are decoded into.
func TestEveryFieldIsAsked(t *testing.T) {
	for name, wish := range map[string]reflect.Type{
		"create": reflect.TypeFor[spec.Create](), "clone": reflect.TypeFor[spec.Clone](), "reconfigure": reflect.TypeFor[spec.Reconfigure](),
	} {
		want := fields(wish, "")
		var asked []string
		for _, q := range read(t, name).questions[1:] {
			if !slices.Contains(want, q.field()) {
				t.Errorf("%s: %q is no field of a wish", name, q.field())
			}
			asked = append(asked, q.field())
		}
		for _, f := range want {
			if !slices.Contains(asked, f) && !slices.Contains(absent[name], f) {
				t.Errorf("%s: nobody asks what becomes of %s", name, f)
			}
		}
	}
}
