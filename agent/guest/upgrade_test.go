package guest

import (
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

func TestRaiseMachine(t *testing.T) {
	var have []pve.Machine
	for _, v := range []string{"9.2+pve1", "9.2", "9.0", "8.1", "10.0", "10.0+pve1", "10.1", "4.1+pve2"} {
		have = append(have, pve.Machine{ID: "pc-q35-" + v}, pve.Machine{ID: "pc-i440fx-" + v})
	}
	have = append(have, pve.Machine{ID: "pc-q35-11.0"}, pve.Machine{ID: "none"})
	for _, tc := range []struct {
		now    string
		target int
		next   string // or what the error says
	}{
		{"pc-q35-8.1", 0, "pc-q35-11.0"},
		{"pc-i440fx-8.1", 0, "pc-i440fx-10.1"},
		{"pc-i440fx-10.1", 0, "pc-i440fx-10.1"},
		{"pc-i440fx-12.0", 0, "pc-i440fx-12.0"}, // of a newer node
		{"pc-q35-8.1,viommu=intel", 0, "pc-q35-11.0,viommu=intel"},
		{"viommu=virtio,type=pc-q35-8.1", 9, "viommu=virtio,type=pc-q35-9.2+pve1"},
		{"", 0, ""},
		{"q35", 0, "q35"},
		{"pc", 0, "pc"},
		{"viommu=virtio", 0, "viommu=virtio"},
		{"", 10, "pc-i440fx-10.1"},
		{"q35,viommu=intel", 1000, "pc-q35-10.0+pve1,viommu=intel"},
		{"viommu=virtio", 1000, "pc-i440fx-10.0+pve1,viommu=virtio"},
		{"pc-q35-9.2", 9, "pc-q35-9.2+pve1"},
		{"pc-q35-9.2+pve1", 9, "pc-q35-9.2+pve1"},
		{"pc-q35-9.2+pve1", 902, "pc-q35-9.2+pve1"},
		{"pc-i440fx-4.1", 401, "pc-i440fx-4.1+pve2"},

		{"pc-q35-9.2", 8, "pc-q35-8.1 is older than pc-q35-9.2"},
		{"pc-q35-9.2", 12, "no such pc-q35; its newest is pc-q35-11.0"},
		{"pc-i440fx-9.2", 11, "no such pc-i440fx; its newest is pc-i440fx-10.1"},
		{"virt", 9, "no such virt; its newest is none at all"},
		{"pc-i440fx-1.4.pxe", 0, "pc-i440fx-1.4.pxe has a version that is not known"},
		{"isapc", 0, "isapc has a version"},
	} {
		next, err := raiseMachine(tc.now, tc.target, have)
		if err != nil {
			next = err.Error()
		}
		if next != tc.next && (err == nil || !strings.Contains(next, tc.next)) {
			t.Errorf("%q to %d: %q, want %q", tc.now, tc.target, next, tc.next)
		}
		if err != nil || tc.target == 0 {
			continue
		}
		if again, err := raiseMachine(next, tc.target, have); again != next || err != nil {
			t.Errorf("%q to %d once more: %q, err %v", next, tc.target, again, err)
		}
	}
}
