package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// now is when the tests take place.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	gibi  = uint64(1) << 30
	tenth = gibi / 10
)

// nodes returns nodes of 256 GiB and 64 CPUs that carry nothing.
func nodes(n int) []Node {
	out := make([]Node, n)
	for i := range out {
		out[i] = Node{Name: fmt.Sprintf("pve%d", i+1), State: view.Node{
			Digest:   view.Digest{Quorate: true, MemoryTotal: 256 * gibi, VCPUs: 64},
			DigestAt: now.Add(-time.Second),
			Facts: view.Facts{
				Storages: []view.Storage{{Name: "local-lvm", Free: 4000 * gibi, Content: []string{"images"}}},
				Bridges:  []string{"vmbr0", "vmbr1"},
			},
			FactsAt: now.Add(-5 * time.Second),
		}}
	}
	return out
}

// busy is a cluster with many VMs, and a wish with a policy that asks about each
// of them.
func busy(n, vms int) (Cluster, Want, Settings) {
	c := Cluster{Nodes: nodes(n)}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range vms {
		at := random.IntN(n)
		d := &c.Nodes[at].State.Digest
		d.MemoryPromised, d.VCPUsPromised = d.MemoryPromised+gibi, d.VCPUsPromised+2
		c.VMs = append(c.VMs, VM{
			Node: at, ID: 100 + i, Name: fmt.Sprintf("vm-%d", i), Running: true, Pool: []string{"", "prod", "test"}[i%3],
			Tags: []string{"linux", "team-" + string(rune('a'+i%26)), []string{"web", "db", "cache", "batch"}[i%4]},
		})
	}
	s := Settings{MemoryReserve: gibi, Zones: map[string][]string{}, Policies: []Policy{
		{
			Name: "db", Match: Match{Names: []string{"db-*"}, Tags: []string{"db"}}, Spread: "zone", MaxVMsPerNode: 10 * vms,
			Affinity:     []Term{{Key: "tag", Operator: "In", Values: []string{"cache"}}},
			AntiAffinity: []Term{{Key: "team", Operator: "In", Values: []string{"q"}}},
		},
	}}
	for i := range n {
		zone := fmt.Sprintf("room-%d", i%4)
		s.Zones[zone] = append(s.Zones[zone], c.Nodes[i].Name)
	}
	w := Want{
		Name: "db-1", Memory: 8 * gibi, CPUs: 4, Tags: []string{"db"}, Bridges: []string{"vmbr0"},
		Disks:  []Disk{{Storage: "local-lvm", Content: "images", Bytes: 20 * gibi}},
		Source: &Source{Name: `replica of "ubuntu-22"`, Nodes: map[string]Reach{}},
	}
	for i := range n {
		w.Source.Nodes[c.Nodes[i].Name] = Reach{}
	}
	return c, w, s
}

