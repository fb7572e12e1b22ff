package agent

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
)

func TestNewPolicy(t *testing.T) {
	got, err := newPolicy(config.Config{
		Bridges:        config.Names{"storage": "vmbr5"},
		StorageClasses: config.Classes{"nvme": {"storage": "fast", "ssd": "1"}, "hdd": {"discard": "ignore"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := plan.Policy{Bridges: map[string]string{"storage": "vmbr5"}, StorageClasses: map[string]plan.StorageClass{
		"nvme": {Storage: "fast", Options: plan.Values{"ssd": "1"}}, "hdd": {Options: plan.Values{"discard": "ignore"}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := newPolicy(config.Config{StorageClasses: config.Classes{"nvme": {"sdd": "1"}}}); err == nil || !strings.Contains(err.Error(), `storage-classes: nvme: "sdd"`) {
		t.Errorf("a wrong option: %v", err)
	}
}

func TestCPUInfoMHz(t *testing.T) {
	for text, want := range map[string]int{
		"processor\t: 0\ncpu MHz\t\t: 2399.998\n\nprocessor\t: 1\ncpu MHz\t\t: 800.0\n": 2399,
		"processor\t: 0\nBogoMIPS\t: 50.00\n":                                           0,
		"cpu MHz\t\t: fast\n":                                                           0,
	} {
		if got := cpuinfoMHz(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
