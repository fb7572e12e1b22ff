package cloudinit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// addressing is how a NIC gets its addresses.
type addressing struct {
	dhcp4, dhcp6, auto6 bool // auto6: what routers announce
	addresses           []netip.Prefix
	gateways            []netip.Addr // at most one of each family
	dns                 []netip.Addr
}

// fault says what is wrong with a field of a network.
type fault func(field, format string, args ...any) *spec.Error

// plan works out all NICs that have something to say, in the order of PVE's netN. Nobody asks: nothing.
func (w Wish) plan() ([]planned, error) {
	var all []planned
	asked, configured := false, false
	taken := map[netip.Addr]string{}
	nics := slices.SortedFunc(slices.Values(w.NICs), func(a, b NIC) int { return a.Index - b.Index })
	for _, nic := range nics {
		source, err := parseIPConfig(w.Source[fmt.Sprintf("ipconfig%d", nic.Index)])
		if err != nil {
			return nil, fmt.Errorf("ipconfig%d of the VM: %w", nic.Index, err)
		}
		p := planned{NIC: nic, addressing: source}
		if nic.Asked != nil {
			asked, p.ours = true, true
			if p.addressing, err = w.parse(nic, source, taken); err != nil {
				return nil, err
			}
		}
		if p.any() {
			configured = true
			all = append(all, p)
		}
	}
	switch {
	case asked:
		return all, nil
	case w.NewDrive && !configured && len(nics) > 0:
		return []planned{{NIC: nics[0], addressing: addressing{dhcp4: true}, ours: true}}, nil
	}
	return nil, nil
}

// planned is a NIC with how it gets its addresses.
type planned struct {
	NIC
	addressing
	ours bool // not as it stands in PVE's config
}

func (a addressing) any() bool { return a.dhcp4 || a.dhcp6 || a.auto6 || len(a.addresses) > 0 }

// parse reads what is asked of a NIC. Asked for nothing, it keeps what the template says, unless that is an address
// of the template's own; else it is DHCP for IPv4, and IPv6 as the routers announce it.
func (w Wish) parse(nic NIC, source addressing, taken map[netip.Addr]string) (addressing, error) {
	n, wrong := nic.Asked, fault(func(field, format string, args ...any) *spec.Error {
		return w.Dialect.NetworkError(nic.At, field, fmt.Sprintf(format, args...))
	})
	dns, err := parseDNS(n.DNS, wrong)
	if err != nil {
		return addressing{}, err
	}
	if strings.Trim(n.StaticIP, separators) == "" {
		return withoutAddress(n, source, dns, wrong)
	}
	a := addressing{dns: dns, dhcp4: n.IPPolicy == "dhcp"}
	if a.addresses, err = parseAddresses(n, wrong); err != nil {
		return addressing{}, err
	}
	for _, p := range a.addresses {
		if other, twice := taken[p.Addr()]; twice {
			return addressing{}, wrong("StaticIP", "%s is the address of %s, too", p.Addr(), other)
		}
		taken[p.Addr()] = fmt.Sprintf("network %d", nic.At)
	}
	a.gateways, err = parseGateways(n, a.addresses, wrong)
	return a, err
}

// separators stand between the elements of a list.
const separators = ", ;\t\n"

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(separators, r) })
}

func withoutAddress(n *spec.Network, source addressing, dns []netip.Addr, wrong fault) (addressing, error) {
	switch {
	case n.IPPolicy == "static":
		return addressing{}, wrong("StaticIP", "is missing, and a static address is asked")
	case n.Gateway != "":
		return addressing{}, wrong("Gateway", "is of no use without an address: with DHCP the gateway comes from there")
	case n.Prefix != 0:
		return addressing{}, wrong("Prefix", "is of no use without an address: with DHCP the prefix comes from there")
	}
	a := addressing{dhcp4: true}
	if n.IPPolicy == "" && source.any() && len(source.addresses) == 0 {
		a = source
	}
	a.dns = dns
	return a, nil
}

