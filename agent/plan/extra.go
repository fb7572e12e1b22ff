package plan

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// extraPrefix begins the keys of ExtraConfig that are meant for PVE. Others are of other hypervisors.
const extraPrefix = "proxmox."

// kind says which values a key takes; the words are for a message.
type kind struct {
	valid func(string) bool
	words string
}

var (
	onOff   = kind{matching(`[01]|true|false|on|off|yes|no`), "a flag (0 or 1)"}
	number  = kind{matching(`\d{1,9}`), "a number"}
	decimal = kind{matching(`\d{1,6}(\.\d{1,6})?`), "a number"}
	// A property string of PVE, or a word. No line feed can be in it.
	words = kind{matching(`[\x21-\x7e]{1,256}`), "a value as in qm.conf(5)"}
	text  = kind{func(s string) bool { return len(s) <= 8192 }, "a text of at most 8192 bytes"}
)

func matching(pattern string) func(string) bool {
	return regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString
}

// upTo is a number that is in PVE's range for it.
func upTo(least, most float64, k kind) kind {
	return kind{func(s string) bool {
		n, err := strconv.ParseFloat(s, 64)
		return k.valid(s) && err == nil && n >= least && n <= most
	}, fmt.Sprintf("%s from %g to %g", k.words, least, most)}
}

func oneOf(values ...string) kind {
	return kind{func(s string) bool { return slices.Contains(values, s) }, "one of " + strings.Join(values, ", ")}
}

// extraKinds are the options of a VM that a request may set by ExtraConfig: what a token may set in PVE and nothing else
// in a request says. Not here: what is root's alone (args, hookscript, affinity, hostpciN, ...), and what pve-rigaud
// decides itself (name, smbios1, cores, memory, drives, ...).
var extraKinds = map[string]kind{
	"acpi": onOff, "agent": words, "allow-ksm": onOff, "audio0": words, "autostart": onOff, "balloon": number,
	"ciupgrade": onOff, "citype": oneOf("configdrive2", "nocloud", "opennebula"), "cpu": words, "cpulimit": upTo(0, maxCPULimit, decimal), "cpuunits": upTo(1, 262144, number),
	"description": text, "keyboard": words, "kvm": onOff, "localtime": onOff, "machine": words, "migrate_downtime": decimal,
	"onboot": onOff, "ostype": words, "protection": onOff, "reboot": onOff, "rng0": words,
	"scsihw":  oneOf("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"),
	"serial0": oneOf("socket"), "serial1": oneOf("socket"), "serial2": oneOf("socket"), "serial3": oneOf("socket"),
	"shares": upTo(0, 50000, number), "tablet": onOff, "vga": words, "vmstatestorage": words, "watchdog": words,
}

// newer are the options that PVE has only since a major version of it.
var newer = map[string]int{"allow-ksm": 9, "ciupgrade": 8}

// NeedsVersion reports whether a class can be carried out depends on PVE's version.
func NeedsVersion(class *spec.Class) bool {
	if class == nil {
		return false
	}
	for name := range newer {
		if _, said := class.ExtraConfig[extraPrefix+name]; said {
			return true
		}
	}
	return class.SecurityProfile != nil && class.SecurityProfile.VTDEnabled
}

// driveOptionKinds are the options of drives that a request may set: proxmox.disk.<option>.
var driveOptionKinds = map[string]kind{
	"aio": oneOf("native", "threads", "io_uring"), "backup": onOff, "cache": oneOf("none", "writethrough", "writeback", "unsafe", "directsync"),
	"detect_zeroes": onOff, "discard": oneOf("on", "ignore"), "iothread": onOff, "replicate": onOff, "ssd": onOff,
	"mbps": decimal, "mbps_rd": decimal, "mbps_wr": decimal, "iops": number, "iops_rd": number, "iops_wr": number,
	"mbps_max": decimal, "mbps_rd_max": decimal, "mbps_wr_max": decimal, "iops_max": number, "iops_rd_max": number, "iops_wr_max": number,
}

// nicOptionKinds are the options of NICs that a request may set: proxmox.net.<option> for all, proxmox.net<N>.<option>
// for the one of the Nth network of the request.
var nicOptionKinds = map[string]kind{
	"firewall": onOff, "link_down": onOff, "mtu": upTo(1, 65520, number), "queues": upTo(0, 64, number), "rate": decimal,
	"trunks": {matching(`\d{1,4}(-\d{1,4})?(;\d{1,4}(-\d{1,4})?)*`), "VLAN ids separated by ';'"},
}

