package pvesim

import "context"

// machineVersions are some of the versions that QEMU knows on a node of each major version of PVE. PVE's own revisions
// stand beside those of QEMU; the order is PVE's and of no use to anybody.
var machineVersions = map[int][]string{
	7: {"7.2", "7.1", "7.0", "6.2", "5.2", "4.1", "4.1+pve1", "4.1+pve2", "4.0"},
	8: {"9.2+pve1", "9.2", "9.1", "9.0", "8.2", "8.1", "8.0", "7.2", "4.1+pve2", "4.1"},
	9: {"9.2+pve1", "9.2", "9.1", "9.0", "8.1", "10.1", "10.0+pve1", "10.0", "4.1+pve2", "4.1"},
}

// listMachines is GET .../capabilities/qemu/machines.
func (c *Cluster) listMachines(context.Context, *request) (any, error) {
	out := []any{}
	for _, v := range machineVersions[min(max(c.cfg.major(), 7), 9)] {
		for _, kind := range []string{"q35", "i440fx"} {
			out = append(out, map[string]any{"id": "pc-" + kind + "-" + v, "type": kind, "version": v})
		}
	}
	return out, nil
}
