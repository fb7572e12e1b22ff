package schema

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A format says what is wrong with a value, "" if nothing is.
type format func(value string) string

// formats are PVE's named formats that a caller of ours may get wrong. A
// format that is not here is not checked.
var formats = map[string]format{
	"pve-vmid":                       quoted(`^[1-9][0-9]{2,8}$`, "value does not look like a valid VM ID"),
	"pve-node":                       quoted(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`, "value does not look like a valid node name"),
	"pve-storage-id":                 quoted(`(?i)^[a-z][a-z0-9\-_.]*[a-z0-9]$`, "storage ID '%s' contains illegal characters"),
	"pve-bridge-id":                  quoted(`(?i)^[-_.\w\d]+$`, "invalid bridge ID '%s'"),
	"pve-configid":                   quoted(`(?i)^[a-z][a-z0-9_-]+$`, "invalid configuration ID '%s'"),
	"pve-poolid":                     quoted(`^[A-Za-z0-9._/-]+$`, "pool name '%s' contains invalid characters"),
	"pve-iface":                      quoted(`(?i)^[a-z][a-z0-9_]{1,20}([:.]\d+)?$`, "invalid network interface name '%s'"),
	"pve-tag":                        quoted(`(?i)^[a-z0-9_][a-z0-9_\-+.]*$`, "invalid characters in tag"),
	"dns-name":                       dnsName,
	"pve-userid":                     quoted(`^[^\s:/]+@[A-Za-z][A-Za-z0-9._-]+$`, "value '%s' does not look like a valid user name"),
	"mac-addr":                       quoted(`(?i)^[a-f0-9][02468ace](:[a-f0-9]{2}){5}$`, "value does not look like a valid unicast MAC address"),
	"disk-size":                      quoted(`^\d+(\.\d+)?[KMGT]?$`, "value does not look like a valid disk size: %s"),
	"urlencoded":                     quoted(`^[-%a-zA-Z0-9_.!~*'()]*$`, "invalid urlencoded string: %s"),
	"pve-volume-id":                  volumeID,
	"pve-volume-id-or-qm-path":       volumeOrPath,
	"pve-volume-id-or-absolute-path": volumeOrPath,
	"pve-hotplug-features":           quoted(`^([01]|((network|disk|usb|memory|cpu|cloudinit)([,; ]|$))*)$`, "unable to parse hotplug option"),
	"pve-storage-content":            quoted(`^(images|rootdir|iso|vztmpl|backup|snippets|import|none)$`, "invalid content type '%s'"),
	"pve-qm-bootdev":                 quoted(`^((ide|sata|scsi|virtio|net|usb|hostpci)\d+)$`, "invalid boot device '%s'"),
	"ipv4":                           address(func(a netip.Addr) bool { return a.Is4() }, "value does not look like a valid IPv4 address"),
	"ipv6":                           address(func(a netip.Addr) bool { return a.Is6() }, "value does not look like a valid IPv6 address"),
	"pve-ipv4-config":                ipConfig(true, "dhcp", "manual"),
	"pve-ipv6-config":                ipConfig(false, "auto", "dhcp", "manual"),
	"pve-startup-order":              quoted(`^((order=)?\d+|(up|down)=\d+)(,((order=)?\d+|(up|down)=\d+))*$`, "unable to parse startup options"),
	"address":                        nameOrAddress,
}

// quoted makes a check whose text may name the value.
func quoted(re, text string) format {
	r := regexp.MustCompile(re)
	return func(v string) string {
		if r.MatchString(v) {
			return ""
		}
		return strings.ReplaceAll(text, "%s", v)
	}
}

var volumeText = regexp.MustCompile(`(?i)^[a-z][a-z0-9\-_.]*[a-z0-9]:.+$`)

func volumeID(v string) string {
	if volumeText.MatchString(v) {
		return ""
	}
	return "unable to parse volume ID '" + v + "'"
}

func volumeOrPath(v string) string {
	if v == "none" || v == "cdrom" || strings.HasPrefix(v, "/") {
		return ""
	}
	return volumeID(v)
}

func address(want func(netip.Addr) bool, text string) format {
	return func(v string) string {
		if a, err := netip.ParseAddr(v); err == nil && want(a) {
			return ""
		}
		return text
	}
}

var dnsName = quoted(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`,
	"value does not look like a valid DNS name")

func nameOrAddress(v string) string {
	if _, err := netip.ParseAddr(v); err == nil || dnsName(v) == "" {
		return ""
	}
	return "value does not look like a valid address: " + v
}

func ipConfig(v4 bool, words ...string) format {
	name := "ipv6"
	if v4 {
		name = "ipv4"
	}
	return func(v string) string {
		addr, bits, ok := strings.Cut(v, "/")
		a, err := netip.ParseAddr(addr)
		n, err2 := strconv.Atoi(bits)
		if slices.Contains(words, v) || (ok && err == nil && err2 == nil && a.Is4() == v4 && n >= 8 && n <= a.BitLen()) {
			return ""
		}
		return "value does not look like a valid " + name + " network configuration"
	}
}

// namedObjects are property strings that the schema files give by name only.
func namedObjects() map[string]map[string]*prop {
	return map[string]map[string]*prop{
		"pve-qm-smbios1": {
			"uuid":    {Type: "string", Optional: true, Pattern: `[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}`},
			"base64":  {Type: "boolean", Optional: true},
			"version": base64Text(), "serial": base64Text(), "manufacturer": base64Text(),
			"product": base64Text(), "sku": base64Text(), "family": base64Text(),
		},
		"pve-qm-cicustom": {
			"meta": volumeProp(), "network": volumeProp(), "user": volumeProp(), "vendor": volumeProp(),
		},
		"pve-qm-ipconfig": {
			"ip":  {Type: "string", Optional: true, Format: []byte(`"pve-ipv4-config"`)},
			"gw":  {Type: "string", Optional: true, Format: []byte(`"ipv4"`), Requires: "ip"},
			"ip6": {Type: "string", Optional: true, Format: []byte(`"pve-ipv6-config"`)},
			"gw6": {Type: "string", Optional: true, Format: []byte(`"ipv6"`), Requires: "ip6"},
		},
		"pve-qm-boot": {
			"legacy": {Type: "string", Optional: true, DefaultKey: true, Pattern: `[acdn]{1,4}`},
			"order":  {Type: "string", Optional: true, Format: []byte(`"pve-qm-bootdev-list"`)},
		},
		"pve-vm-cpu-conf": {
			"cputype": {Type: "string", Optional: true, DefaultKey: true}, "reported-model": {Type: "string", Optional: true},
			"hidden": {Type: "boolean", Optional: true}, "hv-vendor-id": {Type: "string", Optional: true, Pattern: `[a-zA-Z0-9]{1,12}`},
			"flags": {Type: "string", Optional: true}, "phys-bits": {Type: "string", Optional: true},
			"guest-phys-bits": {Type: "integer", Optional: true}, "level": {Type: "integer", Optional: true},
		},
	}
}

func base64Text() *prop {
	return &prop{Type: "string", Optional: true, Pattern: `[A-Za-z0-9+/]+={0,2}`}
}

func volumeProp() *prop {
	return &prop{Type: "string", Optional: true, Format: []byte(`"pve-volume-id"`)}
}
