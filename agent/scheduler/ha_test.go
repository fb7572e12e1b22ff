package scheduler

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// TestWantOf: what a VM that is there needs elsewhere, and where HA would not have it.
func TestWantOf(t *testing.T) {
	type want struct {
		Never  map[string]string
		Prefer map[string]int
	}
	const apart, together = "resource-affinity: ties\n\taffinity negative\n\tresources vm:100,vm:101\n", "resource-affinity: ties\n\taffinity positive\n\tresources vm:100,vm:101\n"
	for name, tc := range map[string]struct {
		rules string
		on    string // the node of VM 101
		want  want
	}{
		"no rule": {want: want{map[string]string{}, map[string]int{}}},
		"some nodes are preferred": {
			rules: "node-affinity: fast\n\tnodes pve2:5,pve3\n\tresources vm:100\n", want: want{map[string]string{}, map[string]int{"pve2": 6, "pve3": 1}},
		},
		"some nodes alone": {
			rules: "node-affinity: fast\n\tnodes pve2:5,pve3\n\tresources vm:100\n\tstrict 1\n",
			want:  want{map[string]string{"pve1": `is not among the nodes of HA rule "fast"`}, map[string]int{"pve2": 6, "pve3": 1}},
		},
		"apart from another": {
			rules: apart, on: "pve3", want: want{map[string]string{"pve3": `has VM 101, and HA rule "ties" keeps them apart`}, map[string]int{}},
		},
		"apart from one that is not there": {rules: apart, want: want{map[string]string{}, map[string]int{}}},
		"together with one elsewhere": {rules: together, on: "pve3", want: want{map[string]string{
			"pve1": `does not have VM 101, and HA rule "ties" keeps them together`, "pve2": `does not have VM 101, and HA rule "ties" keeps them together`,
		}, map[string]int{}}},
		"together with one on its node":       {rules: together, on: "pve1", want: want{map[string]string{}, map[string]int{}}},
		"together with one that is not there": {rules: together, want: want{map[string]string{}, map[string]int{}}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHere(t)
			h.write("ha/rules.cfg", tc.rules)
			h.write("ha/manager_status", `{"node_status":{"pve1":"online","pve2":"online","pve3":"online"}}`)
			h.write("user.cfg", "pool:prod::100:local:\n")
			h.put(100, "pve1", "name: db\nmemory: 2048\ncores: 2\ntags: a;b\nscsi0: local:100/vm-100-disk-0.qcow2,size=4G\nscsi1: shared:100/vm-100-disk-1.qcow2,size=8G\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n")
			if tc.on != "" {
				h.put(101, tc.on, "name: web\n")
			}
			world, err := h.cfg.Watcher.World()
			h.must(err)
			w, err := h.WantOf(t.Context(), world.VMs[100])
			h.must(err)
			if diff := cmp.Diff(tc.want, want{w.Never, w.Prefer}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			w.Never, w.Prefer = nil, nil
			rest := placement.Want{
				Name: "db", Memory: 2 * gib, CPUs: 2, Pool: "prod", Tags: []string{"a", "b"}, Bridges: []string{"vmbr0"}, Current: "pve1",
				Disks: []placement.Disk{{Storage: "local", Content: "images", Bytes: 4 * gib}, {Storage: "shared", Content: "images"}},
			}
			if diff := cmp.Diff(rest, w); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAPlanFollowsHA: what rules say of a VM is said of nodes.
func TestAPlanFollowsHA(t *testing.T) {
	h := newHere(t)
	h.fill(60*gib, 10*gib, 50*gib)
	h.write("ha/rules.cfg", "node-affinity: fast\n\tnodes pve2:5,pve3\n\tresources vm:100\n\tstrict 1\n")
	h.write("ha/manager_status", `{"node_status":{"pve1":"online","pve2":"online","pve3":"online"}}`)
	h.put(100, "pve3", "name: db\nmemory: 2048\n")
	world, err := h.cfg.Watcher.World()
	h.must(err)
	w, err := h.WantOf(t.Context(), world.VMs[100])
	h.must(err)
	plan, err := h.Plan(t.Context(), []placement.Want{w})
	h.must(err)
	if plan[0].Node != "pve2" {
		t.Errorf("%s", plan[0])
	}
}
