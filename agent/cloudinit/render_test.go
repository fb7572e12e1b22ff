package cloudinit

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
)

var update = flag.Bool("update", false, "write the golden files anew")

const uuid = "5f0c2f3e-6f5e-4a55-9d1c-0a1b2c3d4e5f"

// wish is web-01 with NICs net0, net1, ... that these networks are asked for.
func wish(change func(*Wish), networks ...spec.Network) Wish {
	w := Wish{
		Name: "web-01", InstanceID: uuid, Source: map[string]string{},
		Resolver: Resolver{Servers: []netip.Addr{netip.MustParseAddr("203.0.113.53")}, Search: []string{"node.example"}},
	}
	for i := range networks {
		w.NICs = append(w.NICs, NIC{Index: i, MAC: fmt.Sprintf("BC:24:11:00:00:%02X", 10+i), Asked: &networks[i], At: i})
	}
	if change != nil {
		change(&w)
	}
	return w
}

// managers is the wish of the recorded payloads.
func managers(t *testing.T) Wish {
	t.Helper()
	d, err := spec.DecodeReconfigure(payloads.Desired)
	if err != nil {
		t.Fatal(err)
	}
	return wish(func(w *Wish) { w.UserData, w.MetaData = d.UserData, d.MetaData }, d.Networks...)
}

var multipart = "Content-Type: multipart/mixed; boundary=\"VIRTRIGAUD_CLOUD_INIT_BOUNDARY\"\r\nMIME-Version: 1.0\r\n\r\n" +
	"--VIRTRIGAUD_CLOUD_INIT_BOUNDARY\r\nContent-Type: text/cloud-config\r\n\r\n#cloud-config\n{}\n--VIRTRIGAUD_CLOUD_INIT_BOUNDARY--\r\n"

