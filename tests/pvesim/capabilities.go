package pvesim

import (
	"context"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

// machineVersions are the machine versions that each PVE's QEMU has, newest
// first, and from 9 on the revisions that PVE adds to a version.
var machineVersions = map[int][]string{
	7: strings.Fields("7.2 7.1 7.0 6.2 6.1 6.0 5.2 5.1 5.0"),
	8: strings.Fields("9.2 9.1 9.0 8.2 8.1 8.0 7.2 7.1 7.0 6.2"),
	9: strings.Fields("10.1 10.0+pve1 10.0 9.2+pve1 9.2 9.1 9.0 8.2 8.1 8.0 7.2"),
}

func capabilityRoutes(c *Cluster, add adder) {
	const qemu = "/nodes/{node}/capabilities/qemu"
	add(get, qemu, nil, fixed([]any{map[string]any{"name": "cpu"}, map[string]any{"name": "machines"}}))
	add(get, qemu+"/machines", nil, c.machineTypes)
	add(get, qemu+"/cpu", nil, c.cpuModels)
}

// machineTypes is GET .../capabilities/qemu/machines.
func (c *Cluster) machineTypes(context.Context, *request) (any, error) {
	out := []any{}
	for _, v := range machineVersions[c.cfg.major()] {
		for _, kind := range []string{"q35", "i440fx"} {
			out = append(out, map[string]any{"id": "pc-" + kind + "-" + v, "type": kind, "version": v})
		}
	}
	return out, nil
}

// newestMachine is what a machine without a version in its config gets.
func (c *Cluster) newestMachine(kind string) string {
	return "pc-" + kind + "-" + machineVersions[c.cfg.major()][0]
}

// cpuModels is GET .../capabilities/qemu/cpu.
func (c *Cluster) cpuModels(context.Context, *request) (any, error) {
	out := []any{}
	for _, name := range slices.Sorted(slices.Values(schema.CPUTypes(c.cfg.major()))) {
		vendor := "default"
		switch {
		case strings.HasPrefix(name, "EPYC"), strings.HasPrefix(name, "Opteron"), name == "phenom", name == "athlon":
			vendor = "AuthenticAMD"
		case !slices.Contains([]string{"host", "max", "kvm32", "kvm64", "qemu32", "qemu64"}, name) && !strings.HasPrefix(name, "x86-64-"):
			vendor = "GenuineIntel"
		}
		out = append(out, map[string]any{"name": name, "custom": 0, "vendor": vendor})
	}
	return out, nil
}
