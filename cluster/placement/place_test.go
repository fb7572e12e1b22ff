package placement

import (
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

const testGiB = 1 << 30

// The example of what a refusal looks like.
func TestRefusalInWords(t *testing.T) {
	now := time.Unix(1e9, 0)
	node := func(name string, free uint64) Node {
		return Node{Name: name, State: view.Node{DigestAt: now, Digest: view.Digest{
			Quorate: true, MemoryTotal: 64 * testGiB, MemoryPromised: 64*testGiB - free, VCPUs: 16,
		}}}
	}
	nodes := []Node{node("pve1", 3200<<20), node("pve2", 40*testGiB), node("pve3", 40*testGiB)}
	nodes[1].Cordoned = "cordoned"
	w := Want{Name: "web-1", Memory: 8 * testGiB, CPUs: 4, Source: &Source{
		Name: `replica of "ubuntu-22"`, Nodes: map[string]Reach{"pve1": {}, "pve2": {}},
	}}
	d := Place(Cluster{Nodes: nodes}, w, Settings{}, now)
	want := `no node fits: pve1 memory (needs 8.0 GiB, 3.1 free), pve2 cordoned, pve3 has no replica of "ubuntu-22"`
	if got := d.Refusal(); d.Node != "" || got != want {
		t.Errorf("%s\n%s\nwant %s", d.Node, got, want)
	}
	nodes[1].Cordoned = ""
	if d := Place(Cluster{Nodes: nodes}, w, Settings{}, now); d.Node != "pve2" {
		t.Errorf("%s is chosen:\n%s", d.Node, d)
	}
}
