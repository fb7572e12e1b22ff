package pmxcfs

import (
	"slices"
	"strconv"
	"strings"
)

// Pools are PVE's resource pools.
type Pools struct {
	Names []string       // sorted
	Of    map[int]string // by VMID, the pool of those that are in one
}

// Pools reads the names of PVE's resource pools from user.cfg, sorted.
func (t *Tree) Pools() ([]string, error) {
	raw, err := t.sideFile(userConfig)
	if err != nil {
		return nil, err
	}
	return ParsePools(raw).Names, nil
}

// ParsePools reads the pools from a user.cfg: lines "pool:<name>:<comment>:<VMIDs>:<storages>:". Like PVE it passes over
// what it cannot read, and of two pools of one VM the first counts.
func ParsePools(raw []byte) Pools {
	p := Pools{Of: make(map[int]string)}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Split(line, ":")
		for i, f := range fields {
			fields[i] = strings.Trim(f, whitespace)
		}
		if fields[0] != "pool" || len(fields) < 2 || fields[1] == "" {
			continue
		}
		p.Names = append(p.Names, fields[1])
		if len(fields) > 3 {
			p.add(fields[1], fields[3])
		}
	}
	slices.Sort(p.Names)
	p.Names = slices.Compact(p.Names)
	return p
}

func (p *Pools) add(pool, members string) {
	for _, text := range fields(members) {
		vmid, err := strconv.Atoi(text)
		if _, taken := p.Of[vmid]; err != nil || taken {
			continue
		}
		p.Of[vmid] = pool
	}
}

// PoolOf is the pool of a guest, "" if it is in none.
func (w *World) PoolOf(vmid int) string { return w.Pools.Of[vmid] }