// otherKinds are words to us, not to PVE.
var otherKinds = map[string]kind{"linked-clone": onOff, "placement-policy": words}

// PlacementPolicy returns the name of the placement policy that a class asks for, "" if it asks for none.
func PlacementPolicy(class *spec.Class) string {
	if class == nil {
		return ""
	}
	return class.ExtraConfig[extraPrefix+"placement-policy"]
}

// checkExtra refuses every key for PVE that is not on one of the lists.
func checkExtra(extra map[string]string, site Site) error {
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		name, ours := strings.CutPrefix(key, extraPrefix)
		if !ours {
			continue
		}
		kind, ok := kindOf(name)
		field := "ExtraConfig." + key
		switch since := newer[name]; {
		case site.Major > 0 && site.Major < since:
			return site.class(fault.Precondition, field, "PVE %d has no such setting; it came with %d", site.Major, since)
		case !ok:
			return site.class(fault.Invalid, field, "is not among the settings that a request may make; see docs/payloads.md for the list")
		case !kind.valid(extra[key]):
			return site.class(fault.Invalid, field, "%q is not %s", extra[key], kind.words)
		}
	}
	return nil
}

var nicKey = regexp.MustCompile(`^net(\d{1,2})?\.`)

func kindOf(name string) (kind, bool) {
	if option, ok := strings.CutPrefix(name, "disk."); ok {
		k, ok := driveOptionKinds[option]
		return k, ok
	}
	if at := nicKey.FindString(name); at != "" {
		k, ok := nicOptionKinds[name[len(at):]]
		return k, ok
	}
	if k, ok := extraKinds[name]; ok {
		return k, ok
	}
	k, ok := otherKinds[name]
	return k, ok
}

// extraValues are the keys of the VM itself that ExtraConfig sets.
func extraValues(extra map[string]string) Values {
	v := Values{}
	for key, value := range extra {
		name, ours := strings.CutPrefix(key, extraPrefix)
		if k, ok := extraKinds[name]; ours && ok {
			v[name] = normal(k, value)
		}
	}
	return v
}

// extraDrive are the options of drives that ExtraConfig sets. The keys are checked by checkExtra.
func extraDrive(extra map[string]string) Values {
	v := Values{}
	for key, value := range extra {
		name, ours := strings.CutPrefix(key, extraPrefix+"disk.")
		if k, ok := driveOptionKinds[name]; ours && ok {
			v[name] = normal(k, value)
		}
	}
	return v
}

// allNICs is the index of options that are meant for every NIC.
const allNICs = -1

// extraNICs are the options of NICs that ExtraConfig sets, by the index of the network. The keys are checked by
// checkExtra.
func extraNICs(extra map[string]string) map[int]Values {
	out := map[int]Values{}
	for key, value := range extra {
		name, ours := strings.CutPrefix(key, extraPrefix)
		at := nicKey.FindStringSubmatch(name)
		if !ours || at == nil {
			continue
		}
		index := allNICs
		if at[1] != "" {
			index = atoi(at[1])
		}
		option := name[len(at[0]):]
		if out[index] == nil {
			out[index] = Values{}
		}
		out[index][option] = normal(nicOptionKinds[option], value)
	}
	return out
}

// extraFlag is one of our own words.
func extraFlag(extra map[string]string, name string, site Site) (bool, error) {
	value, ok := extra[extraPrefix+name]
	if !ok {
		return false, nil
	}
	if !onOff.valid(value) {
		return false, site.class(fault.Invalid, "ExtraConfig."+extraPrefix+name, "%q is not %s", value, onOff.words)
	}
	return normal(onOff, value) == "1", nil
}

// normal writes flags as PVE's configs do.
func normal(k kind, value string) string {
	if k.words != onOff.words {
		return value
	}
	switch value {
	case "true", "on", "yes", "1":
		return "1"
	}
	return "0"
}

// foreignExtra names the keys of ExtraConfig that are not for PVE.
func foreignExtra(extra map[string]string) []string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		if !strings.HasPrefix(key, extraPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// atoi is the number that a kind has checked.
func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