func scenarios(t *testing.T) map[string]Wish {
	static := spec.Network{StaticIP: "192.0.2.10", Prefix: 24, Gateway: "192.0.2.1", DNS: "192.0.2.53, 192.0.2.54"}
	return map[string]Wish{
		"manager": managers(t),
		"nothing": wish(func(w *Wish) {
			w.NICs = []NIC{{Index: 0, MAC: "BC:24:11:00:00:0A"}}
			w.Source = map[string]string{"ipconfig0": "ip=dhcp", "ciuser": "ops"}
		}),
		"new-drive": wish(func(w *Wish) {
			w.NewDrive, w.UserData = true, []byte("#!/bin/sh\n")
			w.NICs = []NIC{{Index: 1, MAC: "BC:24:11:00:00:0B"}, {Index: 0, MAC: "BC:24:11:00:00:0A"}}
			w.Source = map[string]string{"ciuser": "ops", "sshkeys": "ssh-rsa%20C"}
		}),
		"new-drive-configured": wish(func(w *Wish) {
			w.NewDrive, w.NICs, w.Source["ipconfig0"] = true, []NIC{{Index: 0, MAC: "BC:24:11:00:00:0A"}}, "ip=dhcp"
		}),
		"dhcp": wish(nil, spec.Network{}),
		"dual-stack": wish(nil, spec.Network{
			StaticIP: "192.0.2.10/24,2001:db8::10/64", Gateway: "192.0.2.1,2001:db8::1", DNS: "192.0.2.53;2001:db8::53",
		}),
		"ipv6":      wish(nil, spec.Network{StaticIP: "2001:db8::10", Prefix: 64, Gateway: "fe80::1"}),
		"on-link":   wish(nil, spec.Network{StaticIP: "192.0.2.10/32,2001:db8::10/128", Gateway: "198.51.100.1,2001:db8:1::1"}),
		"two-gates": wish(nil, static, spec.Network{StaticIP: "198.51.100.10/24,2001:db8::10/64", Gateway: "198.51.100.1,2001:db8::1"}, spec.Network{StaticIP: "203.0.113.10/24,2001:db8:1::10/64", Gateway: "203.0.113.1,2001:db8:1::1"}),
		"twelve":    wish(nil, slices.Repeat([]spec.Network{{}}, 12)...),
		"template": wish(func(w *Wish) { // a NIC that nobody asks about stays as the template has it
			w.NICs = append(w.NICs, NIC{Index: 1, MAC: "bc:24:11:00:00:0b"}, NIC{Index: 2, MAC: "bc:24:11:00:00:0c"})
			w.Source = map[string]string{"ipconfig0": "ip=192.0.2.99/24,gw=192.0.2.1", "ipconfig1": "ip=198.51.100.7/24,gw=198.51.100.1,ip6=auto", "nameserver": "192.0.2.9 192.0.2.8", "searchdomain": "corp.example"}
		}, spec.Network{}),
		"template-auto": wish(func(w *Wish) { w.Source["ipconfig0"] = "ip=dhcp,ip6=auto" }, spec.Network{}),
		"dhcp-too":      wish(nil, spec.Network{StaticIP: "192.0.2.10", Prefix: 24, IPPolicy: "dhcp"}),
		"hostname": wish(func(w *Wish) {
			w.Hostname, w.Domain, w.TimeZone = "c1", "example.org", "Europe/Vienna"
			w.Source = map[string]string{"ciuser": "root", "cipassword": "s: #ecret", "sshkeys": "ssh-ed25519%20AAAA%2Bb%20a%40b%0Assh-rsa%20CCCC%0A", "ciupgrade": "0"}
		}, static),
		"meta-hostname": wish(func(w *Wish) {
			w.MetaData = []byte("# ours\nlocal-hostname: other\n# of the fleet\nrole: db # main\nlocal-hostname: last.example.org\n")
		}),
		"meta-same": wish(func(w *Wish) { // the manager's usual meta-data contradicts nothing that PVE says
			w.MetaData, w.Source["searchdomain"] = []byte("instance-id: web-01\nlocal-hostname: web-01\n"), "corp.example"
		}),
		"not-carried": wish(func(w *Wish) {
			w.UserData = []byte("#cloud-config\nhostname: other\nfqdn: web-01\nuser: [a]\npassword: ''\nchpasswd: {expire: true}\nmanage_etc_hosts: localhost\nssh_authorized_keys: x\npackage_upgrade: maybe\nusers: [default, b]\n")
		}),
		"no-yaml": wish(func(w *Wish) { w.UserData = []byte("#cloud-config\n[\n") }),
		"script":  wish(func(w *Wish) { w.UserData = []byte("#!/bin/sh\necho hi\n") }),
		"jinja": wish(func(w *Wish) {
			w.UserData = []byte("## template: jinja\n#cloud-config\nfqdn: {{ v1.local_hostname }}\n")
		}),
		"multipart": wish(func(w *Wish) { w.UserData = []byte(multipart) }),
		"carried": wish(func(w *Wish) {
			w.UserData = []byte("#cloud-config\nhostname: web-01\nuser: ops\npassword: x\nchpasswd: {expire: False}\nssh_authorized_keys:\n- ssh-ed25519 AAAA+b a@b\n- ssh-rsa C\npackage_upgrade: true\nusers: [default]\n")
		}, static),
		"same-dns": wish(nil, spec.Network{DNS: "192.0.2.53 192.0.2.53"}, static),
		"search":   wish(func(w *Wish) { w.Source["searchdomain"] = "corp.example" }, static, spec.Network{}),
		"template-user": wish(func(w *Wish) {
			w.Hostname, w.Source["cicustom"] = "c1", "vendor=local:snippets/v.yaml,user=local:snippets/u.yaml"
		}),
		"windows": wish(func(w *Wish) {
			w.Format, w.UserData, w.MetaData = ConfigDrive, []byte("#ps1_sysnative\n"), []byte("role: db\n")
			w.Source = map[string]string{"ostype": "win11", "cipassword": "secret", "sshkeys": "ssh-rsa%20C"}
		}, static),
		"opennebula": wish(func(w *Wish) { w.Format, w.UserData = OpenNebula, []byte("#!/bin/sh\n") }, static),
		"clone": wish(func(w *Wish) {
			w.Dialect, w.Domain = spec.CloneDialect, "example.org"
		}, spec.Network{Name: "eth0", StaticIP: "192.0.2.20", Prefix: 24, Gateway: "198.51.100.1", DNS: "192.0.2.53"}),
	}
}

