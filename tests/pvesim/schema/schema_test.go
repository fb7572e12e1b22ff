package schema_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

// load reads the schema of a version beside the one that PVE_API_SCHEMA names.
func load(t *testing.T, version string) *schema.Checker {
	t.Helper()
	env := os.Getenv("PVE_API_SCHEMA")
	if env == "" {
		t.Skip("skipped: needs PVE's call schema; enable with: export PVE_API_SCHEMA=<directory>/9.1.json")
	}
	c, err := schema.Load(filepath.Join(filepath.Dir(env), version+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const unknown = "property is not defined in schema and the schema does not allow additional properties"

var checks = []struct {
	name, verb, path, params string
	want                     map[string]map[string]string // by version, "" for all
}{
	// The first ones are recorded answers of a PVE 9.2 cluster.
	{"unknown parameter", "PUT", "config", "nosuchparam=1", all("nosuchparam", unknown)},
	{"memory", "PUT", "config", "memory=lots", map[string]map[string]string{
		"7.4": {"memory": "type check ('integer') failed - got 'lots'"},
		"":    {"memory": "invalid format - format error\nmemory.current: type check ('integer') failed - got 'lots'\n"},
	}},
	{"cores=0", "PUT", "config", "cores=0", all("cores", "value must have a minimum value of 1")},
	{"volume", "PUT", "config", "scsi1=foo", all("scsi1", "invalid format - format error\nscsi1.file: invalid format - unable to parse volume ID 'foo'\n\n")},
	{"missing", "POST", "snapshot", "", all("snapname", "property is missing and it is not optional")},
	{"snapshot name", "POST", "snapshot", "snapname=1bad name", all("snapname", "invalid format - invalid configuration ID '1bad name'\n")},
	{"vmid in path", "GET", "config", "vmid=abc", all("vmid", "type check ('integer') failed - got 'abc'")},

	{"good", "PUT", "config", "cores=2&memory=1024&net0=virtio,bridge=vmbr0,tag=5&scsi0=local:8,discard=on&agent=1&numa=1", nil},
	{"macaddr", "PUT", "config", "net0=virtio=BC:24:11:00:00:01,bridge=vmbr0", nil},
	{"macaddr by name", "PUT", "config", "net0=virtio,bridge=vmbr0,macaddr=BC:24:11:00:00:01", nil},
	{"mac is no key", "PUT", "config", "net0=virtio,mac=BC:24:11:00:00:01", all("net0", "invalid format - invalid key in comma-separated list property: mac\n")},
	{"multicast mac", "PUT", "config", "net0=virtio=01:24:11:00:00:01", all("net0", "invalid format - format error\nnet0.macaddr: invalid format - value does not look like a valid unicast MAC address\n\n")},
	{"scsi31", "PUT", "config", "scsi31=local:8", all("scsi31", unknown)},
	{"boolean", "PUT", "config", "numa=true", all("numa", "type check ('boolean') failed - got 'true'")},
	{"boolean in a property string", "PUT", "config", "agent=enabled=yes", nil},
	{"name", "PUT", "config", "name=under_score", all("name", "invalid format - value does not look like a valid DNS name\n")},
	{"smbios1", "PUT", "config", "smbios1=uuid=nonsense", all("smbios1", "invalid format - format error\nsmbios1.uuid: value does not match the regex pattern\n")},
	{"cicustom", "PUT", "config", "cicustom=user=local:snippets/x.yaml", nil},
	{"ipconfig", "PUT", "config", "ipconfig0=ip=10.0.0.5", all("ipconfig0", "invalid format - format error\nipconfig0.ip: invalid format - value does not look like a valid ipv4 network configuration\n\n")},
	{"gateway without address", "PUT", "config", "ipconfig0=gw=10.0.0.1", all("ipconfig0", "invalid format - format error\nipconfig0.ip: missing property required by 'ipconfig0.gw'\n")},
	{"enum", "PUT", "config", "ostype=linux", all("ostype", "value 'linux' does not have a value in the enumeration 'other, wxp, w2k, w2k3, w2k8, wvista, win7, win8, win10, win11, l24, l26, solaris'")},
	{"tags", "PUT", "config", "tags=a;b c", nil},
	{"tag with a colon", "PUT", "config", "tags=a:b", all("tags", "invalid format - invalid characters in tag\n")},
	{"sshkeys", "PUT", "config", "sshkeys=ssh-ed25519+AAAA", all("sshkeys", "invalid format - invalid urlencoded string: ssh-ed25519 AAAA\n")},
	{"force needs delete", "PUT", "config", "force=1", all("delete", "missing property required by 'force'")},
	{"description", "PUT", "config", "digest=" + "0123456789012345678901234567890123456789x", all("digest", "value may only be 40 characters long")},
	{"resize", "PUT", "resize", "disk=scsi0&size=%2B5G", nil},
	{"resize with a space", "PUT", "resize", "disk=scsi0&size=5 G", all("size", "value does not match the regex pattern")},
	{"clone", "POST", "clone", "newid=99", all("newid", "invalid format - value does not look like a valid VM ID\n")},
	{"clone twice", "POST", "clone", "newid=120&newid=121", all("newid", "type check ('integer') failed - got ARRAY")},
	{"ciupgrade is new in 8", "PUT", "config", "ciupgrade=0", map[string]map[string]string{"7.4": {"ciupgrade": unknown}}},
}

func all(key, text string) map[string]map[string]string {
	return map[string]map[string]string{"": {key: text}}
}

func TestCheck(t *testing.T) {
	for _, version := range []string{"7.4", "8.4", "9.1"} {
		t.Run(version, func(t *testing.T) {
			c := load(t, version)
			for _, tc := range checks {
				params, err := url.ParseQuery(tc.params)
				if err != nil {
					// Semicolons separate tags, not parameters.
					params = url.Values{"tags": {"a;b c"}}
				}
				for k, v := range map[string]string{"node": "pve1", "vmid": "100"} {
					if !params.Has(k) {
						params.Set(k, v)
					}
				}
				want, ok := tc.want[version]
				if !ok {
					want = tc.want[""]
				}
				got := c.Check(tc.verb, "/nodes/{node}/qemu/{vmid}/"+tc.path, params)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tc.name, diff)
				}
			}
		})
	}
}

func TestMatch(t *testing.T) {
	c := load(t, "9.1")
	if tmpl, ok := c.Match("GET", "/nodes/pve1/qemu/100/config"); !ok || tmpl != "/nodes/{node}/qemu/{vmid}/config" {
		t.Errorf("config: %q %v", tmpl, ok)
	}
	if tmpl, ok := c.Match("GET", "/nodes/pve1/qemu/100/nosuch"); ok {
		t.Errorf("nosuch: %q", tmpl)
	}
	if !c.Has("POST", "/nodes/{node}/qemu/{vmid}/clone") || c.Has("GET", "/nodes/{node}/qemu/{vmid}/clone") {
		t.Error("Has does not tell methods apart")
	}
}