// parseAddresses reads StaticIP: one address or several, each with its prefix length or with that of Prefix.
func parseAddresses(n *spec.Network, wrong fault) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range split(n.StaticIP) {
		address, length, own := strings.Cut(text, "/")
		addr, err := netip.ParseAddr(address)
		if err != nil || addr.Zone() != "" || addr.Is4In6() {
			return nil, wrong("StaticIP", "%q is not an IPv4 or IPv6 address", text)
		}
		bits := n.Prefix
		if own {
			p, err := netip.ParsePrefix(text)
			if err != nil || p.Bits() == 0 {
				return nil, wrong("StaticIP", "%q: /%s is not a prefix length of 1..%d", text, length, addr.BitLen())
			}
			bits = p.Bits()
			if n.Prefix != 0 && n.Prefix != bits {
				return nil, wrong("Prefix", "%d contradicts the address %s", n.Prefix, text)
			}
		}
		if bits == 0 {
			return nil, wrong("Prefix", "is missing, and the address %s comes without it", addr)
		}
		if bits < 1 || bits > addr.BitLen() {
			return nil, wrong("Prefix", "%d is not in 1..%d, for the address %s", bits, addr.BitLen(), addr)
		}
		p := netip.PrefixFrom(addr, bits)
		if why := unusable(p); why != "" {
			return nil, wrong("StaticIP", "%s is %s, not the address of a NIC", p, why)
		}
		all = append(all, p)
	}
	return all, nil
}

// unusable says why no NIC can have an address.
func unusable(p netip.Prefix) string {
	addr := p.Addr()
	switch {
	case addr.IsUnspecified():
		return "no address"
	case addr.IsMulticast():
		return "a multicast address"
	case addr.IsLoopback():
		return "a loopback address"
	case addr.Is4() && p.Bits() < 31 && addr == p.Masked().Addr():
		return "the address of the network itself"
	case addr.Is4() && p.Bits() < 31 && !p.Contains(addr.Next()):
		return "the broadcast address of its network"
	}
	return ""
}

// parseGateways reads Gateway: one address, or one of each family.
func parseGateways(n *spec.Network, own []netip.Prefix, wrong fault) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range split(n.Gateway) {
		gw, err := netip.ParseAddr(text)
		if err != nil || gw.Zone() != "" || gw.Is4In6() || gw.IsUnspecified() || gw.IsMulticast() {
			return nil, wrong("Gateway", "%q is not the address of a gateway", text)
		}
		same := func(other netip.Addr) bool { return other.Is4() == gw.Is4() }
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return same(p.Addr()) }) {
			return nil, wrong("Gateway", "%s is of another family than the address %s", gw, n.StaticIP)
		}
		if slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr() == gw }) {
			return nil, wrong("Gateway", "%s is the address of the NIC itself", gw)
		}
		if slices.ContainsFunc(all, same) {
			return nil, wrong("Gateway", "%s is a second gateway of its family", gw)
		}
		all = append(all, gw)
	}
	return all, nil
}

func parseDNS(list string, wrong fault) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range split(list) {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() {
			return nil, wrong("DNS", "%q is not the address of a name server", text)
		}
		if !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all, nil
}

// parseIPConfig reads PVE's ipconfigN: ip=<address/prefix or dhcp>,gw=...,ip6=<address/prefix, dhcp or auto>,gw6=....
func parseIPConfig(value string) (addressing, error) {
	var a addressing
	for field := range strings.SplitSeq(value, ",") {
		key, v, _ := strings.Cut(field, "=")
		switch {
		case field == "":
		case key == "ip" && v == "dhcp":
			a.dhcp4 = true
		case key == "ip6" && v == "dhcp":
			a.dhcp6 = true
		case key == "ip6" && v == "auto":
			a.auto6 = true
		case key == "ip" || key == "ip6":
			p, err := netip.ParsePrefix(v)
			if err != nil {
				return addressing{}, err
			}
			a.addresses = append(a.addresses, p)
		case key == "gw" || key == "gw6":
			gw, err := netip.ParseAddr(v)
			if err != nil {
				return addressing{}, err
			}
			a.gateways = append(a.gateways, gw)
		}
	}
	return a, nil
}

// onLink reports whether a gateway lies outside of the NIC's subnets, so that it has to be told to be on the link.
func (a addressing) onLink(gw netip.Addr) bool {
	return !gw.IsLinkLocalUnicast() && !slices.ContainsFunc(a.addresses, func(p netip.Prefix) bool { return p.Contains(gw) })
}