// show writes what was rendered for people, and for golden files.
func show(title string, r Rendered, err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "== %s\n", title)
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	for _, part := range slices.Sorted(maps.Keys(r.Parts)) {
		fmt.Fprintf(&b, "-- %s\n%s", part, strings.ReplaceAll(string(r.Parts[part]), "\r", "\\r"))
	}
	for _, key := range slices.Sorted(maps.Keys(r.Params)) {
		fmt.Fprintf(&b, "-- %s: %s\n", key, r.Params[key])
	}
	for _, what := range r.Lost {
		fmt.Fprintf(&b, "-- lost: %s\n", what)
	}
	for _, key := range r.Hidden {
		fmt.Fprintf(&b, "-- hidden: %s\n", key)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	for name, w := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			r, err := w.Render()
			got := show("with snippets", r, err)
			r, err = w.Builtin()
			got += show("without", r, err)
			path := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestGoldenFilesAreAllUsed(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	all := scenarios(t)
	for _, f := range files {
		if _, ok := all[strings.TrimSuffix(filepath.Base(f), ".golden")]; !ok {
			t.Errorf("%s belongs to no scenario", f)
		}
	}
}

func TestUserDataIsByteForByte(t *testing.T) {
	big := bytes.Repeat([]byte{0, 0xff, '\r', '\n', '\t'}, spec.MaxUserData/5)
	for _, data := range [][]byte{[]byte("#cloud-config"), []byte("#cloud-config\r\n\r\n"), []byte(multipart), big, []byte(" ")} {
		r, err := wish(func(w *Wish) { w.UserData, w.Hostname = data, "other" }).Render()
		if err != nil || !bytes.Equal(r.Parts["user"], data) {
			t.Errorf("%.20q became %.20q, %v", data, r.Parts["user"], err)
		}
		var meta map[string]string
		if err := yaml.Unmarshal(r.Parts["meta"], &meta); err != nil || meta["local-hostname"] != "other" || meta["instance-id"] != uuid {
			t.Errorf("with user-data the guest's name and instance are in the meta-data alone, got %v, %v", meta, err)
		}
	}
}

// TestNamesAreText: in YAML 1.1, which guests read, on is a truth value and 1:20 a number.
func TestNamesAreText(t *testing.T) {
	for _, name := range []string{"on", "no", "y", "123", "0x1f", "1e3"} {
		w := wish(func(w *Wish) { w.Name, w.Hostname, w.Domain, w.TimeZone = "vm", name, name, "UTC" })
		user, err := w.UserPart()
		if err != nil {
			t.Fatal(err)
		}
		meta, err := w.MetaPart()
		if err != nil {
			t.Fatal(err)
		}
		if want := `hostname: "` + name + `"`; !strings.Contains(string(user), want) {
			t.Errorf("no %s in\n%s", want, user)
		}
		if want := `local-hostname: "` + name + "." + name + `"`; !strings.Contains(string(meta), want) {
			t.Errorf("no %s in\n%s", want, meta)
		}
	}
}

func TestInstanceIDIsTheVMs(t *testing.T) {
	for _, given := range []string{"", "instance-id: web-01\n", "instance-id: [1, 2]\n", "a: &x 1\ninstance-id: *x\n", "instance-id: a\ninstance-id: b\n"} {
		for _, format := range []Format{NoCloud, ConfigDrive} {
			w := wish(func(w *Wish) { w.UserData, w.MetaData, w.Format = []byte("#!/bin/sh\n"), []byte(given), format })
			meta, err := w.MetaPart()
			var got map[string]any
			if err == nil {
				err = yaml.Unmarshal(meta, &got)
			}
			if err != nil || got["instance-id"] != uuid || format == ConfigDrive && got["uuid"] != uuid {
				t.Errorf("%s, %q: got %v, %v", format, given, got, err)
			}
		}
	}
}

func TestNetworkOrderIsStable(t *testing.T) {
	w := scenarios(t)["two-gates"]
	want, err := w.NetworkPart()
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(w.NICs)
	if got, err := w.NetworkPart(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("another order of the same NICs became, %v:\n%s", err, cmp.Diff(string(want), string(got)))
	}
}

func TestConfigDriveMetaIsJSON(t *testing.T) {
	w := wish(func(w *Wish) {
		w.Format, w.UserData, w.MetaData = ConfigDrive, []byte("x"), []byte("public_keys: {a: b}\nhostname: h\n")
	})
	meta, err := w.MetaPart()
	var got map[string]any
	if err == nil {
		err = json.Unmarshal(meta, &got)
	}
	want := map[string]any{
		"uuid": uuid, "instance-id": uuid, "hostname": "h", "local-hostname": "h",
		"public_keys": map[string]any{"a": "b"}, "network_config": map[string]any{"content_path": "/content/0000"},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// TestSpoiledMetaDataIsSeen: what the YAML writer makes of a text is compared with what it read.
func TestSpoiledMetaDataIsSeen(t *testing.T) {
	meta, err := wish(func(w *Wish) { w.MetaData = []byte("a: {b: [1, x]}\nc: 'yes'\n") }).given()
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]bool{
		"a: {b: [1, x]}\nc: 'yes'\n":         true,
		"a:\n  b:\n  - 1\n  - x\nc: \"yes\"": true,
		"a: {b: [1, x]}\nc: yes\n":           true, // not a truth value to this reader
		"a: {b: [1, y]}\nc: 'yes'\n":         false,
		"a: {b: ['1', x]}\nc: 'yes'\n":       false,
		"a: {b: [1]}\nc: 'yes'\n":            false,
		"[":                                  false,
		"":                                   false,
	} {
		if got := meta.survives([]byte(content)); got != want {
			t.Errorf("%q: got %v, want %v", content, got, want)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for _, c := range []struct {
		citype, ostype string
		want           Format
	}{{"", "", NoCloud}, {"", "l26", NoCloud}, {"", "other", NoCloud}, {"", "win11", ConfigDrive}, {"", "w2k8", ConfigDrive}, {"", "wxp", ConfigDrive}, {"nocloud", "win11", NoCloud}, {"opennebula", "", OpenNebula}} {
		if got := FormatOf(c.citype, c.ostype); got != c.want {
			t.Errorf("citype %q, ostype %q: got %s, want %s", c.citype, c.ostype, got, c.want)
		}
	}
}

func TestErrorsNameTheField(t *testing.T) {
	meta := func(text string) Wish { return wish(func(w *Wish) { w.MetaData = []byte(text) }) }
	nets := func(n ...spec.Network) Wish { return wish(nil, n...) }
	desired := nets(spec.Network{}, spec.Network{StaticIP: "x"})
	desired.Dialect = spec.DesiredDialect
	cloned := nets(spec.Network{StaticIP: "192.0.2.1"})
	cloned.Dialect = spec.CloneDialect
	for want, w := range map[string]Wish{
		`networks_json: [0].StaticIP: "192.0.2.300" is not an IPv4 or IPv6 address`:                   nets(spec.Network{StaticIP: "192.0.2.300", Prefix: 24}),
		`networks_json: [0].StaticIP: "fe80::1%eth0" is not`:                                          nets(spec.Network{StaticIP: "fe80::1%eth0", Prefix: 24}),
		`networks_json: [0].StaticIP: "::ffff:192.0.2.1" is not`:                                      nets(spec.Network{StaticIP: "::ffff:192.0.2.1", Prefix: 24}),
		`networks_json: [0].StaticIP: "192.0.2.1/33": /33 is not a prefix length of 1..32`:            nets(spec.Network{StaticIP: "192.0.2.1/33"}),
		`networks_json: [0].StaticIP: 192.0.2.0/24 is the address of the network itself`:              nets(spec.Network{StaticIP: "192.0.2.0", Prefix: 24}),
		`networks_json: [0].StaticIP: 192.0.2.255/24 is the broadcast address`:                        nets(spec.Network{StaticIP: "192.0.2.255", Prefix: 24}),
		`networks_json: [0].StaticIP: 224.0.0.1/24 is a multicast address`:                            nets(spec.Network{StaticIP: "224.0.0.1", Prefix: 24}),
		`networks_json: [0].StaticIP: ::1/64 is a loopback address`:                                   nets(spec.Network{StaticIP: "::1", Prefix: 64}),
		`networks_json: [0].StaticIP: 0.0.0.0/8 is no address`:                                        nets(spec.Network{StaticIP: "0.0.0.0", Prefix: 8}),
		`networks_json: [1].StaticIP: 192.0.2.1 is the address of network 0, too`:                     nets(spec.Network{StaticIP: "192.0.2.1", Prefix: 24}, spec.Network{StaticIP: "192.0.2.1", Prefix: 25}),
		`networks_json: [0].StaticIP: 192.0.2.1 is the address of network 0, too`:                     nets(spec.Network{StaticIP: "192.0.2.1/24,192.0.2.1/24"}),
		`networks_json: [0].Prefix: is missing, and the address 192.0.2.1 comes without it`:           nets(spec.Network{StaticIP: "192.0.2.1"}),
		`networks_json: [0].Prefix: 33 is not in 1..32, for the address 192.0.2.1`:                    nets(spec.Network{StaticIP: "192.0.2.1", Prefix: 33}),
		`networks_json: [0].Prefix: 129 is not in 1..128`:                                             nets(spec.Network{StaticIP: "2001:db8::1", Prefix: 129}),
		`networks_json: [0].Prefix: -1 is not in 1..32`:                                               nets(spec.Network{StaticIP: "192.0.2.1", Prefix: -1}),
		`networks_json: [0].Prefix: 24 contradicts the address 192.0.2.1/25`:                          nets(spec.Network{StaticIP: "192.0.2.1/25", Prefix: 24}),
		`networks_json: [0].Prefix: is of no use without an address`:                                  nets(spec.Network{Prefix: 24}),
		`networks_json: [0].Gateway: is of no use without an address`:                                 nets(spec.Network{Gateway: "192.0.2.1"}),
		`networks_json: [0].Gateway: "gw" is not the address of a gateway`:                            nets(spec.Network{StaticIP: "192.0.2.1/24", Gateway: "gw"}),
		`networks_json: [0].Gateway: 2001:db8::1 is of another family than the address 192.0.2.1/24`:  nets(spec.Network{StaticIP: "192.0.2.1/24", Gateway: "2001:db8::1"}),
		`networks_json: [0].Gateway: 192.0.2.1 is the address of the NIC itself`:                      nets(spec.Network{StaticIP: "192.0.2.1/24", Gateway: "192.0.2.1"}),
		`networks_json: [0].Gateway: 192.0.2.3 is a second gateway`:                                   nets(spec.Network{StaticIP: "192.0.2.1/24", Gateway: "192.0.2.2,192.0.2.3"}),
		`networks_json: [0].DNS: "dns.example" is not the address of a name server`:                   nets(spec.Network{DNS: "192.0.2.53,dns.example"}),
		`networks_json: [0].StaticIP: is missing, and a static address is asked`:                      nets(spec.Network{IPPolicy: "static"}),
		`desired_json: Networks[1].StaticIP: "x" is not`:                                              desired,
		`customize_json: networks[0].subnetMask: is missing, and the address 192.0.2.1 comes without`: cloned,
		`meta_data: line 2: is not valid YAML: `:                                                      meta("a: b\nc: [\n"),
		`meta_data: line 3: is no YAML mapping`:                                                       meta("# x\n\n- a\n"),
		`meta_data: line 1: is no YAML mapping`:                                                       meta("text"),
		`meta_data: line 2: has the YAML tag "!!python/object:os.system"`:                             meta("a: 1\nb: !!python/object:os.system x\n"),
		`meta_data: line 2: has a key that is no plain text`:                                          meta("a: 1\n? [a]\n: b\n"),
		`meta_data: line 2: is a second YAML document`:                                                meta("a: 1\n---\nb: 1\n"),
		`meta_data: is not valid YAML: control characters are not allowed`:                            meta("a: \x00"),
	} {
		for name, render := range map[string]func() (Rendered, error){"with snippets": w.Render, "without": w.Builtin} {
			_, err := render()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got  %v\nwant %s", name, err, want)
			}
			if _, typed := err.(*spec.Error); err != nil && !typed { //nolint:errorlint // it is returned as it is, not wrapped
				t.Errorf("%v is a %T", err, err)
			}
		}
	}
}

// TestErrorsSpeakTheDialect: a field is named as the manager wrote it.
func TestErrorsSpeakTheDialect(t *testing.T) {
	w := wish(func(w *Wish) { w.Dialect = spec.DesiredDialect }, spec.Network{}, spec.Network{StaticIP: "192.0.2.1", Prefix: 24, Gateway: "x"})
	_, err := w.Render()
	if err == nil || !strings.HasPrefix(err.Error(), "desired_json: Networks[1].Gateway: ") {
		t.Errorf("got %v", err)
	}
}

func TestWhatPVEHasMustBeReadable(t *testing.T) {
	for want, w := range map[string]Wish{
		"ipconfig0 of the VM: ":              wish(func(w *Wish) { w.Source["ipconfig0"] = "ip=what" }, spec.Network{}),
		"ipconfig0 of the VM: ParseAddr":     wish(func(w *Wish) { w.Source["ipconfig0"] = "gw=what" }, spec.Network{}),
		`net0: "" is not a MAC address`:      wish(func(w *Wish) { w.NICs[0].MAC = "" }, spec.Network{}),
		`net1: "BC-24" is not a MAC address`: wish(func(w *Wish) { w.NICs[1].MAC = "BC-24" }, spec.Network{}, spec.Network{}),
	} {
		if _, err := w.Render(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// FuzzMetaPart: whatever is given, what comes out is YAML (JSON on a config drive) with this VM's id.
func FuzzMetaPart(f *testing.F) {
	for _, seed := range []string{"", "a: b\n", "instance-id: x\nlocal-hostname: y\n", "a: &x {b: *x}\n", "<<: {a: b}\na: c\n", "? []#0", "a: # c\n  b\n", "a: |\n  x\n\n  y\n# end\n", "a: 1\na: &b 2\nc: *b\n", "%YAML 1.1\n---\na: b\n...\n"} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, given []byte, configDrive bool) {
		w := wish(func(w *Wish) { w.UserData, w.MetaData = []byte("x"), given })
		if configDrive {
			w.Format = ConfigDrive
		}
		out, err := w.MetaPart()
		if err != nil {
			return
		}
		var node yaml.Node
		if err := yaml.Unmarshal(out, &node); err != nil {
			t.Fatalf("%q became %q: %v", given, out, err)
		}
		if id := (metadata{node.Content[0]}).value("instance-id"); id == nil || id.Value != uuid {
			t.Fatalf("%q became %q", given, out)
		}
	})
}

func FuzzNetworks(f *testing.F) {
	f.Add("192.0.2.10", 24, "192.0.2.1", "192.0.2.53, 192.0.2.54", "", "ip=dhcp")
	f.Add("192.0.2.10/24 2001:db8::1/64", 0, "fe80::1", "", "dhcp", "ip6=auto")
	f.Fuzz(func(t *testing.T, ip string, prefix int, gateway, dns, policy, source string) {
		w := wish(func(w *Wish) { w.Source["ipconfig0"] = source }, spec.Network{StaticIP: ip, Prefix: prefix, Gateway: gateway, DNS: dns, IPPolicy: policy}, spec.Network{StaticIP: ip, Prefix: prefix})
		out, err := w.NetworkPart()
		if err != nil {
			return
		}
		var c struct{ Version int }
		if err := yaml.Unmarshal(out, &c); err != nil || c.Version != 2 {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := w.Builtin(); err != nil {
			t.Fatal(err)
		}
	})
}
