package spec

import (
	"fmt"
	"strings"
)

// Dialect is how a request spells its payloads: an error has to name what the manager wrote, not what became of it.
type Dialect int

// The dialects.
const (
	CreateDialect  Dialect = iota // a payload per subject, capitalised keys
	DesiredDialect                // all in desired_json, capitalised keys
	CloneDialect                  // keys of the custom resources
)

// NetworkError says what is wrong with a field of the network at an index. The field is named as in Network.
func (d Dialect) NetworkError(index int, field, problem string) *Error {
	return d.network(index).err(field, "%s", problem)
}

// MetaDataError says what is wrong with the meta-data, at a line of it (1 is the first; 0: as a whole).
func (d Dialect) MetaDataError(line int, problem string) *Error {
	if line > 0 {
		problem = fmt.Sprintf("line %d: %s", line, problem)
	}
	if d == DesiredDialect {
		return &Error{Payload: "desired_json", Field: "MetaData.MetaDataYAML", Problem: problem}
	}
	return &Error{Payload: "meta_data", Problem: problem}
}

// ClassError says what is wrong with a field of the class, named as in Class.
func (d Dialect) ClassError(field, problem string) *Error {
	switch d {
	case DesiredDialect:
		return place{payload: "desired_json", prefix: "Class."}.err(field, "%s", problem)
	case CloneDialect:
		return place{payload: "class_json", resource: true}.err(field, "%s", problem)
	default:
		return place{payload: "class_json"}.err(field, "%s", problem)
	}
}

// DiskError says what is wrong with a field of the data disk at an index. No Clone has such disks.
func (d Dialect) DiskError(index int, field, problem string) *Error {
	if d == DesiredDialect {
		return place{payload: "desired_json", prefix: "Disks"}.item(index).err(field, "%s", problem)
	}
	return place{payload: "disks_json"}.item(index).err(field, "%s", problem)
}

// PlacementError says what is wrong with a field of the placement. That of a Clone is a name only.
func (d Dialect) PlacementError(field, problem string) *Error {
	if d == DesiredDialect {
		field = "Placement." + field
		return place{payload: "desired_json"}.err(field, "%s", problem)
	}
	return place{payload: "placement_json", resource: d == CloneDialect}.err(field, "%s", problem)
}

// network is the place of a network.
func (d Dialect) network(index int) place {
	switch d {
	case DesiredDialect:
		return place{payload: "desired_json", prefix: fmt.Sprintf("Networks[%d].", index)}
	case CloneDialect:
		return place{payload: "customize_json", prefix: fmt.Sprintf("networks[%d].", index), resource: true}
	default:
		return place{payload: "networks_json", prefix: fmt.Sprintf("[%d].", index)}
	}
}

// place is where in a request a value stands.
type place struct {
	payload, prefix string
	resource        bool // keys are those of the custom resources
}

// err says what is wrong with a field, named as in the types of this package, or with the value as a whole ("").
func (p place) err(field, format string, args ...any) *Error {
	if p.resource {
		field = resourceKey(field)
	}
	return &Error{Payload: p.payload, Field: strings.TrimRight(p.prefix+field, "."), Problem: fmt.Sprintf(format, args...)}
}

// resourceKeys are the keys of the custom resources that do not follow from ours.
var resourceKeys = map[string]string{
	"MemoryMiB": "memory", "DiskDefaults.SizeGiB": "diskDefaults.size", "SecurityProfile.KeyProvider": "securityProfile.encryptionPolicy.keyProvider",
	"ResourceLimits.MemoryLimitMiB": "resourceLimits.memoryLimit", "ResourceLimits.MemoryReservationMiB": "resourceLimits.memoryReservation",
	"StaticIP": "ipAddress", "Prefix": "subnetMask",
}

func resourceKey(field string) string {
	if key, ok := resourceKeys[field]; ok {
		return key
	}
	words := strings.Split(field, ".")
	for i, w := range words {
		words[i] = lowerCamel(w)
	}
	return strings.Join(words, ".")
}

// lowerCamel writes a Go name as the resources do: CPU becomes cpu, IPAddress ipAddress.
func lowerCamel(word string) string {
	capitals := len(word) - len(strings.TrimLeft(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	if capitals > 1 && capitals < len(word) {
		capitals-- // the last one begins the next word
	}
	return strings.ToLower(word[:capitals]) + word[capitals:]
}

// item is the place of an element of the list that stands here.
func (p place) item(index int) place {
	p.prefix = fmt.Sprintf("%s[%d].", strings.TrimRight(p.prefix, "."), index)
	return p
}
