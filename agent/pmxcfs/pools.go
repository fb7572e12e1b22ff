package pmxcfs

import (
	"slices"
	"strings"
)

// Pools reads the names of PVE's resource pools from user.cfg, sorted.
func (t *Tree) Pools() ([]string, error) {
	raw, err := t.read("user.cfg")
	if err != nil && !missing(err) {
		return nil, err
	}
	return ParsePools(raw), nil
}

// ParsePools reads the names of pools from a user.cfg: lines "pool:<name>:<comment>:<VMIDs>:<storages>:".
func ParsePools(raw []byte) []string {
	var names []string
	for line := range strings.Lines(string(raw)) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(rest, ":")
		if kind == "pool" && name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
