package spec

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Clone is the wish behind a Clone request.
type Clone struct {
	Name      string // of the copy
	Linked    bool   // the copy may share its base with the source
	Class     *Class // nil: as its source
	Placement string // name of a VMPlacementPolicy, which the manager does not resolve; "" none

	Hostname, Domain, TimeZone string
	Networks                   []Network // Name, StaticIP, Prefix, Gateway, DNS, MacAddress and IPPolicy
	UserData                   []byte
	UserDataSecret             string // name of a Secret, which the manager does not resolve
	Ignition                   []byte
	IgnitionSecret             string
	Sysprep                    *Sysprep
	Tags                       []string
	GuestCommands              []GuestCommand
	Certificates               []Certificate

	Unknown []string `json:"-"`
}

// Sysprep is what a Windows guest is to be set up with.
type Sysprep struct {
	Enabled                         bool
	ProductKey, Organization, Owner string
	AdminPassword                   *Password
	JoinDomain                      *DomainJoin
	CustomCommands                  []string
}

// Password is a password, or where one would be.
type Password struct {
	Value     string
	SecretRef *SecretRef
	SecretKey string
}

// SecretRef names a Secret, which the manager does not resolve.
type SecretRef struct{ Name string }

// DomainJoin is the Windows domain to join.
type DomainJoin struct {
	Domain, Username   string
	Password           Password
	OrganizationalUnit string
}

// GuestCommand is a command to run in the guest.
type GuestCommand struct {
	Command                     string
	Arguments                   []string
	WorkingDirectory, RunAsUser string
	Timeout                     Duration
	Stage                       string // pre-customization, post-customization or first-boot
}

// Certificate is a certificate to install in the guest.
type Certificate struct {
	Name, Data string // Data is PEM
	SecretRef  *SecretRef
	SecretKey  string
	Store      string // root, ca, my or trust
}

// CloneInput is a Clone request as it stands on the wire.
type CloneInput struct {
	TargetName                              string
	Linked                                  bool
	ClassJSON, PlacementJSON, CustomizeJSON string
}

// customization is VMCustomization of the VMClone resource.
type customization struct {
	Hostname, Domain, TimeZone string
	Networks                   []resourceNetwork
	UserData                   struct {
		CloudInit, Ignition struct {
			Inline    string
			SecretRef SecretRef
		}
	}
	Sysprep       *Sysprep
	Tags          []string
	GuestCommands []GuestCommand
	Certificates  []Certificate
}

// resourceNetwork is NetworkCustomization of the VMClone resource.
type resourceNetwork struct {
	Name, IPAddress, SubnetMask, Gateway string
	DNS                                  []string
	MACAddress                           string
	DHCP                                 bool
}

// DecodeClone checks and decodes a Clone request. Every error is an *Error.
func DecodeClone(in CloneInput) (Clone, error) {
	if err := checkName(place{payload: "target_name"}, in.TargetName); err != nil {
		return Clone{}, err
	}
	var (
		class     *resourceClass
		placement struct{ Name string }
		custom    customization
	)
	c := Clone{Name: in.TargetName, Linked: in.Linked}
	for _, p := range []struct {
		name, text string
		into       any
	}{
		{"class_json", in.ClassJSON, &class},
		{"placement_json", in.PlacementJSON, &placement},
		{"customize_json", in.CustomizeJSON, &custom},
	} {
		unknown, err := decode(place{payload: p.name, resource: true}, p.text, false, p.into)
		if err != nil {
			return Clone{}, err
		}
		c.Unknown = append(c.Unknown, unknown...)
	}
	c.Placement = placement.Name
	if class != nil {
		c.Class = class.class()
		if err := c.Class.check(place{payload: "class_json", resource: true}); err != nil {
			return Clone{}, err
		}
	}
	if err := c.customize(&custom); err != nil {
		return Clone{}, err
	}
	return c, nil
}

func (c *Clone) customize(from *customization) error {
	c.Hostname, c.Domain, c.TimeZone = from.Hostname, from.Domain, from.TimeZone
	data := from.UserData
	c.UserData, c.UserDataSecret = []byte(data.CloudInit.Inline), data.CloudInit.SecretRef.Name
	c.Ignition, c.IgnitionSecret = []byte(data.Ignition.Inline), data.Ignition.SecretRef.Name
	c.Sysprep, c.Tags, c.GuestCommands, c.Certificates = from.Sysprep, from.Tags, from.GuestCommands, from.Certificates
	for i, n := range from.Networks {
		network, err := n.network(CloneDialect.network(i))
		if err != nil {
			return err
		}
		c.Networks = append(c.Networks, network)
	}
	return cmp.Or(c.checkNames(), checkNetworks(CloneDialect, c.Networks), c.checkRest())
}

func (c *Clone) checkNames() error {
	at := place{payload: "customize_json", resource: true}
	for _, n := range []struct{ field, value string }{{"Hostname", c.Hostname}, {"Domain", c.Domain}} {
		if n.value != "" && (len(n.value) > 253 || !nameRE.MatchString(strings.ToLower(n.value))) {
			return at.err(n.field, "%q is not a name that DNS takes (letters, digits, '-' and '.')", n.value)
		}
	}
	if strings.ContainsFunc(c.TimeZone, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return at.err("TimeZone", "%q is not the name of a time zone, such as Europe/Vienna", c.TimeZone)
	}
	return nil
}

func (c *Clone) checkRest() error {
	at := func(prefix string) place { return place{payload: "customize_json", prefix: prefix, resource: true} }
	if err := cmp.Or(checkData(at("userData.cloudInit.inline"), c.UserData), checkData(at("userData.ignition.inline"), c.Ignition)); err != nil {
		return err
	}
	for i, g := range c.GuestCommands {
		if err := oneOf(at("guestCommands").item(i), "Stage", g.Stage, "pre-customization", "post-customization", "first-boot"); err != nil {
			return err
		}
	}
	for i, cert := range c.Certificates {
		if err := oneOf(at("certificates").item(i), "Store", cert.Store, "root", "ca", "my", "trust"); err != nil {
			return err
		}
	}
	return nil
}

// network turns the resource's words into those of Create.
func (n *resourceNetwork) network(at place) (Network, error) {
	out := Network{
		Name: n.Name, StaticIP: n.IPAddress, Gateway: n.Gateway, DNS: strings.Join(n.DNS, ","),
		MacAddress: strings.ReplaceAll(n.MACAddress, "-", ":"),
	}
	if n.DHCP {
		if n.IPAddress != "" {
			return Network{}, at.err("dhcp", "is asked together with ipAddress %q: one of them only", n.IPAddress)
		}
		out.IPPolicy = "dhcp"
	}
	if n.SubnetMask == "" {
		return out, nil
	}
	bits, ok := prefixOf(n.SubnetMask)
	if !ok {
		return Network{}, at.err("Prefix", "%q is not an IPv4 network mask such as 255.255.255.0", n.SubnetMask)
	}
	out.Prefix = bits
	return out, nil
}

// prefixOf returns the length of an IPv4 network mask.
func prefixOf(mask string) (int, bool) {
	addr, err := netip.ParseAddr(mask)
	if err != nil || !addr.Is4() {
		return 0, false
	}
	for bits := 1; bits <= 32; bits++ {
		ones := ^uint32(0) << (32 - bits)
		b := addr.As4()
		if slices.Equal(b[:], []byte{byte(ones >> 24), byte(ones >> 16), byte(ones >> 8), byte(ones)}) {
			return bits, true
		}
	}
	return 0, false
}