func TestNothingIsAllocatedPerVM(t *testing.T) {
	allocs := func(vms int) float64 {
		c, w, s := busy(100, vms)
		var p Placer
		return testing.AllocsPerRun(10, func() {
			if d := p.Place(c, w, s, now); d.Node == "" {
				t.Fatal(d.Refusal())
			}
		})
	}
	few, many := allocs(1000), allocs(10_000)
	if many > few+100 { // a larger count may be a word more in the note of each node
		t.Errorf("%v allocations with 1000 VMs, %v with 10000", few, many)
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{3, 32, 100} {
		b.Run(fmt.Sprintf("%d nodes with %d VMs", n, 100*n), func(b *testing.B) {
			c, w, s := busy(n, 100*n)
			var p Placer
			b.ReportAllocs()
			for b.Loop() {
				if d := p.Place(c, w, s, now); d.Node == "" {
					b.Fatal(d.Refusal())
				}
			}
		})
	}
}

// anything is a cluster, a want and settings in which everything happens.
func anything(random *rand.Rand) (Cluster, Want, Settings) {
	one := func(of ...string) string { return of[random.IntN(len(of))] }
	some := func(of ...string) []string {
		var out []string
		for _, s := range of {
			if random.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	names := []string{"pve1", "pve2", "pve3", "pve4", "pve5", "g1", "none"}
	tags := []string{"a", "b", "c-d", "e"}
	c := Cluster{Nodes: nodes(random.IntN(6))}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		d := &n.State.Digest
		if rare := random.IntN(12); rare < 3 {
			n.Silent, n.Cordoned, n.Refused = []string{"offline", "", ""}[rare], []string{"", "cordoned", ""}[rare], []string{"", "", "full 100%d"}[rare]
		}
		d.MemoryPromised = uint64(random.IntN(260)) * gibi
		d.Quorate, d.Draining = random.IntN(20) > 0, random.IntN(20) == 0
		n.State.DigestAt = now.Add(-time.Duration(random.IntN(50)) * time.Second)
		n.State.Facts.Storages[0].Free = uint64(random.IntN(100)) * gibi
		if random.IntN(9) == 0 {
			n.State.FactsAt = time.Time{}
		}
		if random.IntN(20) == 0 {
			*d = view.Digest{MemoryTotal: math.MaxUint64, MemoryPromised: math.MaxUint64, MemoryReserved: math.MaxUint64, Quorate: true}
		}
		n.Reserved = Amount{Memory: uint64(random.IntN(10)) * gibi, VMs: random.IntN(3), Storage: map[string]uint64{"local-lvm": uint64(random.IntN(20)) * gibi}}
	}
	for i := range random.IntN(20) {
		c.VMs = append(c.VMs, VM{Node: random.IntN(7) - 1, ID: i, Name: fmt.Sprintf("vm-%d", i), Tags: some(tags...), Pool: one("", "p")})
	}
	if len(c.Nodes) > 0 && random.IntN(9) == 0 {
		c.Nodes[0].State.Digest, c.Nodes[0].State.DigestAt = view.Digest{}, time.Time{}
	}
	w := Want{
		Name: one("vm-1", "db-1", ""), Memory: uint64(random.IntN(64)) * gibi, CPUs: random.IntN(70), Tags: some(tags...), Pool: one("", "p"),
		Disks:   []Disk{{Storage: one("local-lvm", "local-lvm", "local-lvm", "other", ""), Content: one("images", "images", "iso", ""), Bytes: uint64(random.IntN(40)) * gibi}},
		Bridges: []string{one("", "vmbr0", "vmbr1", "vmbr1", "vmbr1", "vmbr9")}, Policy: one("", "", "", "", "", "", "", "", "p1"), Current: one("", "", "pve2"),
		Prefer: map[string]int{one(names...): random.IntN(5) - 1},
	}
	if random.IntN(6) == 0 {
		w.Only = some(names...)
	}
	if random.IntN(3) == 0 {
		w.Never = map[string]string{one(names...): "HA"}
	}
	if random.IntN(2) == 0 {
		w.Source = &Source{Name: "template", Nodes: map[string]Reach{}}
		for _, n := range append(some(names...), some(names...)...) {
			w.Source.Nodes[n] = Reach{How: How(random.IntN(3)), Disks: []Disk{{Storage: "local-lvm", Content: "images", Bytes: gibi}}}
		}
	}
	s := Settings{
		Scorer: one("", "crs", "spread", "pack"), MemoryOvercommit: random.Float64() * 3, MemoryReserve: uint64(random.IntN(3)) * gibi,
		Nodes: some(names...), NodesRequired: random.IntN(9) == 0, Groups: map[string][]string{"g1": some(names...)},
		Zones: map[string][]string{"z1": some(names...), "z2": some(names...)},
	}
	for _, name := range some("p1", "p2", "default") {
		p := Policy{
			Name: name, Match: Match{Tags: some(tags...), Names: some("vm-*", "db-?", "[")}, NodeSelector: some(names...), Required: random.IntN(9) == 0,
			MaxVMsPerNode: random.IntN(20), MinFreeMemory: uint64(random.IntN(20)) * gibi, Spread: one("", "node", "zone"),
		}
		for range random.IntN(3) {
			term := Term{
				Key: one("tag", "pool", "name", "c", ""), Operator: one("In", "NotIn", "Exists", "DoesNotExist", "is"), Values: some("a", "d", "p", "vm-1"),
				Hard: random.IntN(2) == 0, Zone: random.IntN(2) == 0,
			}
			if random.IntN(2) == 0 {
				p.Affinity = append(p.Affinity, term)
			} else {
				p.AntiAffinity = append(p.AntiAffinity, term)
			}
		}
		s.Policies = append(s.Policies, p)
	}
	return c, w, s
}

// What holds for every decision.
func TestEveryDecision(t *testing.T) {
	var p Placer // used again and again
	chosen := 0
	for seed := range uint64(5000) {
		c, w, s := anything(rand.New(rand.NewPCG(seed, 0)))
		d := p.Place(c, w, s, now)
		if t.Failed() {
			return
		}
		again, w2, s2 := anything(rand.New(rand.NewPCG(seed, 0)))
		slices.Reverse(again.Nodes)
		for i := range again.VMs {
			if at := again.VMs[i].Node; at >= 0 && at < len(again.Nodes) {
				again.VMs[i].Node = len(again.Nodes) - 1 - at
			}
		}
		if diff := cmp.Diff(withoutRounding(d), withoutRounding(Place(again, w2, s2, now))); diff != "" {
			t.Errorf("seed %d: it depends on the order of the nodes, or on what was decided before:\n%s", seed, diff)
		}
		checkDecision(t, seed, c, w, s, d)
		if d.Node != "" {
			chosen++
		}
	}
	if chosen < 800 {
		t.Errorf("only %d of the decisions chose a node: they say little", chosen)
	}
}

// withoutRounding leaves the last digits of scores away: sums are made in the
// order of the nodes.
func withoutRounding(d Decision) Decision {
	d.Rows = slices.Clone(d.Rows)
	for i := range d.Rows {
		d.Rows[i].Score = math.Round(d.Rows[i].Score*1e6) / 1e6
	}
	return d
}

func checkDecision(t *testing.T, seed uint64, c Cluster, w Want, s Settings, d Decision) {
	t.Helper()
	var rows, all []string
	for _, n := range c.Nodes {
		all = append(all, n.Name)
	}
	fits := false
	for _, r := range d.Rows {
		rows = append(rows, r.Node)
		fits = fits || len(r.Reasons) == 0
		if r.Node == d.Node && len(r.Reasons) > 0 {
			t.Errorf("seed %d: %s is chosen in spite of %v", seed, r.Node, r.Reasons)
		}
		if math.IsNaN(r.Score) || math.IsInf(r.Score, 0) {
			t.Errorf("seed %d: the score of %s is %v", seed, r.Node, r.Score)
		}
		if text, ok := r.has(filterHeard); ok && text != "has no quorum" && r.Score != 0 {
			t.Errorf("seed %d: %s is not heard of, and its score is %v", seed, r.Node, r.Score)
		}
		if r.MemoryTotal == 0 && r.MemoryFree != 0 {
			t.Errorf("seed %d: %s has %d bytes free of none", seed, r.Node, r.MemoryFree)
		}
		for _, reason := range r.Reasons {
			if reason.Filter == "" || reason.Text == "" || strings.Contains(reason.Text, "%!") {
				t.Errorf("seed %d: reason %+v", seed, reason)
			}
		}
		checkFits(t, seed, c, w, s, r)
	}
	if slices.Sort(all); !slices.Equal(all, rows) {
		t.Errorf("seed %d: rows %v of nodes %v", seed, rows, all)
	}
	if fits != (d.Node != "") {
		t.Errorf("seed %d: %q is chosen; is there one that fits: %v", seed, d.Node, fits)
	}
	if (d.Refusal() == "") != fits || fits && d.Exhausted() {
		t.Errorf("seed %d: refusal %q, exhausted %v, one fits: %v", seed, d.Refusal(), d.Exhausted(), fits)
	}
	if w.Current != "" && d.Node == w.Current {
		t.Errorf("seed %d: it stays on %s", seed, w.Current)
	}
}

// checkFits compares with the owner's look: what it has against the VM, the
// cluster had too, and more only because of other VMs and shared storages.
func checkFits(t *testing.T, seed uint64, c Cluster, w Want, s Settings, r Row) {
	t.Helper()
	i := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Name == r.Node })
	n := c.Nodes[i]
	n.State.Facts.VMs = 0
	for _, vm := range c.VMs {
		if vm.Node == i && (w.Current != n.Name || vm.Name != w.Name) {
			n.State.Facts.VMs++
		}
	}
	strip := func(reasons []Reason) []string {
		var out []string
		for _, reason := range reasons {
			if reason.Filter != filterAffinity && reason.Filter != filterOnly {
				out = append(out, reason.Text)
			}
		}
		return out
	}
	if diff := cmp.Diff(strip(r.Reasons), strip(Fits(n, w, s, now))); diff != "" {
		t.Errorf("seed %d: the second look at %s differs:\n%s", seed, r.Node, diff)
	}
}

