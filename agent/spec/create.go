package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
)

// CreateInput is a Create request as it stands on the wire.
type CreateInput struct {
	Name                                                         string
	ClassJSON, ImageJSON, NetworksJSON, DisksJSON, PlacementJSON string
	UserData, MetaData                                           []byte
	Tags                                                         []string
}

// DecodeCreate checks and decodes a Create request. Every error is an *Error.
func DecodeCreate(in CreateInput) (Create, error) {
	c := Create{Name: in.Name, UserData: in.UserData, MetaData: in.MetaData, Tags: slices.Clone(in.Tags)}
	if err := cmp.Or(checkName(place{payload: "name"}, in.Name), checkData(place{payload: "user_data"}, in.UserData),
		checkData(place{payload: "meta_data"}, in.MetaData)); err != nil {
		return Create{}, err
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
		unknown, err := decode(place{payload: p.name}, p.text, p.required, p.into)
		if err != nil {
			return Create{}, err
		}
		c.Unknown = append(c.Unknown, unknown...)
	}
	err := cmp.Or(c.Class.check(place{payload: "class_json"}), c.Image.check(place{payload: "image_json"}),
		checkNetworks(CreateDialect, c.Networks), checkDisks(place{payload: "disks_json"}, c.Disks))
	if err != nil {
		return Create{}, err
	}
	return c, nil
}

// DecodeImage checks and decodes the image of a Create request alone. Every error is an *Error.
func DecodeImage(imageJSON string) (Image, error) {
	var i Image
	if _, err := decode(place{payload: "image_json"}, imageJSON, true, &i); err != nil {
		return Image{}, err
	}
	return i, i.check(place{payload: "image_json"})
}

// Canonical returns bytes that are equal for equal wishes, whatever the spelling of the request: the input of the
// fingerprint kept in a VM's record.
func (c Create) Canonical() []byte { return canonical(c) }

// Canonical is the same as Create's.
func (c Clone) Canonical() []byte { return canonical(c) }

func canonical(wish any) []byte {
	var b bytes.Buffer
	// A struct of plain values always encodes; maps are written in key order.
	_ = json.NewEncoder(&b).Encode(wish)
	return b.Bytes()
}
