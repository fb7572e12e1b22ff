package guest

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// bridges are the bridges that names of networks stand for, as in VirtRigaud's own provider for Proxmox.
var bridges = map[string]string{
	"lan": "vmbr0", "default": "vmbr0", "dmz": "vmbr1", "mgmt": "vmbr2", "management": "vmbr2",
}

// defaultBridge is that of a NIC about which neither the request nor the template says anything.
const defaultBridge = "vmbr0"

// bridgeName is what PVE calls bridges by itself.
var bridgeName = regexp.MustCompile(`^vmbr[0-9]+$`)

// interfaceName is what the kernel takes for the name of a network interface: a bridge or a VNet of PVE's SDN.
var interfaceName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// maxNICs is how many netN there are in PVE.
const maxNICs = 32

// planNICs derives the NICs of a clone of source from the networks of a request: PVE's netN, and what cloud-init has to
// know of all of them. The networks go to the source's NICs in their order, and then to further ones; what a network
// does not say stays as the source has it. Each NIC gets a MAC address from mac here, because cloud-init finds it by
// that. Nobody asks: nothing, and PVE copies the source's.
func planNICs(networks []spec.Network, source *pmxcfs.Conf, mac func() string) (hardware, []cloudinit.NIC, error) {
	if len(networks) == 0 {
		return nil, nil, nil
	}
	have := source.NICs()
	hw := hardware{}
	var nics []cloudinit.NIC
	for i := range max(len(networks), len(have)) {
		nic := wantedNIC{}
		if i < len(have) {
			nic.template = &have[i]
		}
		if i < len(networks) {
			nic.asked, nic.at = &networks[i], i
		}
		index, err := nic.index(have)
		if err != nil {
			return nil, nil, err
		}
		address := nic.mac(mac)
		value, err := nic.value(address)
		if err != nil {
			return nil, nil, err
		}
		hw[fmt.Sprintf("net%d", index)] = value
		nics = append(nics, cloudinit.NIC{Index: index, MAC: address, Asked: nic.asked, At: nic.at})
	}
	return hw, nics, nil
}

// wantedNIC is a NIC as the template has it, with what a network asks of it; either may be missing.
type wantedNIC struct {
	template *pmxcfs.NIC
	asked    *spec.Network
	at       int // the index of asked in the request
}

// index is the n of its netN: the template's, or one above all of them.
func (w wantedNIC) index(have []pmxcfs.NIC) (int, error) {
	if w.template != nil {
		return number(w.template.Key), nil
	}
	next := w.at - len(have)
	if len(have) > 0 {
		next += number(have[len(have)-1].Key) + 1
	}
	if next >= maxNICs {
		return 0, fault.New(fault.Invalid, "networks_json: [%d]: PVE has %d NICs at most for a VM", w.at, maxNICs)
	}
	return next, nil
}

// number is the n of a netN, which pmxcfs has checked.
func number(key string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(key, "net"))
	return n
}

func (w wantedNIC) mac(fresh func() string) string {
	if w.asked != nil && w.asked.MacAddress != "" {
		return strings.ToUpper(w.asked.MacAddress)
	}
	return fresh()
}

// value is PVE's value of the netN: `virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=120`, and what else the template says.
func (w wantedNIC) value(mac string) (string, error) {
	bridge, err := w.bridge()
	if err != nil {
		return "", err
	}
	parts := []string{w.model() + "=" + mac}
	if bridge != "" {
		parts = append(parts, "bridge="+bridge)
	}
	if tag := w.tag(); tag > 0 {
		parts = append(parts, "tag="+strconv.Itoa(tag))
	}
	if w.template == nil {
		return strings.Join(parts, ","), nil
	}
	for k, v := range w.template.Options.All() {
		switch {
		case k == "" || k == "model" || k == "macaddr" || k == "bridge" || k == "tag":
		case v == w.template.MAC: // the model stands for the key of the address
		case k == "trunks" && w.attached():
		default:
			parts = append(parts, k+"="+v)
		}
	}
	return strings.Join(parts, ","), nil
}

// attached reports whether the request says which network the NIC is attached to, not only what goes over it.
func (w wantedNIC) attached() bool {
	return w.asked != nil && (w.asked.Bridge != "" || w.asked.Model != "" || w.asked.VLAN != 0 || w.asked.NetworkName != "")
}

func (w wantedNIC) model() string {
	switch {
	case w.asked != nil && w.asked.Model != "":
		return w.asked.Model
	case w.template != nil && w.template.Model != "":
		return w.template.Model
	}
	return "virtio"
}

func (w wantedNIC) tag() int {
	if w.template != nil && !w.attached() {
		return w.template.VLAN
	}
	if w.asked == nil {
		return 0
	}
	return w.asked.VLAN
}

// bridge is the one that is asked for, by itself or by a network's name, else the template's, else what the name of the
// attachment stands for.
func (w wantedNIC) bridge() (string, error) {
	if w.asked == nil {
		return w.template.Bridge, nil
	}
	for _, f := range []struct{ field, value string }{{"Bridge", w.asked.Bridge}, {"NetworkName", w.asked.NetworkName}} {
		if f.value == "" {
			continue
		}
		if b, ok := bridges[strings.ToLower(f.value)]; ok {
			return b, nil
		}
		if !interfaceName.MatchString(f.value) {
			return "", fault.New(fault.Invalid, "%w", spec.CreateDialect.NetworkError(w.at, f.field,
				fmt.Sprintf("%q is no name of a bridge or of a VNet, and none of default, dmz, lan, management and mgmt", f.value)))
		}
		return f.value, nil
	}
	if w.template != nil {
		return w.template.Bridge, nil
	}
	name := strings.ToLower(w.asked.Name)
	if b, ok := bridges[name]; ok {
		return b, nil
	}
	if bridgeName.MatchString(name) {
		return name, nil
	}
	return defaultBridge, nil
}

// macs returns a source of MAC addresses that no VM of the cluster has, with the prefix that PVE uses (BC:24:11, of
// Proxmox Server Solutions).
func macs(world *pmxcfs.World) func() string {
	taken := map[string]bool{}
	for _, vm := range world.VMs {
		if vm.Conf == nil {
			continue
		}
		for _, n := range vm.Conf.NICs() {
			taken[strings.ToUpper(n.MAC)] = true
		}
	}
	return func() string {
		var b [3]byte
		for {
			_, _ = rand.Read(b[:]) // it never fails
			mac := fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
			if !taken[mac] {
				taken[mac] = true
				return mac
			}
		}
	}
}

// addressed reports whether a request says anything about addresses, which cloud-init would have to tell the guest.
func addressed(networks []spec.Network) bool {
	return slices.ContainsFunc(networks, func(n spec.Network) bool {
		return n.StaticIP != "" || n.Gateway != "" || n.DNS != "" || n.IPPolicy != ""
	})
}
