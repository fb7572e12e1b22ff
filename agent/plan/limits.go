package plan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// maxCPUUnits is the largest weight of a cgroup (cpu.weight of version 2, to which PVE clamps cpuunits).
const maxCPUUnits = 10000

// maxCPULimit is the largest cpulimit of PVE, in CPUs.
const maxCPULimit = 128

// Weights of VMs whose class says how much latency matters; 100 is PVE's default.
const (
	unitsLow  = 50
	unitsHigh = 1000
)

// limits are the keys that bound what the VM takes from the host, given the memory that it gets in MiB.
func limits(class spec.Class, base *pmxcfs.Conf, memory int, site Site) (Values, error) {
	v := Values{}
	l := spec.ResourceLimits{}
	if class.ResourceLimits != nil {
		l = *class.ResourceLimits
	}
	if err := cpuLimits(v, l, site); err != nil {
		return nil, err
	}
	latency := ""
	if class.PerformanceProfile != nil {
		latency = class.PerformanceProfile.LatencySensitivity
	}
	if _, said := v["cpuunits"]; !said {
		switch latency {
		case "low":
			v["cpuunits"] = strconv.Itoa(unitsLow)
		case "high":
			v["cpuunits"] = strconv.Itoa(unitsHigh)
		}
	}
	return v, memoryLimits(v, l, base, memory, latency == "high", site)
}

func cpuLimits(v Values, l spec.ResourceLimits, site Site) error {
	if l.CPUReservation != nil && *l.CPUReservation > 0 {
		return site.class(fault.Invalid, "ResourceLimits.CPUReservation", "PVE has no reservation of CPU time; use CPUShares")
	}
	if l.CPUShares != nil {
		if *l.CPUShares > maxCPUUnits {
			return site.class(fault.Invalid, "ResourceLimits.CPUShares", "%d is more than PVE's largest weight (cpuunits), %d; its default is 100", *l.CPUShares, maxCPUUnits)
		}
		v["cpuunits"] = strconv.Itoa(*l.CPUShares)
	}
	if l.CPULimit == nil {
		return nil
	}
	if site.MHz <= 0 {
		return site.class(fault.Precondition, "ResourceLimits.CPULimit", "%d MHz cannot be told in CPUs: the clock of this node's CPUs is unknown; use ExtraConfig %scpulimit", *l.CPULimit, extraPrefix)
	}
	if *l.CPULimit > maxCPULimit*site.MHz {
		return site.class(fault.Invalid, "ResourceLimits.CPULimit", "%d MHz are more than %d CPUs of this node, PVE's largest limit; leave it away", *l.CPULimit, maxCPULimit)
	}
	v["cpulimit"] = fmt.Sprintf("%.2f", max(0.01, float64(*l.CPULimit)/float64(site.MHz)))
	v["cpulimit"] = strings.TrimSuffix(strings.TrimRight(v["cpulimit"], "0"), ".")
	return nil
}

// memoryLimits decides what the balloon may take: nothing below a reservation, nothing at all where latency matters.
func memoryLimits(v Values, l spec.ResourceLimits, base *pmxcfs.Conf, memory int, whole bool, site Site) error {
	if l.MemoryLimitMiB != nil && *l.MemoryLimitMiB > 0 && *l.MemoryLimitMiB < memory {
		return site.class(fault.Invalid, "ResourceLimits.MemoryLimitMiB", "%d MiB is less than the VM's memory, %d MiB: PVE cannot keep a VM from using its memory; make the memory smaller", *l.MemoryLimitMiB, memory)
	}
	if l.MemoryReservationMiB != nil && *l.MemoryReservationMiB > 0 {
		if *l.MemoryReservationMiB > memory {
			return site.class(fault.Invalid, "ResourceLimits.MemoryReservationMiB", "%d MiB is more than the VM's memory, %d MiB", *l.MemoryReservationMiB, memory)
		}
		v["balloon"] = strconv.Itoa(*l.MemoryReservationMiB)
		return nil
	}
	if whole {
		v["balloon"] = strconv.Itoa(memory)
		return nil
	}
	if old, ok := base.Get("balloon"); ok {
		if n, err := strconv.Atoi(old); err == nil && n > memory {
			v["balloon"] = strconv.Itoa(memory) // PVE refuses a balloon minimum above the memory
		}
	}
	return nil
}
