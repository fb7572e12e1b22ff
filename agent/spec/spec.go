// Package spec turns what the manager wrote (JSON inside the request's fields) into a typed wish.
//
// It is pure: no I/O, no clock. It is strict where that protects (types, ranges, unknown enum values are errors that
// name the payload and the field) and tolerant where the manager is: null, absent and empty are fine, and unknown keys
// are returned beside the wish, for a log.
//
// The manager writes two dialects. Create and Reconfigure carry VirtRigaud's contracts package, whose types have no
// JSON tags: keys are capitalised, sizes are whole MiB and GiB. Clone and ImagePrepare carry the custom resources as
// they are: keys in lower case, sizes as Kubernetes quantities. Both become the same types where they mean the same.
// The case of keys does not matter anywhere, as encoding/json has it.
package spec

import (
	"fmt"
	"strings"
)

// Error says which field of which payload is wrong, and why.
type Error struct {
	Payload string // the proto field, such as "class_json"
	Field   string // the key inside it, such as "DiskDefaults.SizeGiB"; empty for the payload as a whole
	Problem string // what is wrong and what is expected
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s: %s", e.Payload, e.Problem)
	}
	return fmt.Sprintf("%s: %s: %s", e.Payload, e.Field, e.Problem)
}

// Create is the wish behind a Create request.
type Create struct {
	Name      string // the VirtualMachine's metadata.name: a DNS-1123 subdomain
	Class     Class
	Image     Image
	Networks  []Network
	Disks     []Disk
	Placement Placement
	UserData  []byte // cloud-init user-data, byte for byte
	MetaData  []byte // cloud-init meta-data, YAML
	Tags      []string

	Unknown []string `json:"-"` // paths of keys that nothing here knows, such as "class_json.Future"
}

// Reconfigure is the wish behind a Reconfigure request: the VM as a whole, as its Create would ask for it now. Its
// disks, networks and data come along with every change of CPU or memory, and are not a change by themselves.
type Reconfigure struct {
	Name      string
	Class     Class
	Image     Image // all empty for a VM that was cloned
	Networks  []Network
	Disks     []Disk
	Placement Placement
	UserData  []byte
	MetaData  []byte
	Tags      []string

	Unknown []string `json:"-"`
}

// Class is contracts.VMClass: the size and the kind of the virtual hardware.
type Class struct {
	CPU                int
	MemoryMiB          int
	Firmware           string // "", BIOS, UEFI or EFI
	DiskDefaults       *DiskDefaults
	GuestToolsPolicy   string
	ExtraConfig        map[string]string
	PerformanceProfile *PerformanceProfile
	SecurityProfile    *SecurityProfile
	ResourceLimits     *ResourceLimits
}

// DiskDefaults describes the root disk.
type DiskDefaults struct {
	Type    string
	SizeGiB int // 0: keep the template's size

	// Of a Clone only; Create does not carry them.
	IOPS         *int   `json:",omitempty"`
	StorageClass string `json:",omitempty"`
}

// PerformanceProfile asks for head-room and CPU features.
type PerformanceProfile struct {
	LatencySensitivity          string
	CPUHotAddEnabled            bool
	MemoryHotAddEnabled         bool
	VirtualizationBasedSecurity bool
	NestedVirtualization        bool
	HyperThreadingPolicy        string
}

// SecurityProfile asks for secure boot, a TPM and encryption.
type SecurityProfile struct {
	SecureBoot        bool
	TPMEnabled        bool
	TPMVersion        string
	VTDEnabled        bool
	EncryptionEnabled bool
	KeyProvider       string
	RequireEncryption bool
}

// ResourceLimits bounds what the VM may use; nil means no limit. CPULimit and CPUReservation are MHz (the manager's
// own words for the limit are "MHz or percentage"), CPUShares is relative.
type ResourceLimits struct {
	CPULimit             *int
	CPUReservation       *int
	MemoryLimitMiB       *int
	MemoryReservationMiB *int
	CPUShares            *int
}

// Image is contracts.VMImage: where the root disk comes from.
type Image struct {
	TemplateName string // a template's VMID in decimal, or its name
	Path         string
	URL          string
	Format       string
	Checksum     string
	ChecksumType string
}

// PreparedPath begins the path of an image that ImagePrepare has prepared; its name follows.
const PreparedPath = "image:"

// Source returns the template or image that a VM is to be made from, by number or name: TemplateName, or that of a path
// that ImagePrepare has given. "": the image names none.
func (i Image) Source() string {
	if name, ok := strings.CutPrefix(i.Path, PreparedPath); ok && i.TemplateName == "" {
		return name
	}
	return i.TemplateName
}

// Empty reports whether the image names no source at all.
func (i Image) Empty() bool { return i.TemplateName == "" && i.Path == "" && i.URL == "" }

// Network is contracts.NetworkAttachment: one NIC.
type Network struct {
	Name, Portgroup, NetworkName, Bridge string
	VLAN                                 int
	Model, MacAddress                    string
	IPPolicy                             string // "", dhcp or static; of a Clone's networks only
	StaticIP                             string
	Prefix                               int
	Gateway                              string
	DNS                                  string // addresses, comma separated
	PCISlotNumber                        *int
}

// Disk is contracts.DiskSpec: one disk beyond the root disk.
type Disk struct {
	SizeGiB int
	Type    string
	Name    string
}

// Placement is contracts.Placement; the manager never fills Host.
type Placement struct {
	Datastore, StoragePod, Cluster, Folder, Host string
}
