package plan

import (
	"crypto/rand"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// bridges are the bridges that names of networks stand for, as in VirtRigaud's own provider for Proxmox.
var bridges = map[string]string{
	"lan": "vmbr0", "default": "vmbr0", "dmz": "vmbr1", "mgmt": "vmbr2", "management": "vmbr2",
}

// bridge returns the bridge that a network's name stands for: what the administrator says wins.
func (s Site) bridge(name string) (string, bool) {
	name = strings.ToLower(name)
	if b, ok := s.Policy.Bridges[name]; ok {
		return b, true
	}
	b, ok := bridges[name]
	return b, ok
}

// networkNames are the names of networks that stand for a bridge.
func (s Site) networkNames() []string {
	all := maps.Clone(bridges)
	maps.Copy(all, s.Policy.Bridges)
	return slices.Sorted(maps.Keys(all))
}

// defaultBridge is that of a NIC about which neither the request nor the template says anything.
const defaultBridge = "vmbr0"

// bridgeName is what PVE calls bridges by itself.
var bridgeName = regexp.MustCompile(`^vmbr[0-9]+$`)

// interfaceName is what the kernel takes for the name of a network interface: a bridge or a VNet of PVE's SDN.
var interfaceName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// maxNICs is how many netN there are in PVE.
const maxNICs = 32

// NICs derives the NICs of a clone of source from the networks of a request: PVE's netN, and what cloud-init has to know
// of all of them. The networks go to the source's NICs in their order, and then to further ones; what a network does not
// say stays as the source has it. Each NIC gets a MAC address from mac here, because cloud-init finds it by that. Nobody
// asks: nothing, and PVE copies the source's. The options of extra are those of nicOptionKinds.
func NICs(networks []spec.Network, source *pmxcfs.Conf, extra map[string]string, site Site, mac func() string) (Values, []cloudinit.NIC, error) {
	have := source.NICs()
	options, err := nicOptions(extra, max(len(networks), len(have)), site)
	if err != nil || len(networks)+len(options) == 0 {
		return nil, nil, err
	}
	hw := Values{}
	var nics []cloudinit.NIC
	for i := range max(len(networks), len(have)) {
		nic := wantedNIC{site: site, options: options[i]}
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
		value, err := nic.value(index, address)
		if err != nil {
			return nil, nil, err
		}
		hw[fmt.Sprintf("net%d", index)] = value
		nics = append(nics, cloudinit.NIC{Index: index, MAC: address, Asked: nic.asked, At: nic.at})
	}
	return hw, nics, nil
}

// nicOptions are the options that ExtraConfig asks for, by the index of the network, of which there are count.
func nicOptions(extra map[string]string, count int, site Site) (map[int]Values, error) {
	asked := extraNICs(extra)
	out := map[int]Values{}
	for index := range asked {
		if index >= count {
			return nil, site.class(fault.Invalid, fmt.Sprintf("ExtraConfig.%snet%d", extraPrefix, index), "the VM has %d NICs, counted from 0", count)
		}
	}
	for i := range count {
		merged := Values{}
		maps.Copy(merged, asked[allNICs])
		maps.Copy(merged, asked[i])
		if len(merged) > 0 {
			out[i] = merged
		}
	}
	return out, nil
}

// wantedNIC is a NIC as the template has it, with what a network asks of it; either may be missing.
type wantedNIC struct {
	template *pmxcfs.NIC
	asked    *spec.Network
	at       int    // the index of asked in the request
	options  Values // of netN that ExtraConfig asks for
	site     Site
}

// index is the n of its netN: the template's, or one above all of them.
func (w wantedNIC) index(have []pmxcfs.NIC) (int, error) {
	if w.template != nil {
		return nicNumber(w.template.Key), nil
	}
	next := w.at - len(have)
	if len(have) > 0 {
		next += nicNumber(have[len(have)-1].Key) + 1
	}
	if next >= maxNICs {
		return 0, w.bad("", "PVE has %d NICs at most for a VM", maxNICs)
	}
	return next, nil
}

// bad is a failure about a field of the network.
func (w wantedNIC) bad(field, format string, args ...any) error {
	return w.site.fail(fault.Invalid, w.site.Dialect.NetworkError(w.at, field, fmt.Sprintf(format, args...)))
}

// nicNumber is the n of a netN, which pmxcfs has checked.
func nicNumber(key string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(key, "net"))
	return n
}

func (w wantedNIC) mac(fresh func() string) string {
	if w.asked != nil && w.asked.MacAddress != "" {
		return strings.ToUpper(w.asked.MacAddress)
	}
	return fresh()
}

