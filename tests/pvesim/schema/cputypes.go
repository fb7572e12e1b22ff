package schema

import (
	"slices"
	"strings"
)

// cpuTypes are the models of PVE's own list (PVE::QemuServer::CPUConfig).
var cpuTypes = strings.Fields(`486 pentium pentium2 pentium3 coreduo core2duo Conroe Penryn Nehalem Nehalem-IBRS Westmere
 Westmere-IBRS SandyBridge SandyBridge-IBRS IvyBridge IvyBridge-IBRS Haswell Haswell-IBRS Haswell-noTSX
 Haswell-noTSX-IBRS Broadwell Broadwell-IBRS Broadwell-noTSX Broadwell-noTSX-IBRS Skylake-Client Skylake-Client-IBRS
 Skylake-Client-noTSX-IBRS Skylake-Client-v4 Skylake-Server Skylake-Server-IBRS Skylake-Server-noTSX-IBRS
 Skylake-Server-v4 Skylake-Server-v5 Cascadelake-Server Cascadelake-Server-v2 Cascadelake-Server-noTSX
 Cascadelake-Server-v4 Cascadelake-Server-v5 Cooperlake Cooperlake-v2 KnightsMill Icelake-Client Icelake-Client-noTSX
 Icelake-Server Icelake-Server-noTSX Icelake-Server-v3 Icelake-Server-v4 Icelake-Server-v5 Icelake-Server-v6
 athlon phenom Opteron_G1 Opteron_G2 Opteron_G3 Opteron_G4 Opteron_G5 EPYC EPYC-IBPB EPYC-v3 EPYC-Rome EPYC-Rome-v2
 EPYC-Milan EPYC-Milan-v2 kvm32 kvm64 qemu32 qemu64 max host`)

// newCPUTypes came with PVE 8.
var newCPUTypes = strings.Fields(`x86-64-v2 x86-64-v2-AES x86-64-v3 x86-64-v4 EPYC-v4 EPYC-Rome-v3 EPYC-Rome-v4 EPYC-Genoa
 SapphireRapids SapphireRapids-v2 GraniteRapids`)

// CPUTypes lists the CPU models that a PVE version (its first number) knows.
func CPUTypes(major int) []string {
	if major < 8 {
		return slices.Clone(cpuTypes)
	}
	return append(slices.Clone(cpuTypes), newCPUTypes...)
}

// checkCPU refuses models that are not there. Custom ones nobody has defined.
func checkCPU(major int) func(map[string]string) string {
	known := CPUTypes(major)
	return func(values map[string]string) string {
		switch t := values["cputype"]; {
		case t == "":
			return "CPU is missing cputype"
		case strings.HasPrefix(t, "custom-"):
			return "Custom cputype '" + strings.TrimPrefix(t, "custom-") + "' not found"
		case !slices.Contains(known, t):
			return "Built-in cputype '" + t + "' is not defined (missing 'custom-' prefix?)"
		}
		return ""
	}
}
