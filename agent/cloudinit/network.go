package cloudinit

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// quoted is a string that stands in quotes: YAML 1.1 reads 52:54:00:12:34:56 as a number.
type quoted string

// MarshalYAML returns the string as a node in quotes.
func (q quoted) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(q), Style: yaml.DoubleQuotedStyle}, nil
}

// networkConfig is cloud-init's network-config, version 2.
type networkConfig struct {
	Version   int                 `yaml:"version"`
	Ethernets map[string]ethernet `yaml:"ethernets"` // written in the order of their numbers
}

type ethernet struct {
	Match       match        `yaml:"match"`
	DHCP4       bool         `yaml:"dhcp4,omitempty"`
	DHCP6       bool         `yaml:"dhcp6,omitempty"`
	AcceptRA    bool         `yaml:"accept-ra,omitempty"`
	Addresses   []quoted     `yaml:"addresses,omitempty"`
	Routes      []route      `yaml:"routes,omitempty"`
	Gateway6    quoted       `yaml:"gateway6,omitempty"`
	Nameservers *nameservers `yaml:"nameservers,omitempty"`
}

type match struct {
	MAC quoted `yaml:"macaddress"`
}

type route struct {
	To     quoted `yaml:"to"`
	Via    quoted `yaml:"via"`
	OnLink bool   `yaml:"on-link,omitempty"`
	Metric int    `yaml:"metric,omitempty"`
}

type nameservers struct {
	Addresses []quoted `yaml:"addresses,omitempty"`
	Search    []quoted `yaml:"search,omitempty"`
}

// NetworkPart returns the network-config for a snippet, or nil where nobody asks about a NIC.
//
// NICs are matched by MAC address and keep the name that the guest gives them: cloud-init looks it up since 22.4. The
// ids are ethN, which is what older ones take for the name.
func (w Wish) NetworkPart() ([]byte, error) {
	nics, err := w.plan()
	if err != nil || nics == nil {
		return nil, err
	}
	c := networkConfig{Version: 2, Ethernets: map[string]ethernet{}}
	dns, search := w.names(nics)
	for i, n := range nics {
		mac := strings.ToLower(n.MAC)
		if !macRE.MatchString(mac) {
			return nil, fmt.Errorf("net%d: %q is not a MAC address", n.Index, n.MAC)
		}
		e := ethernet{Match: match{quoted(mac)}, DHCP4: n.dhcp4, DHCP6: n.dhcp6, AcceptRA: n.auto6}
		for _, a := range n.addresses {
			e.Addresses = append(e.Addresses, quoted(a.String()))
		}
		for _, gw := range n.gateways {
			e.addGateway(gw, n.onLink(gw), metric(nics[:i], gw))
		}
		if len(dns[i])+len(search[i]) > 0 {
			e.Nameservers = &nameservers{Addresses: dns[i], Search: search[i]}
		}
		c.Ethernets[fmt.Sprintf("eth%d", n.Index)] = e
	}
	return encode(c)
}

// addGateway adds a default route. It is 0.0.0.0/0, because cloud-init 22.4 (Debian 12) knows the word "default" only
// where netplan is there to read it. That version also takes a route to ::/0 for one to ::/64 wherever netplan is not,
// so that IPv6 has the older gateway6, unless more is to be said than that can. Only netplan and NetworkManager reach
// a gateway that is outside of the subnet.
func (e *ethernet) addGateway(gw netip.Addr, onLink bool, metric int) {
	to := quoted("0.0.0.0/0")
	if gw.Is6() {
		to = "::/0"
		if !onLink && metric == 0 {
			e.Gateway6 = quoted(gw.String())
			return
		}
	}
	e.Routes = append(e.Routes, route{To: to, Via: quoted(gw.String()), OnLink: onLink, Metric: metric})
}

