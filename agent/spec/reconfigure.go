package spec

import "cmp"

// desired is contracts.CreateRequest, as Reconfigure carries it.
type desired struct {
	Name     string
	Class    *Class
	Image    Image
	Networks []Network
	Disks    []Disk
	UserData struct {
		CloudInitData string
		Type          string // always cloud-init
	}
	MetaData  struct{ MetaDataYAML string }
	Placement Placement
	Tags      []string
}

// DecodeReconfigure checks and decodes desired_json. Every error is an *Error.
func DecodeReconfigure(desiredJSON string) (Reconfigure, error) {
	var d desired
	unknown, err := decode(place{payload: "desired_json"}, desiredJSON, true, &d)
	if err != nil {
		return Reconfigure{}, err
	}
	if err := d.check(); err != nil {
		return Reconfigure{}, err
	}
	return Reconfigure{
		Name: d.Name, Class: *d.Class, Image: d.Image, Networks: d.Networks, Disks: d.Disks, Placement: d.Placement,
		UserData: []byte(d.UserData.CloudInitData), MetaData: []byte(d.MetaData.MetaDataYAML), Tags: d.Tags, Unknown: unknown,
	}, nil
}

func (d *desired) check() error {
	at := func(prefix string) place { return place{payload: "desired_json", prefix: prefix} }
	if d.Class == nil {
		return at("Class").err("", "is missing")
	}
	return cmp.Or(
		d.checkName(at("Name")),
		d.Class.check(at("Class.")),
		d.Image.checkEnums(at("Image.")), // a VM that was cloned or adopted has no image
		checkNetworks(DesiredDialect, d.Networks),
		checkDisks(at("Disks"), d.Disks),
		oneOf(at("UserData."), "Type", d.UserData.Type, "cloud-init"),
		checkData(at("UserData.CloudInitData"), []byte(d.UserData.CloudInitData)),
		checkData(at("MetaData.MetaDataYAML"), []byte(d.MetaData.MetaDataYAML)),
	)
}

func (d *desired) checkName(p place) error {
	if d.Name == "" {
		return nil // the VM is known by its id
	}
	return checkName(p, d.Name)
}
