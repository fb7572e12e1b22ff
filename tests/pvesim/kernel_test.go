package pvesim_test

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/capacity"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestKernelAndAPIAgree: what an agent reads of its node is what PVE says of it, on nodes that differ.
func TestKernelAndAPIAgree(t *testing.T) {
	const gib = 1 << 30
	c := startCluster(t, func(cfg *pvesim.Config) {
		cfg.NodeCPUs = map[string]int{"pve2": 4}
		cfg.NodeMemory = map[string]int64{"pve2": 8 * gib}
		cfg.NodeARC = map[string]int64{"pve2": 2 * gib}
		cfg.NodeBridges = map[string][]string{"pve2": {"vmbr0", "dmz"}}
	})
	cl := newClient(t, c, "pve1")
	agree := func() map[string]hostFacts {
		t.Helper()
		out := map[string]hostFacts{}
		for _, n := range c.Nodes() {
			out[n.Name] = readHost(n)
			want := askHost(t, cl, n.Name)
			if n.Name == "pve2" {
				want.Reserved = 2 * gib // which the API does not tell
			}
			if diff := cmp.Diff(want, out[n.Name]); diff != "" {
				t.Errorf("%s (-API +kernel):\n%s", n.Name, diff)
			}
		}
		return out
	}
	before := agree()["pve2"]
	if before.CPUs != 4 || before.Total != 8*gib || !slices.Equal(before.Bridges, []string{"dmz", "vmbr0"}) {
		t.Errorf("pve2 has %+v", before)
	}
	if exit, _ := cl.task("POST /nodes/pve2/qemu/101/status/start", ""); exit != "OK" {
		t.Fatal(exit)
	}
	if after := agree()["pve2"]; after.Free >= before.Free {
		t.Errorf("%d bytes free, %d after a VM has started", before.Free, after.Free)
	}
}

// hostFacts are what placement wants to know of a host.
type hostFacts struct {
	CPUs                  uint32
	Total, Free, Reserved uint64
	Bridges               []string // sorted
}

// readHost reads them as an agent does.
func readHost(n *pvesim.Node) hostFacts {
	s := capacity.New(capacity.Config{
		Node: n.Name, ProcDir: n.Proc, SysDir: n.Sys, Running: func(int) bool { return false },
		World: func() (*pmxcfs.World, error) { return nil, os.ErrNotExist },
	})
	d := s.Digest()
	return hostFacts{d.VCPUs, d.MemoryTotal, d.MemoryFree, d.MemoryReserved, s.Facts().Bridges}
}

// askHost asks the API for them.
func askHost(t *testing.T, cl *client, node string) hostFacts {
	t.Helper()
	var status struct {
		CPUInfo struct{ CPUs uint32 }
		Memory  struct{ Total, Available uint64 }
	}
	var networks []struct{ Iface string }
	if err := errors.Join(
		json.Unmarshal(cl.must("GET /nodes/"+node+"/status", "").Data, &status),
		json.Unmarshal(cl.must("GET /nodes/"+node+"/network", "").Data, &networks),
	); err != nil {
		t.Fatal(err)
	}
	h := hostFacts{CPUs: status.CPUInfo.CPUs, Total: status.Memory.Total, Free: status.Memory.Available}
	for _, n := range networks {
		h.Bridges = append(h.Bridges, n.Iface)
	}
	slices.Sort(h.Bridges)
	return h
}
