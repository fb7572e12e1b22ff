package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// CreateInput is a Create request as it stands on the wire.
type CreateInput struct {
	Name                                                         string
	ClassJSON, ImageJSON, NetworksJSON, DisksJSON, PlacementJSON string
	UserData, MetaData                                           []byte
	Tags                                                         []string
}

// Limits of what a wish may ask for, as the manager's CRDs and PVE's schema have them.
const (
	MaxCPU       = 128
	MinMemoryMiB = 16
	MaxMemoryMiB = 4 << 20 // 4 TiB
	MaxDiskGiB   = 128 << 10
	MaxUserData  = 1 << 20 // bytes; PVE reads no larger snippet
)

// nameRE is a DNS-1123 subdomain; PVE's dns-name format accepts every such name.
var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// DecodeCreate checks and decodes a Create request. Every error is an *Error.
func DecodeCreate(in CreateInput) (Create, error) {
	c := Create{Name: in.Name, UserData: in.UserData, MetaData: in.MetaData, Tags: slices.Clone(in.Tags)}
	if len(in.Name) > 253 || !nameRE.MatchString(in.Name) {
		return Create{}, &Error{Payload: "name", Problem: fmt.Sprintf("%q is not a DNS-1123 name (lower case letters, digits, '-' and '.')", in.Name)}
	}
	if len(in.UserData) > MaxUserData {
		return Create{}, &Error{Payload: "user_data", Problem: fmt.Sprintf("%d bytes, at most %d fit", len(in.UserData), MaxUserData)}
	}
	for _, p := range []struct {
		name, text string
		required   bool
		into       any
	}{
		{"class_json", in.ClassJSON, true, &c.Class},
		{"image_json", in.ImageJSON, true, &c.Image},
		{"networks_json", in.NetworksJSON, false, &c.Networks},
		{"disks_json", in.DisksJSON, false, &c.Disks},
		{"placement_json", in.PlacementJSON, false, &c.Placement},
	} {
		if err := decode(p.name, p.text, p.required, p.into); err != nil {
			return Create{}, err
		}
	}
	for _, check := range []func() error{c.Class.check, c.Image.check, c.checkDisks} {
		if err := check(); err != nil {
			return Create{}, err
		}
	}
	return c, nil
}

// DecodeImage checks and decodes the image of a Create request alone. Every error is an *Error.
func DecodeImage(imageJSON string) (Image, error) {
	var i Image
	if err := decode("image_json", imageJSON, true, &i); err != nil {
		return Image{}, err
	}
	return i, i.check()
}

// decode reads one JSON payload. Absent and null leave the value as it is, unless the payload is required.
func decode(payload, text string, required bool, into any) error {
	text = strings.TrimSpace(text)
	if text == "" || text == "null" {
		if required {
			return &Error{Payload: payload, Problem: "is empty, an object is needed"}
		}
		return nil
	}
	dec := json.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(into); err != nil {
		return decodeError(payload, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &Error{Payload: payload, Problem: "has more text after its JSON value"}
	}
	return nil
}

func decodeError(payload string, err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return &Error{Payload: payload, Field: wrongType.Field, Problem: fmt.Sprintf("expected %s, got %s", wrongType.Type, wrongType.Value)}
	}
	return &Error{Payload: payload, Problem: "is not valid JSON: " + strings.TrimPrefix(err.Error(), "json: ")}
}

func (c *Class) check() error {
	if err := inRange("CPU", c.CPU, 1, MaxCPU); err != nil {
		return err
	}
	if err := inRange("MemoryMiB", c.MemoryMiB, MinMemoryMiB, MaxMemoryMiB); err != nil {
		return err
	}
	if c.DiskDefaults != nil {
		if err := inRange("DiskDefaults.SizeGiB", c.DiskDefaults.SizeGiB, 0, MaxDiskGiB); err != nil {
			return err
		}
	}
	return c.checkEnums()
}

func (c *Class) checkEnums() error {
	enums := []enum{
		{"Firmware", c.Firmware, []string{"BIOS", "UEFI", "EFI"}},
		{"GuestToolsPolicy", c.GuestToolsPolicy, []string{"install", "skip", "upgrade", "uninstall"}},
	}
	if d := c.DiskDefaults; d != nil {
		enums = append(enums, enum{"DiskDefaults.Type", d.Type, diskTypes})
	}
	if p := c.PerformanceProfile; p != nil {
		enums = append(enums,
			enum{"PerformanceProfile.LatencySensitivity", p.LatencySensitivity, []string{"low", "normal", "high"}},
			enum{"PerformanceProfile.HyperThreadingPolicy", p.HyperThreadingPolicy, []string{"auto", "prefer", "avoid", "require"}})
	}
	if s := c.SecurityProfile; s != nil {
		enums = append(enums, enum{"SecurityProfile.TPMVersion", s.TPMVersion, []string{"1.2", "2.0"}})
	}
	for _, e := range enums {
		if err := e.check("class_json"); err != nil {
			return err
		}
	}
	return nil
}

var diskTypes = []string{"thin", "thick", "eagerzeroedthick", "ssd", "hdd", "nvme"}

func (i *Image) check() error {
	if i.Empty() {
		return &Error{Payload: "image_json", Problem: "names no template, path or URL: a VM without a root disk is refused. " +
			"On a VMImage with only an http source add a proxmox source, so that the image is prepared first"}
	}
	return nil
}

func (c *Create) checkDisks() error {
	for i, d := range c.Disks {
		if d.SizeGiB < 1 || d.SizeGiB > MaxDiskGiB {
			return &Error{Payload: "disks_json", Field: fmt.Sprintf("[%d].SizeGiB", i), Problem: fmt.Sprintf("%d is not in 1..%d", d.SizeGiB, MaxDiskGiB)}
		}
		if err := (enum{fmt.Sprintf("[%d].Type", i), d.Type, diskTypes}).check("disks_json"); err != nil {
			return err
		}
	}
	return nil
}

func inRange(field string, v, low, high int) error {
	if v < low || v > high {
		return &Error{Payload: "class_json", Field: field, Problem: fmt.Sprintf("%d is not in %d..%d", v, low, high)}
	}
	return nil
}

// enum is a field with a closed set of values; empty means unset.
type enum struct {
	field, value string
	allowed      []string
}

func (e enum) check(payload string) error {
	if e.value == "" || slices.Contains(e.allowed, e.value) {
		return nil
	}
	return &Error{Payload: payload, Field: e.field, Problem: fmt.Sprintf("%q is not one of %s", e.value, strings.Join(e.allowed, ", "))}
}

// Canonical returns bytes that are equal for equal wishes, whatever the spelling of the request: the input of the
// fingerprint kept in a VM's record.
func (c Create) Canonical() []byte {
	var b bytes.Buffer
	// A struct of plain values always encodes; maps are written in key order.
	_ = json.NewEncoder(&b).Encode(c)
	return b.Bytes()
}
