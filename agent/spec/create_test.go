package spec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func input(change func(*CreateInput)) CreateInput {
	in := CreateInput{
		Name:         "web-01",
		ClassJSON:    `{"CPU":2,"MemoryMiB":2048}`,
		ImageJSON:    `{"TemplateName":"9000","Format":"template"}`,
		NetworksJSON: "null",
		DisksJSON:    "null",
	}
	if change != nil {
		change(&in)
	}
	return in
}

func payload(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "tests", "payloads", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDecodeCreateOfTheManagersPayloads(t *testing.T) {
	got, err := DecodeCreate(CreateInput{
		Name:          "web-01",
		ClassJSON:     payload(t, "class-json.json"),
		ImageJSON:     payload(t, "image-json-template.json"),
		NetworksJSON:  payload(t, "networks-json.json"),
		DisksJSON:     payload(t, "disks-json.json"),
		PlacementJSON: payload(t, "placement-json.json"),
		UserData:      []byte("#cloud-config\n"),
		Tags:          []string{"env:test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Create{
		Name: "web-01",
		Class: Class{
			CPU: 2, MemoryMiB: 2048, Firmware: "UEFI", GuestToolsPolicy: "install",
			DiskDefaults:       &DiskDefaults{Type: "thin", SizeGiB: 40},
			ExtraConfig:        map[string]string{"proxmox.cpu": "host"},
			PerformanceProfile: &PerformanceProfile{CPUHotAddEnabled: true, MemoryHotAddEnabled: true, NestedVirtualization: true},
			SecurityProfile:    &SecurityProfile{SecureBoot: true, TPMEnabled: true, TPMVersion: "2.0"},
		},
		Image: Image{TemplateName: "9000", Format: "template", ChecksumType: "sha256"},
		Networks: []Network{
			{Name: "primary", Bridge: "vmbr0", Model: "virtio", StaticIP: "192.0.2.10", Prefix: 24, Gateway: "192.0.2.1", DNS: "192.0.2.53,192.0.2.54"},
			{Name: "storage", Bridge: "vmbr1", VLAN: 120, Model: "e1000"},
		},
		Disks:     []Disk{{SizeGiB: 8, Type: "thin", Name: "data"}},
		Placement: Placement{Datastore: "local-lvm", Cluster: "pve3", Folder: "vrdrive"},
		UserData:  []byte("#cloud-config\n"),
		Tags:      []string{"env:test"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wish differs (-want +got):\n%s", d)
	}
}

func TestDecodeCreateIsTolerantWhereTheManagerIs(t *testing.T) {
	for name, change := range map[string]func(*CreateInput){
		"null and absent":  func(in *CreateInput) { in.NetworksJSON, in.PlacementJSON = "", "" },
		"minimal class":    func(in *CreateInput) { in.ClassJSON = payload(t, "class-json-minimal-class.json") },
		"unknown key":      func(in *CreateInput) { in.ClassJSON = `{"CPU":1,"MemoryMiB":64,"Future":{"a":1}}` },
		"lower case keys":  func(in *CreateInput) { in.ClassJSON = `{"cpu":1,"memorymib":64}` },
		"name with dots":   func(in *CreateInput) { in.Name = "web.prod.example" },
		"path as a source": func(in *CreateInput) { in.ImageJSON = `{"Path":"local:iso/x.iso"}` },
	} {
		if _, err := DecodeCreate(input(change)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeCreateNamesWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*CreateInput)
		want   string
	}{
		"empty name":       {func(in *CreateInput) { in.Name = "" }, `name: "" is not a DNS-1123 name`},
		"name with space":  {func(in *CreateInput) { in.Name = "web 1" }, `name: "web 1" is not`},
		"long name":        {func(in *CreateInput) { in.Name = strings.Repeat("a", 254) }, "name: "},
		"no class":         {func(in *CreateInput) { in.ClassJSON = "" }, "class_json: is empty"},
		"garbage class":    {func(in *CreateInput) { in.ClassJSON = "{CPU" }, "class_json: is not valid JSON"},
		"class is array":   {func(in *CreateInput) { in.ClassJSON = "[]" }, "class_json: expected an object, got array"},
		"trailing text":    {func(in *CreateInput) { in.ClassJSON += "x" }, "class_json: has more text"},
		"CPU as text":      {func(in *CreateInput) { in.ClassJSON = `{"CPU":"2","MemoryMiB":64}` }, "class_json: CPU: expected a whole number, got string"},
		"CPU 0":            {func(in *CreateInput) { in.ClassJSON = `{"CPU":0,"MemoryMiB":64}` }, "class_json: CPU: 0 is not in 1..128"},
		"memory 0":         {func(in *CreateInput) { in.ClassJSON = `{"CPU":1}` }, "class_json: MemoryMiB: 0 is not in"},
		"firmware":         {func(in *CreateInput) { in.ClassJSON = `{"CPU":1,"MemoryMiB":64,"Firmware":"OpenBoot"}` }, `Firmware: "OpenBoot" is not one of BIOS, UEFI, EFI`},
		"root disk size":   {func(in *CreateInput) { in.ClassJSON = `{"CPU":1,"MemoryMiB":64,"DiskDefaults":{"SizeGiB":-1}}` }, "DiskDefaults.SizeGiB: -1 is not in"},
		"TPM version":      {func(in *CreateInput) { in.ClassJSON = `{"CPU":1,"MemoryMiB":64,"SecurityProfile":{"TPMVersion":"3"}}` }, "SecurityProfile.TPMVersion"},
		"empty image":      {func(in *CreateInput) { in.ImageJSON = `{"TemplateName":"","Format":"template"}` }, "image_json: names no template"},
		"null image":       {func(in *CreateInput) { in.ImageJSON = "null" }, "image_json: is empty"},
		"garbage networks": {func(in *CreateInput) { in.NetworksJSON = "}" }, "networks_json: is not valid JSON"},
		"VLAN as text":     {func(in *CreateInput) { in.NetworksJSON = `[{"VLAN":"x"}]` }, "networks_json: VLAN: expected a whole number, got string"},
		"garbage disks":    {func(in *CreateInput) { in.DisksJSON = "no" }, "disks_json: is not valid JSON"},
		"disk size 0":      {func(in *CreateInput) { in.DisksJSON = `[{"Name":"d"}]` }, "disks_json: [0].SizeGiB: 0 is not in"},
		"disk type":        {func(in *CreateInput) { in.DisksJSON = `[{"SizeGiB":1,"Type":"tape"}]` }, `disks_json: [0].Type: "tape"`},
		"garbage place":    {func(in *CreateInput) { in.PlacementJSON = "\x00" }, "placement_json: is not valid JSON"},
		"user data size":   {func(in *CreateInput) { in.UserData = make([]byte, MaxUserData+1) }, "user_data: 1048577 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeCreate(input(tc.change))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestCanonicalIgnoresSpelling(t *testing.T) {
	a, err := DecodeCreate(input(nil))
	if err != nil {
		t.Fatal(err)
	}
	b, err := DecodeCreate(input(func(in *CreateInput) { in.ClassJSON, in.NetworksJSON = ` {"memorymib":2048, "cpu":2}`, "" }))
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Canonical()) != string(b.Canonical()) {
		t.Error("two spellings of one wish differ")
	}
	c, err := DecodeCreate(input(func(in *CreateInput) { in.Tags = []string{"x"} }))
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Canonical()) == string(c.Canonical()) {
		t.Error("two wishes look the same")
	}
}

func FuzzDecodeCreate(f *testing.F) {
	f.Add("web-01", `{"CPU":2,"MemoryMiB":2048}`, `{"TemplateName":"9000"}`, "null", "null", "")
	f.Add("", "{", "[]", `[{"VLAN":1e99}]`, `[{"SizeGiB":1}]`, `{"Host":"x"}`)
	f.Fuzz(func(t *testing.T, name, class, image, networks, disks, placement string) {
		c, err := DecodeCreate(CreateInput{Name: name, ClassJSON: class, ImageJSON: image, NetworksJSON: networks, DisksJSON: disks, PlacementJSON: placement})
		if err == nil && (c.Class.CPU < 1 || c.Class.MemoryMiB < MinMemoryMiB || c.Image.Empty()) {
			t.Errorf("accepted an impossible wish: %+v", c)
		}
	})
}
