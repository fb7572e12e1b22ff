package vmconf

import (
	"regexp"
	"strconv"
	"strings"
)

var (
	integers = regexp.MustCompile(`^(cores|sockets|smp|vcpus|balloon|shares|cpuunits|migrate_speed|snaptime)$`)
	booleans = regexp.MustCompile(`^(acpi|autostart|ciupgrade|freeze|keephugepages|kvm|localtime|numa|onboot|` +
		`protection|reboot|tablet|tdf|template|allow-ksm)$`)
	numbers = regexp.MustCompile(`^(cpulimit|migrate_downtime)$`)
)

// Typed returns an option's value as the API answers it: options whose
// schema type is integer, number or boolean are JSON numbers.
func Typed(key, value string) any {
	switch {
	case integers.MatchString(key), booleans.MatchString(key):
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return n
		}
	case numbers.MatchString(key):
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			return f
		}
	}
	return value
}

// Int returns an option as a number, def when it is not set.
func (s Section) Int(key string, def int) int {
	n, err := strconv.Atoi(s[key])
	if err != nil {
		return def
	}
	return n
}

// Bool returns an option as a truth value, def when it is not set.
func (s Section) Bool(key string, def bool) bool {
	v, ok := s[key]
	if !ok {
		return def
	}
	return v == "1"
}

// MaxCPUs is cores times sockets.
func (s Section) MaxCPUs() int { return s.Int("cores", 1) * s.Int("sockets", 1) }

// MemoryMiB is the configured memory; PVE's default is 512.
func (s Section) MemoryMiB() int {
	v, ok := s["memory"]
	if !ok {
		return 512
	}
	n, err := strconv.Atoi(Props(v, "current")["current"])
	if err != nil {
		return 512
	}
	return n
}

// AgentEnabled says whether the guest agent is switched on.
func (s Section) AgentEnabled() bool { return Props(s["agent"], "enabled")["enabled"] == "1" }

// UUID is the SMBIOS uuid, "" when there is none.
func (s Section) UUID() string { return Props(s["smbios1"], "")["uuid"] }

// Hotplug returns the features that may be plugged while the VM runs.
func (s Section) Hotplug() map[string]bool {
	v, ok := s["hotplug"]
	switch {
	case !ok || v == "1":
		v = "network,disk,usb"
	case v == "0":
		v = ""
	}
	out := map[string]bool{}
	for _, f := range SplitList(v) {
		out[f] = true
	}
	return out
}

// HasSerial says whether the VM has a serial port.
func (s Section) HasSerial() bool {
	for key := range s {
		if strings.HasPrefix(key, "serial") {
			return true
		}
	}
	return false
}

// BootDisk returns the first disk of the boot order, else the first disk.
func (s Section) BootDisk() (Drive, bool) {
	for _, key := range strings.Split(Props(s["boot"], "")["order"], ";") {
		if v, ok := s[key]; ok && IsDrive(key) {
			if d := ParseDrive(key, v); !d.CDROM() {
				return d, true
			}
		}
	}
	for _, d := range s.Drives() {
		if !d.CDROM() {
			return d, true
		}
	}
	return Drive{}, false
}
