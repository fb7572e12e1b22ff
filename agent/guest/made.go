package guest

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// madeOf are the parts of a wish that are decided when a VM is made, each by a piece of its hash: user data may hold
// secrets. A VM's record keeps them, so that a later wish can be compared.
func madeOf(image spec.Image, networks []spec.Network, placement spec.Placement, userData, metaData []byte) map[string]string {
	made := map[string]string{}
	for part, value := range map[string]any{
		"image": image, "networks": slices.Concat([]spec.Network{}, networks), "placement": placement,
		"user data": string(userData), "meta data": string(metaData),
	} {
		raw, err := json.Marshal(value)
		if err == nil { // plain values always encode
			made[part] = fingerprint(raw)[:16]
		}
	}
	return made
}

// unlikeMade names the parts of a wish that a VM was made differently by; nothing of a VM of which that is not known.
func unlikeMade(rec record.Record, wish spec.Reconfigure) []string {
	if len(rec.Made) == 0 {
		return nil
	}
	var differ []string
	if wish.Name != "" && wish.Name != rec.Name {
		differ = append(differ, "name")
	}
	now := madeOf(wish.Image, wish.Networks, wish.Placement, wish.UserData, wish.MetaData)
	for _, part := range slices.Sorted(maps.Keys(now)) {
		if before, known := rec.Made[part]; known && before != now[part] {
			differ = append(differ, part)
		}
	}
	return differ
}
