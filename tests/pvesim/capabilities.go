package pvesim

import (
	"context"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

func capabilityRoutes(c *Cluster, add adder) {
	const qemu = "/nodes/{node}/capabilities/qemu"
	add(get, qemu, nil, fixed([]any{map[string]any{"name": "cpu"}, map[string]any{"name": "machines"}}))
	add(get, qemu+"/machines", nil, c.listMachines)
	add(get, qemu+"/cpu", nil, c.cpuModels)
}

// newestMachine is what a machine without a version in its config gets.
func (c *Cluster) newestMachine(kind string) string {
	return "pc-" + kind + "-" + map[int]string{7: "7.2", 8: "9.2+pve1", 9: "10.1"}[c.cfg.major()]
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