// What others say in their words is not taken for a format.
func TestWordsOfOthers(t *testing.T) {
	n := nodes(1)[0]
	n.Cordoned, n.Refused = "100%d", "storage (50%s used)"
	got := Fits(n, Want{}, Settings{}, now)
	want := []Reason{{Filter: filterCordoned, Text: "100%d"}, {Filter: filterRefused, Text: "refused a moment ago: storage (50%s used)"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A node that refused for want of room lacks it; what it has told since says so better.
func TestFull(t *testing.T) {
	n := nodes(1)[0]
	n.Refused, n.Full = "memory (needs 8.0 GiB, 7.9 free)", true
	n.State.Digest.MemoryTotal = 64 * gibi
	got := Fits(n, Want{Memory: 8 * gibi}, Settings{}, now)
	want := []Reason{{Filter: filterRefused, Text: "refused a moment ago: memory (needs 8.0 GiB, 7.9 free)", Capacity: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n.State.Digest.MemoryPromised = 63 * gibi
	got = Fits(n, Want{Memory: 8 * gibi}, Settings{}, now)
	want = []Reason{{Filter: filterMemory, Text: "memory (needs 8.0 GiB, 1.0 free)", Capacity: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A refusal of a large cluster fits into the trailer of an answer.
func TestRefusalOfManyNodes(t *testing.T) {
	c := Cluster{Nodes: nodes(100)}
	for i := range c.Nodes {
		c.Nodes[i].State.Digest.MemoryPromised = 256*gibi - uint64(i)*tenth
	}
	got := Place(c, Want{Memory: 64 * gibi}, Settings{}, now).Refusal()
	if len(got) > 2000 || !strings.HasSuffix(got, ", and 84 more") {
		t.Error(got)
	}
	one := Cluster{Nodes: nodes(1)}
	one.Nodes[0].Cordoned = "cordoned"
	if got := Place(one, Want{}, Settings{}, now).Refusal(); got != "no node fits: pve1 cordoned" {
		t.Error(got)
	}
	none := Place(Cluster{}, Want{}, Settings{}, now)
	if got := none.Refusal(); got != "no node fits: there is no node" || none.Exhausted() {
		t.Errorf("%s, exhausted: %v", got, none.Exhausted())
	}
}

// The second look at a node: what it has itself told counts, its VMs by number.
func TestFits(t *testing.T) {
	n := nodes(1)[0]
	n.State.Facts.VMs, n.Reserved.VMs = 3, 1
	s := Settings{Policies: []Policy{{Name: "default", MaxVMsPerNode: 4, AntiAffinity: []Term{{Key: "name", Operator: "Exists", Hard: true}}}}}
	w := Want{Memory: 300 * gibi, CPUs: 65, Only: []string{"pve9"}, OnlyWhy: `Host "pve9"`}
	want := []Reason{
		{Filter: "only", Text: `is ruled out by Host "pve9"`},
		{Filter: "cpus", Text: "CPUs (needs 65, has 64)"},
		{Filter: "memory", Text: "memory (needs 300.0 GiB, 256.0 free)", Capacity: true},
		{Filter: "vms", Text: `VMs (has 4, policy "default" allows 4)`, Capacity: true},
	}
	if diff := cmp.Diff(want, Fits(n, w, s, now)); diff != "" {
		t.Error(diff)
	}
	if got := Fits(n, Want{Only: []string{}}, Settings{}, now); len(got) != 1 || got[0].Text != "is ruled out by the request" {
		t.Errorf("%v, though no node is allowed", got)
	}
	n.CPUs, n.Reserved.VMs = 80, 0
	if got := Fits(n, Want{CPUs: 65}, s, now); got != nil {
		t.Errorf("%v against a node with what is needed", got)
	}
}

func TestHow(t *testing.T) {
	for how, want := range map[How]string{Here: "here", Shared: "shared", OnDemand: "on demand", 9: "unknown"} {
		if got := how.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Ties are broken evenly: names that differ by a digit go to different nodes.
func TestTiesAreEven(t *testing.T) {
	c := Cluster{Nodes: nodes(4)}
	got := map[string]int{}
	for i := range 1000 {
		got[Place(c, Want{Name: fmt.Sprintf("web-%d", i), Memory: gibi}, Settings{}, now).Node]++
	}
	for node, n := range got {
		if n < 200 || n > 300 {
			t.Errorf("%s has %d of 1000", node, n)
		}
	}
}
