package placement

import (
	"strings"
	"testing"
)

// sequence places guests one after the other, each on the best node, and returns their nodes.
func sequence(nodes []load, g guest, n int) string {
	var b strings.Builder
	var matrix [][criteria]float64
	var scores []float64
	for range n {
		matrix, scores = crs(nodes, g, matrix, scores)
		best := 0
		for i, s := range scores {
			if s > scores[best] {
				best = i
			}
		}
		b.WriteByte("ABC"[best])
		nodes[best] = nodes[best].with(g)
	}
	return b.String()
}

// The sequences that the tests of Proxmox's scheduler expect.
func TestCRSAgreesWithPVE(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes  []load
		guest  guest
		guests int
		want   string
	}{
		"a node that is twice as large": {
			[]load{{cpus: 10, memory: 100e9}, {cpus: 20, memory: 200e9}},
			guest{cpus: 4, memory: 20e9},
			15, strings.Repeat("BBA", 5),
		},
		"more CPUs, and memory that does not matter": {
			[]load{{cpus: 8, memory: 10e9}, {cpus: 4, memory: 9e9}, {cpus: 4, memory: 8e9}},
			guest{cpus: 3, memory: 16e6},
			20, strings.Repeat("AABC", 5),
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sequence(tc.nodes, tc.guest, tc.guests); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// As in Proxmox's scheduler, a guest without a number of CPUs may use all.
func TestGuestOfAllCPUs(t *testing.T) {
	if got := (load{cpus: 16, cpusUsed: 4}).with(guest{}).cpusUsed; got != 20 {
		t.Errorf("%v CPUs are used, want 20", got)
	}
}
