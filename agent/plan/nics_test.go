package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// counted hands out MAC addresses that tell their order.
func counted() func() string {
	n := 0
	return func() string {
		n++
		return fmt.Sprintf("BC:24:11:00:00:%02X", n)
	}
}

func TestPlanNICs(t *testing.T) {
	const two = "net0: virtio=AA:BB:CC:00:00:01,bridge=vmbr7,firewall=1,tag=9,mtu=1400\nnet3: e1000=AA:BB:CC:00:00:02,bridge=vmbr8,trunks=2;3\n"
	for name, tc := range map[string]struct {
		source   string
		networks []spec.Network
		want     Values
	}{
		"nobody asks": {source: two},
		"only an address is asked": {
			two,
			[]spec.Network{{Name: "primary", StaticIP: "192.0.2.10", Prefix: 24}},
			Values{"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr7,tag=9,firewall=1,mtu=1400", "net3": "e1000=BC:24:11:00:00:02,bridge=vmbr8,trunks=2;3"},
		},
		"attached elsewhere": {
			two,
			[]spec.Network{{Name: "primary", Bridge: "vmbr1"}, {Name: "storage", Bridge: "vmbr2", VLAN: 120, Model: "vmxnet3"}},
			Values{"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1,mtu=1400", "net3": "vmxnet3=BC:24:11:00:00:02,bridge=vmbr2,tag=120"},
		},
		"more than the template has": {
			two,
			[]spec.Network{{Name: "a"}, {Name: "b"}, {Name: "c", Bridge: "vmbr3"}, {Name: "dmz"}},
			Values{
				"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr7,tag=9,firewall=1,mtu=1400", "net3": "e1000=BC:24:11:00:00:02,bridge=vmbr8,trunks=2;3",
				"net4": "virtio=BC:24:11:00:00:03,bridge=vmbr3", "net5": "virtio=BC:24:11:00:00:04,bridge=vmbr1",
			},
		},
		"a template without NICs": {
			"",
			[]spec.Network{{Name: "lan"}, {Name: "vmbr4"}, {Name: "anything"}, {Name: "x", NetworkName: "MGMT"}, {Name: "y", NetworkName: "vnet7"}},
			Values{
				"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "net1": "virtio=BC:24:11:00:00:02,bridge=vmbr4", "net2": "virtio=BC:24:11:00:00:03,bridge=vmbr0",
				"net3": "virtio=BC:24:11:00:00:04,bridge=vmbr2", "net4": "virtio=BC:24:11:00:00:05,bridge=vnet7",
			},
		},
		"a MAC address of its own": {
			"net0: virtio,macaddr=AA:BB:CC:00:00:01,bridge=vmbr7\n",
			[]spec.Network{{MacAddress: "02:ab:cd:00:00:01"}},
			Values{"net0": "virtio=02:AB:CD:00:00:01,bridge=vmbr7"},
		},
		"a template whose NIC has no bridge": {
			"net0: virtio=AA:BB:CC:00:00:01\n",
			[]spec.Network{{Name: "a"}},
			Values{"net0": "virtio=BC:24:11:00:00:01"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, nics, err := NICs(tc.networks, conf(t, tc.source), nil, Site{}, counted())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if len(nics) != len(tc.want) {
				t.Errorf("cloud-init knows of %d NICs, there are %d", len(nics), len(tc.want))
			}
			for _, n := range nics {
				if value := got[fmt.Sprintf("net%d", n.Index)]; !strings.Contains(value, "="+n.MAC+",") && !strings.HasSuffix(value, "="+n.MAC) {
					t.Errorf("cloud-init looks for %s, but net%d is %q", n.MAC, n.Index, value)
				}
				if asked := n.Asked != nil; asked && *n.Asked != tc.networks[n.At] {
					t.Errorf("net%d is told what another network asks", n.Index)
				}
			}
		})
	}
}

func TestPlanNICsRefuses(t *testing.T) {
	for field, n := range map[string]spec.Network{"Bridge": {Bridge: "vmbr0,tag=5"}, "NetworkName": {NetworkName: "VM Network"}} {
		_, _, err := NICs([]spec.Network{{Name: "fine"}, n}, conf(t, ""), nil, Site{}, counted())
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "[1]."+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, _, err := NICs(make([]spec.Network, maxNICs+1), conf(t, ""), nil, Site{}, counted()); !fault.Is(err, fault.Invalid) {
		t.Errorf("%d NICs: %v", maxNICs+1, err)
	}
}

func TestMACsAreNobodysYet(t *testing.T) {
	world := &pmxcfs.World{VMs: map[int]*pmxcfs.VM{
		100: {ID: 100, Conf: conf(t, "net0: virtio=bc:24:11:00:00:01,bridge=vmbr0\n")}, 101: {ID: 101},
	}}
	mac, seen := MACs(world), map[string]bool{"BC:24:11:00:00:01": true}
	for range 1000 {
		m := mac()
		if seen[m] || !strings.HasPrefix(m, "BC:24:11:") || len(m) != 17 {
			t.Fatalf("%s", m)
		}
		seen[m] = true
	}
}