// value is PVE's value of net<index>: `virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=120`, and what else the template says.
func (w wantedNIC) value(index int, mac string) (string, error) {
	if w.asked != nil && w.asked.PCISlotNumber != nil {
		return "", w.bad("PCISlotNumber", "PVE puts the NICs of a VM into slots by itself; leave it away")
	}
	bridge, err := w.bridge()
	if err != nil {
		return "", err
	}
	if _, mtu := w.options["mtu"]; mtu && w.model() != "virtio" {
		return "", w.site.class(fault.Invalid, "ExtraConfig."+extraPrefix+"net.mtu", "net%d is a NIC of model %s, and PVE sets an MTU on virtio NICs only", index, w.model())
	}
	parts := []string{w.model() + "=" + mac}
	if bridge != "" {
		parts = append(parts, "bridge="+bridge)
	}
	if tag := w.tag(); tag > 0 {
		parts = append(parts, "tag="+strconv.Itoa(tag))
	}
	if w.template != nil {
		parts = append(parts, w.inherited()...)
	}
	return SetOptions(strings.Join(parts, ","), w.options), nil
}

// inherited is what else the template says of its NIC.
func (w wantedNIC) inherited() []string {
	var parts []string
	for k, v := range w.template.Options.All() {
		switch {
		case k == "" || k == "model" || k == "macaddr" || k == "bridge" || k == "tag":
		case v == w.template.MAC: // the model stands for the key of the address
		case k == "trunks" && w.attached():
		default:
			parts = append(parts, k+"="+v)
		}
	}
	return parts
}

// attached reports whether the request says which network the NIC is attached to, not only what goes over it.
func (w wantedNIC) attached() bool {
	if b, ok := w.named(); ok && (w.template == nil || b != w.template.Bridge) {
		return true
	}
	return w.asked != nil && (w.asked.Bridge != "" || w.asked.Model != "" || w.asked.VLAN != 0 || w.asked.NetworkName != "" || w.asked.Portgroup != "")
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

// bridge is the one that is asked for, by itself, by a network's name or by the name of the attachment, if that is one of
// those that stand for a bridge; else the template's.
func (w wantedNIC) bridge() (string, error) {
	if w.asked == nil {
		return w.template.Bridge, nil
	}
	for _, f := range []struct{ field, value string }{{"Bridge", w.asked.Bridge}, {"NetworkName", w.asked.NetworkName}, {"Portgroup", w.asked.Portgroup}} {
		if f.value == "" {
			continue
		}
		if b, ok := w.site.bridge(f.value); ok {
			return b, nil
		}
		if !interfaceName.MatchString(f.value) {
			return "", w.bad(f.field, "%q is no name of a bridge or of a VNet, and none of those configured (%s)", f.value, strings.Join(w.site.networkNames(), ", "))
		}
		return f.value, nil
	}
	if b, ok := w.named(); ok {
		return b, nil
	}
	if w.template != nil {
		return w.template.Bridge, nil
	}
	return defaultBridge, nil
}

// named is the bridge that the network's own name stands for.
func (w wantedNIC) named() (string, bool) {
	if w.asked == nil {
		return "", false
	}
	if b, ok := w.site.bridge(w.asked.Name); ok {
		return b, true
	}
	name := strings.ToLower(w.asked.Name)
	return name, bridgeName.MatchString(name)
}

// MACs returns a source of MAC addresses that no VM of the cluster has, with the prefix that PVE uses (BC:24:11, of
// Proxmox Server Solutions).
func MACs(world *pmxcfs.World) func() string {
	taken := sync.OnceValue(func() map[string]bool { return takenMACs(world) }) // only who asks for an address pays for it
	return func() string {
		var b [3]byte
		for {
			_, _ = rand.Read(b[:]) // it never fails
			mac := fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
			if !taken()[mac] {
				taken()[mac] = true
				return mac
			}
		}
	}
}

func takenMACs(world *pmxcfs.World) map[string]bool {
	taken := map[string]bool{}
	for _, vm := range world.VMs {
		if vm.Conf == nil {
			continue
		}
		for _, n := range vm.Conf.NICs() {
			taken[strings.ToUpper(n.MAC)] = true
		}
	}
	return taken
}

// Addressed reports whether a request says anything about addresses, which cloud-init would have to tell the guest.
func Addressed(networks []spec.Network) bool {
	return slices.ContainsFunc(networks, func(n spec.Network) bool {
		return n.StaticIP != "" || n.Gateway != "" || n.DNS != "" || n.IPPolicy != ""
	})
}
