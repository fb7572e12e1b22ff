package record

import (
	"fmt"
	"strconv"
	"strings"
)

// The VMIDs that PVE allows (pve-common, standard option pve-vmid).
const (
	MinVMID = 100
	MaxVMID = 999_999_999
)

// uuid8Len is how much of the SMBIOS uuid an id carries.
const uuid8Len = 8

// ID is the id of a VM as we hand it out, `<vmid>-<first 8 hex digits of its SMBIOS uuid>`: PVE uses numbers again, so a
// number alone does not say which VM is meant. A plain `<vmid>` is an ID without UUID8, and means whatever VM has that
// number.
type ID struct {
	VMID  int
	UUID8 string // 8 lower-case hex digits, or ""
}

// NewID is the id of the VM with that number and SMBIOS uuid; uuid may be empty.
func NewID(vmid int, uuid string) ID {
	uuid = strings.ToLower(uuid)
	if len(uuid) < uuid8Len || !hexDigits(uuid[:uuid8Len]) {
		return ID{VMID: vmid}
	}
	return ID{VMID: vmid, UUID8: uuid[:uuid8Len]}
}

// ParseID reads what String writes. It accepts nothing else: no spaces, signs, leading zeros or upper-case digits.
func ParseID(s string) (ID, error) {
	number, uuid8, hasUUID := strings.Cut(s, "-")
	vmid, err := strconv.Atoi(number)
	if err != nil || strconv.Itoa(vmid) != number || vmid < MinVMID || vmid > MaxVMID {
		return ID{}, fmt.Errorf("not a vm id: %.60q: want <vmid> or <vmid>-<8 hex digits>, vmid %d to %d", s, MinVMID, MaxVMID)
	}
	if hasUUID && (len(uuid8) != uuid8Len || !hexDigits(uuid8)) {
		return ID{}, fmt.Errorf("not a vm id: %.60q: want 8 lower-case hex digits after the dash", s)
	}
	return ID{VMID: vmid, UUID8: uuid8}, nil
}

// String is the id on the wire.
func (id ID) String() string {
	if id.UUID8 == "" {
		return strconv.Itoa(id.VMID)
	}
	return strconv.Itoa(id.VMID) + "-" + id.UUID8
}

// Fits reports whether id means the VM with that number and SMBIOS uuid. A plain number fits whatever VM has it.
func (id ID) Fits(vmid int, uuid string) bool {
	return id.VMID == vmid && (id.UUID8 == "" || id.UUID8 == NewID(vmid, uuid).UUID8)
}

func hexDigits(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