var macRE = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){5}$`)

// metric makes the first NIC's gateway the one that is used, where several have one.
func metric(before []planned, gw netip.Addr) int {
	m := 0
	for _, n := range before {
		for _, other := range n.gateways {
			if other.Is4() == gw.Is4() {
				m += 100
			}
		}
	}
	if m > 0 {
		m += 100
	}
	return m
}

// names says for each NIC which name servers and search domains it has. Where no NIC names servers, the first one with
// an address of its own gets those of PVE's config, or of the node, as PVE's own generation has it.
func (w Wish) names(nics []planned) (dns, search [][]quoted) {
	dns, search = make([][]quoted, len(nics)), make([][]quoted, len(nics))
	named, static := false, -1
	for i, n := range nics {
		for _, a := range n.dns {
			dns[i], named = append(dns[i], quoted(a.String())), true
		}
		if static < 0 && len(n.addresses) > 0 {
			static = i
		}
	}
	if !named && static >= 0 {
		for _, server := range w.servers() {
			dns[static] = append(dns[static], quoted(server))
		}
	}
	domains := w.search(static >= 0)
	for i := range nics {
		if named && dns[i] == nil || !named && i != max(static, 0) {
			continue
		}
		for _, d := range domains {
			search[i] = append(search[i], quoted(d))
		}
	}
	return dns, search
}

func (w Wish) servers() []string {
	if own := split(w.Source["nameserver"]); len(own) > 0 {
		return own
	}
	var all []string
	for _, a := range w.Resolver.Servers {
		all = append(all, a.String())
	}
	return all
}

// search returns the domains to look names up in: the wish's, else those of PVE's config, else the node's, unless DHCP
// will tell.
func (w Wish) search(static bool) []string {
	switch own := split(w.Source["searchdomain"]); {
	case w.Domain != "":
		return []string{w.Domain}
	case len(own) > 0:
		return own
	case static:
		return w.Resolver.Search
	}
	return nil
}

// builtinNetwork says the same in PVE's keys: ipconfigN, nameserver and searchdomain.
func (w Wish) builtinNetwork() (params map[string]string, lost []string, err error) {
	params = map[string]string{}
	if w.Domain != "" && w.Domain != w.Source["searchdomain"] {
		params["searchdomain"] = w.Domain
	}
	nics, err := w.plan()
	if err != nil {
		return nil, nil, err
	}
	var servers []string
	for _, n := range nics {
		if !n.ours {
			continue // its ipconfigN stands
		}
		value, without := n.ipconfig()
		params[fmt.Sprintf("ipconfig%d", n.Index)] = value
		for _, what := range without {
			lost = append(lost, w.Dialect.NetworkError(n.At, what.field, what.problem).Error())
		}
		for _, a := range n.dns {
			servers = append(servers, a.String())
		}
	}
	if len(servers) > 0 {
		params["nameserver"] = strings.Join(unique(servers), " ")
	}
	return params, lost, nil
}

// omission is what ipconfigN cannot say.
type omission struct{ field, problem string }

// ipconfig writes PVE's ipconfigN: one address and one gateway of each family.
func (a addressing) ipconfig() (value string, without []omission) {
	var fields []string
	set := func(key, v string) {
		for _, f := range fields {
			if strings.HasPrefix(f, key+"=") {
				without = append(without, omission{"StaticIP", "PVE's ipconfig holds one address of each family, not also " + v})
				return
			}
		}
		fields = append(fields, key+"="+v)
	}
	for _, p := range a.addresses {
		if p.Addr().Is4() {
			set("ip", p.String())
		} else {
			set("ip6", p.String())
		}
	}
	if a.dhcp4 {
		set("ip", "dhcp")
	}
	if a.dhcp6 {
		set("ip6", "dhcp")
	}
	if a.auto6 {
		set("ip6", "auto")
	}
	for _, gw := range a.gateways {
		if a.onLink(gw) {
			without = append(without, omission{"Gateway", fmt.Sprintf("PVE's ipconfig has no gateway outside of the subnet, as %s is", gw)})
			continue
		}
		if gw.Is4() {
			set("gw", gw.String())
		} else {
			set("gw6", gw.String())
		}
	}
	return strings.Join(fields, ","), without
}

func unique(list []string) []string {
	var all []string
	seen := map[string]bool{}
	for _, v := range list {
		if !seen[v] {
			all = append(all, v)
		}
		seen[v] = true
	}
	return all
}
