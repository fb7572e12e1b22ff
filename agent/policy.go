package agent

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
)

// newPolicy is what the configuration says about names in requests.
func newPolicy(cfg config.Config) (plan.Policy, error) {
	p := plan.Policy{Bridges: cfg.Bridges, StorageClasses: map[string]plan.StorageClass{}, Groups: cfg.Placement.Groups}
	for name, settings := range cfg.StorageClasses {
		class := plan.StorageClass{Storage: settings["storage"], Options: plan.Values{}}
		maps.Copy(class.Options, settings)
		delete(class.Options, "storage")
		p.StorageClasses[name] = class
	}
	if err := p.Check(); err != nil {
		return p, fmt.Errorf("storage-classes: %w", err)
	}
	return p, nil
}

// hostMHz is the clock that this node's CPUs keep up under load, in MHz, 0 when unknown: the base frequency, or the
// largest one where the driver tells no other, or what /proc/cpuinfo shows where nothing scales it.
func hostMHz() int {
	const cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq/"
	for _, name := range []string{"base_frequency", "cpuinfo_max_freq"} {
		raw, err := os.ReadFile(cpufreq + name)
		if err != nil {
			continue
		}
		if kHz, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			return kHz / 1000
		}
	}
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	return cpuinfoMHz(string(raw))
}

// cpuinfoMHz finds the first clock in /proc/cpuinfo.
func cpuinfoMHz(text string) int {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) != "cpu MHz" {
			continue
		}
		if mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
			return int(mhz)
		}
	}
	return 0
}
