package guest

import (
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

func confOf(t *testing.T, text string) *pmxcfs.Conf {
	t.Helper()
	conf, err := pmxcfs.ParseConf("100", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func TestNetworksOfACopy(t *testing.T) {
	const nics = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nnet1: virtio=BC:24:11:00:00:02,bridge=vmbr1\n"
	asked := []spec.Network{{Name: "a"}}
	for name, tc := range map[string]struct {
		asked  []spec.Network
		source string
		want   []spec.Network
	}{
		"asked":                         {asked, "ipconfig0: ip=192.0.2.1/24\n", asked},
		"nothing to inherit":            {nil, "name: a\n", nil},
		"by DHCP":                       {nil, "ipconfig0: ip=dhcp,ip6=auto\n", nil},
		"an address of the source":      {nil, "ipconfig1: gw=192.0.2.254,ip=192.0.2.1/24\n", make([]spec.Network, 2)},
		"an IPv6 address of the source": {nil, "ipconfig0: ip6=2001:db8::1/64\n", make([]spec.Network, 2)},
		"what a template says":          {nil, "template: 1\nipconfig0: ip=192.0.2.1/24\n", nil},
		"a network part of somebody":    {nil, "cicustom: network=local:snippets/x.yaml\n", nil},
	} {
		if diff := cmp.Diff(tc.want, networksOf(tc.asked, confOf(t, tc.source+nics))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestMissingDrives(t *testing.T) {
	drives := []plan.Drive{{Key: "efidisk0", Value: "local:1,efitype=4m"}, {Key: "scsi1", Value: "local:8,serial=data", Serial: "data"}}
	for name, tc := range map[string]struct {
		conf string
		want url.Values
	}{
		"all":         {"name: a\n", url.Values{"bios": {"ovmf"}, "efidisk0": {"local:1,efitype=4m"}, "scsi1": {"local:8,serial=data"}}},
		"one is made": {"scsi1: local:100/vm-100-disk-1.qcow2,serial=data,size=8G\n", url.Values{"bios": {"ovmf"}, "efidisk0": {"local:1,efitype=4m"}}},
		"none":        {"efidisk0: local:100/vm-100-disk-0.qcow2\nscsi1: local:100/vm-100-disk-1.qcow2,size=8G,serial=data\n", url.Values{}},
	} {
		got, err := missingDrives(drives, confOf(t, tc.conf))
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	if got, err := missingDrives(drives, confOf(t, "scsi1: local:100/vm-100-disk-1.qcow2,serial=database\n")); !fault.Is(err, fault.Aborted) {
		t.Errorf("a place that is taken: %v, %v", got, err)
	}
}

func TestMadeUnder(t *testing.T) {
	for lock, want := range map[string]bool{"clone": true, "create": true, "": false, "backup": false, "migrate": false} {
		if madeUnder(lock) != want {
			t.Errorf("%q: %v", lock, !want)
		}
	}
}

func TestSysprepThatAsksForSomething(t *testing.T) {
	if asked(nil) || asked(&spec.Sysprep{}) {
		t.Error("an empty block asks for nothing")
	}
	for _, s := range []spec.Sysprep{{Enabled: true}, {ProductKey: "k"}, {Organization: "o"}, {Owner: "o"}} {
		if !asked(&s) {
			t.Errorf("%+v", s)
		}
	}
}
