// Package cloudinit turns a wish into what cloud-init reads on a VM's cloud-init drive. It is pure: no I/O, no clock.
//
// PVE writes the drive at every start of a VM, from its own config keys (ciuser, sshkeys, ipconfigN, ...), or byte for
// byte from snippets where `cicustom` names some: user=, meta=, network=. A snippet takes the place of the whole part,
// so everything that PVE's own generation says there has to be said by us, or is lost:
//
//   - user: the host name, /etc/hosts, ciuser, cipassword, sshkeys and the package upgrade. Given user-data is passed
//     on byte for byte all the same, because it is the user's whole word; the host name goes into the meta-data
//     instead. Without user-data there is no such part, and PVE's own generation stands, unless it would contradict
//     the wish (another host name than the VM's, a time zone): then it is said again by us, with the change.
//   - meta: PVE's has an instance-id only, a hash of the other parts, so that cloud-init begins anew whenever they
//     change. Ours is the VM's own for its whole life.
//   - network: ipconfigN of every NIC, also of those that nobody asks about; nameserver and searchdomain; and the
//     node's resolver where these are not set.
//
// Not every layout of the drive can take all of it: see Format.
package cloudinit

import (
	"maps"
	"net/netip"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Format is the layout of a cloud-init drive, as in PVE's citype.
type Format string

// The formats. A NoCloud drive takes every part. On a config drive the meta-data is JSON, and the network part is in
// Debian's interfaces format, so that PVE's own keys are used for it. For OpenNebula PVE reads no snippets at all.
const (
	NoCloud     Format = "nocloud"
	ConfigDrive Format = "configdrive2"
	OpenNebula  Format = "opennebula"
)

// FormatOf returns the layout that PVE uses for a VM with these config values; each may be "".
func FormatOf(citype, ostype string) Format {
	switch {
	case citype != "":
		return Format(citype)
	case windows(ostype):
		return ConfigDrive
	}
	return NoCloud
}

// windows tells the ostypes of Windows (wxp, w2k8, win11, ...) from l26, solaris and other.
func windows(ostype string) bool { return strings.HasPrefix(ostype, "w") }

// Wish is what a VM's cloud-init drive has to say.
type Wish struct {
	Format     Format       // "": NoCloud
	Dialect    spec.Dialect // of the request, for errors
	Name       string       // the VM's name in PVE, and its host name unless another is asked
	InstanceID string       // the same for a VM's whole life, and no other VM's: its SMBIOS uuid

	Hostname, Domain, TimeZone string // "": none asked
	UserData, MetaData         []byte // as in the request; MetaData is YAML

	// NewDrive says that the template had no cloud-init drive. With one the guest does as the drive says, and that is
	// nothing where PVE's config has no ipconfigN, instead of DHCP on its first NIC: so the drive has to say that.
	NewDrive bool
	NICs     []NIC
	Source   map[string]string // the VM's config in PVE as it is; only keys that concern cloud-init are looked at
	Resolver Resolver          // of the node: PVE passes it on where the config names none
}

// NIC is one network card of the VM.
type NIC struct {
	Index int           // n of PVE's netN
	MAC   string        // as in netN
	Asked *spec.Network // nil: nobody asks about it, and its ipconfigN in Source stands
	At    int           // the index of Asked in the request, for errors
}

// Resolver is where names are looked up.
type Resolver struct {
	Servers []netip.Addr
	Search  []string
}

// Rendered is what makes PVE write the drive that was wished for.
type Rendered struct {
	Parts  map[string][]byte // content of snippets by their key in cicustom: user, meta, network
	Params map[string]string // keys of PVE's config, with the values as they stand there
	Lost   []string          // what neither carries, for a message; nothing may be lost silently
	Hidden []string          // keys set in PVE's config that the given user-data takes the place of
}

// Render says how the drive comes about with snippets. Errors are *spec.Error where the request is wrong.
func (w Wish) Render() (Rendered, error) {
	if w.Format == OpenNebula {
		return w.Builtin()
	}
	user, err := w.UserPart()
	if err != nil {
		return Rendered{}, err
	}
	meta, err := w.MetaPart()
	if err != nil {
		return Rendered{}, err
	}
	r := Rendered{Parts: map[string][]byte{}, Params: map[string]string{}}
	var network []byte
	if w.Format == ConfigDrive {
		r.Params, r.Lost, err = w.builtinNetwork()
	} else {
		network, err = w.NetworkPart()
	}
	if err != nil {
		return Rendered{}, err
	}
	for name, content := range map[string][]byte{"user": user, "meta": meta, "network": network} {
		if content != nil {
			r.Parts[name] = content
		}
	}
	for _, key := range []string{"cipassword", "ciupgrade", "ciuser", "sshkeys"} {
		if w.Source[key] != "" && len(w.UserData) > 0 {
			r.Hidden = append(r.Hidden, key)
		}
	}
	return r, nil
}

// Builtin says how the drive comes about where no storage holds snippets: by PVE's own keys, which carry little.
func (w Wish) Builtin() (Rendered, error) {
	params, lost, err := w.builtinNetwork()
	if err != nil {
		return Rendered{}, err
	}
	data, lostData := w.builtinUser()
	maps.Copy(params, data)
	lostMeta, err := w.builtinMeta()
	if err != nil {
		return Rendered{}, err
	}
	return Rendered{Parts: map[string][]byte{}, Params: params, Lost: append(append(lostData, lostMeta...), lost...)}, nil
}

// name is a host name with what PVE's own generation makes of it.
type name struct{ host, fqdn string }

func nameOf(host, domain string) name {
	short, _, dotted := strings.Cut(host, ".")
	if !dotted && domain != "" {
		host += "." + domain
	}
	return name{short, host}
}

// builtinName is the name that PVE gives the guest.
func (w Wish) builtinName() name { return nameOf(w.Name, w.Source["searchdomain"]) }

// wantedName is the name that the guest is to have.
func (w Wish) wantedName(given string) name {
	host := w.Name
	if w.Hostname != "" {
		host = w.Hostname
	}
	domain := w.Domain
	if domain == "" {
		domain = w.Source["searchdomain"]
	}
	if given != "" {
		host = given
	}
	return nameOf(host, domain)
}

// ownUserPart tells whether the template brings user-data of its own, which stands where none is asked.
func (w Wish) ownUserPart() bool {
	for field := range strings.SplitSeq(w.Source["cicustom"], ",") {
		if strings.HasPrefix(field, "user=") {
			return true
		}
	}
	return false
}
