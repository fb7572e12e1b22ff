package plan

import (
	"fmt"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// firmware decides about everything that a VM has for its whole life: firmware, machine type, EFI and TPM stores. BIOS is
// the manager's default for classes that say nothing, so that it leaves the source's firmware as it is; a template with
// UEFI would not boot otherwise.
func firmware(class spec.Class, source *pmxcfs.Conf, storage string, site Site) (Values, []Drive, error) {
	s := spec.SecurityProfile{}
	if class.SecurityProfile != nil {
		s = *class.SecurityProfile
	}
	if err := refuseEncryption(s, site); err != nil {
		return nil, nil, err
	}
	v := Values{}
	machine, _ := source.Get("machine")
	wanted, said := class.ExtraConfig[extraPrefix+"machine"] // stands above what follows from the firmware
	if said {
		machine = wanted
	}
	bios, _ := source.Get("bios")
	asked := class.Firmware == "UEFI" || class.Firmware == "EFI"
	if asked && bios != "ovmf" {
		bios, v["bios"] = "ovmf", "ovmf"
		if !said {
			machine = machineOf(machine, "q35")
		}
	}
	if err := needUEFI(class, s, bios == "ovmf", site); err != nil {
		return nil, nil, err
	}
	if s.VTDEnabled {
		if site.Major > 0 && site.Major < 8 {
			return nil, nil, site.class(fault.Precondition, "SecurityProfile.VTDEnabled", "PVE %d has no virtual IOMMU; it came with 8", site.Major)
		}
		with := withOption(machineOf(machine, "q35"), "viommu", "intel")
		if first, _, _ := strings.Cut(machine, ","); said && !strings.Contains(with, first) {
			return nil, nil, site.class(fault.Invalid, "ExtraConfig."+extraPrefix+"machine", "%q has no virtual IOMMU, which SecurityProfile.VTDEnabled asks for: take q35", wanted)
		}
		machine = with
	}
	if old, _ := source.Get("machine"); machine != old {
		v["machine"] = machine
	}
	drives, err := stores(s, bios == "ovmf", source, storage, site)
	return v, drives, err
}

func refuseEncryption(s spec.SecurityProfile, site Site) error {
	for _, f := range []struct {
		field string
		on    bool
	}{{"RequireEncryption", s.RequireEncryption}, {"EncryptionEnabled", s.EncryptionEnabled}} {
		if f.on {
			return site.class(fault.Precondition, "SecurityProfile."+f.field, "PVE does not encrypt the disks of a VM (key provider %q); "+
				"use a storage that is encrypted below PVE, and leave this away", s.KeyProvider)
		}
	}
	return nil
}

// needUEFI refuses what works with UEFI only.
func needUEFI(class spec.Class, s spec.SecurityProfile, uefi bool, site Site) error {
	vbs := class.PerformanceProfile != nil && class.PerformanceProfile.VirtualizationBasedSecurity
	switch {
	case uefi:
		return nil
	case s.SecureBoot:
		return site.class(fault.Invalid, "SecurityProfile.SecureBoot", "needs Firmware UEFI, and this class has %q", class.Firmware)
	case vbs:
		return site.class(fault.Invalid, "PerformanceProfile.VirtualizationBasedSecurity", "needs Firmware UEFI, and this class has %q", class.Firmware)
	}
	return nil
}

// stores are the EFI and TPM stores that are missing.
func stores(s spec.SecurityProfile, uefi bool, source *pmxcfs.Conf, storage string, site Site) ([]Drive, error) {
	var out []Drive
	efi, there := drive(source, "efidisk0")
	switch {
	case uefi && !there:
		keys := 0
		if s.SecureBoot {
			keys = 1
		}
		value := fmt.Sprintf("%s:1,efitype=4m,pre-enrolled-keys=%d", storage, keys)
		if format := site.format(storage); format != "" {
			value += ",format=" + format
		}
		out = append(out, Drive{Key: "efidisk0", Value: value})
	case uefi && s.SecureBoot:
		if v, _ := efi.Options.Get("pre-enrolled-keys"); v != "1" {
			return nil, site.class(fault.Precondition, "SecurityProfile.SecureBoot", "the template's efidisk0 has no enrolled keys: "+
				"make it anew with pre-enrolled-keys=1, or remove it from the template")
		}
	}
	tpm, there := drive(source, "tpmstate0")
	version := "v" + s.TPMVersion
	if s.TPMVersion == "" {
		version = "v2.0"
	}
	switch {
	case s.TPMEnabled && !there:
		out = append(out, Drive{Key: "tpmstate0", Value: fmt.Sprintf("%s:1,version=%s", storage, version)})
	case s.TPMEnabled && s.TPMVersion != "":
		if v, _ := tpm.Options.Get("version"); v != version {
			return nil, site.class(fault.Precondition, "SecurityProfile.TPMVersion", "the template's tpmstate0 is of version %q", v)
		}
	}
	return out, nil
}

func drive(conf *pmxcfs.Conf, key string) (pmxcfs.Drive, bool) {
	for _, d := range conf.Drives() {
		if d.Key == key {
			return d, true
		}
	}
	return pmxcfs.Drive{}, false
}

// machineOf returns a machine value with another type, unless it is of that type already (q35, pc-q35-9.0).
func machineOf(machine, kind string) string {
	first, options, _ := strings.Cut(machine, ",")
	switch {
	case strings.Contains(first, "="): // options only
		options = machine
	case strings.Contains(first, kind):
		return machine
	}
	if options == "" {
		return kind
	}
	return kind + "," + options
}

// withOption sets an option of a value of PVE's form "first,key=value".
func withOption(value, key, option string) string { return SetOptions(value, Values{key: option}) }
