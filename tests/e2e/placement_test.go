package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// everywhere gives each node a template of the name that pve1's has.
var everywhere = setting{scene: func(s *stage) {
	for i, n := range s.sim.Nodes()[1:] {
		s.must(s.sim.AddVM(9102+i, n.Name, map[string]string{"template": "1", "name": "linux-template"}))
	}
}}

// clusterFile is the configuration of all agents.
func clusterFile(text string) setting {
	return setting{scene: func(s *stage) {
		s.must(os.WriteFile(filepath.Join(s.sim.Tree(), "pve-rigaud.yaml"), []byte(text), 0o640))
	}}
}

// acquainted waits until all agents have heard of each other what placement wants to know.
func (c *company) acquainted() *company {
	c.Helper()
	for node := range c.at {
		root := c.root(node)
		c.eventually(node+" has heard of all nodes", func() bool {
			resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Cpus: 1, Memory: 1 << 20})
			if err != nil {
				return false
			}
			return !strings.Contains(table(resp.GetPlacement()), "not told")
		})
	}
	return c
}

// table is what a decision says of each node.
func table(p *nodepb.Placement) string {
	var lines []string
	for _, r := range p.GetRows() {
		line := r.GetNode()
		if !r.GetFits() {
			line += " no"
		}
		lines = append(lines, line+": "+strings.Join(r.GetReasons(), "; "))
	}
	return strings.Join(lines, "\n")
}

// cordon takes a node out of use, and returns when all agents know.
func (c *company) cordon(node string) { c.use(node, false) }

func (c *company) uncordon(node string) { c.use(node, true) }

func (c *company) use(node string, may bool) {
	c.Helper()
	_, err := c.root("pve1").Cordon(c.ctx, &nodepb.CordonRequest{Node: node, Uncordon: may})
	c.must(err)
	for name, s := range c.at {
		c.would(name, node, "cordoned", !may)
		// What the node tells of itself comes later than the file, and counts as well.
		c.eventually("gossip has told "+name, func() bool { return s.cordoned(node) == !may })
	}
}

// would waits until an agent says something of a node when it is asked where a VM would go, or no longer says it.
func (c *company) would(through, node, what string, says bool) {
	c.Helper()
	root := c.root(through)
	c.eventually(fmt.Sprintf("%s says of %s %q: %v", through, node, what, says), func() bool {
		resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Cpus: 1, Memory: 1 << 20})
		if err != nil {
			return false
		}
		for _, r := range resp.GetPlacement().GetRows() {
			if r.GetNode() == node {
				return says == slices.ContainsFunc(r.GetReasons(), func(text string) bool { return strings.Contains(text, what) })
			}
		}
		return false
	})
}

// home returns the node of a VM.
func (s *stage) home(id string) string {
	s.Helper()
	owner, _ := s.sim.Owner(vmid(s, id))
	return owner
}

// local makes VMs from the template that each node has.
var local = from("linux-template")

func tagged(tags ...string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) { r.Tags = tags }
}

func placedBy(json string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) { r.PlacementJson = json }
}

// TestPlacement: VMs of a template that each node has go where the request, or a policy, wants them, and are spread else.
func TestPlacement(t *testing.T) {
	t.Parallel()
	c := assemble(t, everywhere, clusterFile(`
placement:
  groups: {fast: [pve2, pve3]}
  policies:
    apart: {anti-affinity: [{key: tag, operator: In, values: [apart], hard: true}]}
    db: {match: {tags: [db]}, anti-affinity: [{key: tag, operator: In, values: [db], hard: true}]}
    single: {node-selector: [pve3], required: true}
`)).acquainted()
	on := func(r *providerpb.CreateRequest, through ...string) string {
		t.Helper()
		s := c.stage
		if len(through) > 0 {
			s = c.at[through[0]]
		}
		return s.home(s.create(r))
	}
	homes := map[string]int{}
	for i := range 6 {
		homes[on(request(fmt.Sprintf("web-%d", i), local), fmt.Sprintf("pve%d", i%3+1))]++
	}
	if len(homes) != 3 {
		t.Errorf("six equal VMs on three equal nodes: %v", homes)
	}
	for name, x := range map[string]struct {
		json string
		want []string
	}{
		"host":         {`{"Host":"pve3"}`, []string{"pve3"}},
		"cluster":      {`{"Cluster":"pve2"}`, []string{"pve2"}},
		"group":        {`{"Cluster":"fast"}`, []string{"pve2", "pve3"}},
		"both":         {`{"Cluster":"fast","Host":"pve2"}`, []string{"pve2"}},
		"shared-disks": {`{"Cluster":"pve3","Datastore":"shared"}`, []string{"pve3"}},
	} {
		if got := on(request(name, local, placedBy(x.json))); !slices.Contains(x.want, got) {
			t.Errorf("%s: %s is on %s, want %v", name, x.json, got, x.want)
		}
	}
	_, err := c.agent.Provider.Create(c.ctx, request("nowhere", local, placedBy(`{"Cluster":"fast","Host":"pve1"}`)))
	refused(t, err, codes.FailedPrecondition, `create nowhere: no node fits: every node is ruled out by placement_json: Host "pve1" and Cluster "fast"`)

	dbs := map[string]bool{}
	for i := range 3 {
		dbs[on(request(fmt.Sprintf("db-%d", i), local, tagged("db")), fmt.Sprintf("pve%d", i+1))] = true
	}
	if len(dbs) != 3 {
		t.Errorf("three VMs that are to be apart are on %v", slices.Collect(maps.Keys(dbs)))
	}
	_, err = c.at["pve3"].agent.Provider.Create(c.ctx, request("db-3", local, tagged("db")))
	refused(t, err, codes.FailedPrecondition, "create db-3: no node fits: pve1 ", ", pve2 ", ", pve3 ", `has VM 10`)
	if n := strings.Count(err.Error(), `(anti-affinity of policy "db": tag In db)`); n < 3 {
		t.Errorf("not of each node: %v", err)
	}

	extra := func(policy string) func(*providerpb.CreateRequest) {
		return class(`{"CPU":1,"MemoryMiB":512,"ExtraConfig":{"proxmox.placement-policy":"` + policy + `"}}`)
	}
	if got := on(request("by-class", local, extra("single"))); got != "pve3" {
		t.Errorf("by its class: on %s", got)
	}
	_, err = c.agent.Provider.Create(c.ctx, request("by-both", local, extra("single"), placed("pve1")))
	refused(t, err, codes.FailedPrecondition, `create by-both: no node fits: pve1 is not in the node-selector of policy "single" (pve3); every other node is ruled out by`)
	_, err = c.agent.Provider.Create(c.ctx, request("by-error", local, extra("gold")))
	refused(t, err, codes.FailedPrecondition, `create by-error: no node fits: placement policy "gold" is not in the configuration (there is "apart", "db", "single")`)

	source := c.create(request("source", from("9001"), placed("pve1"), tagged("apart")))
	named := func(policy string) func(*providerpb.CloneRequest) {
		return func(r *providerpb.CloneRequest) { r.PlacementJson = `{"name":"` + policy + `"}` }
	}
	if id := c.clone(copyOf(source, "copy-1", named("apart"))); c.home(id) == "pve1" {
		t.Error("a clone is beside what its policy keeps it from")
	}
	if id := c.at["pve2"].clone(copyOf(source, "copy-2", named("single"))); c.home(id) != "pve3" {
		t.Errorf("a clone is on %s, which its policy does not allow", c.home(id))
	}
	refused(t, c.tryClone(copyOf(source, "copy-3", named("gold"))), codes.FailedPrecondition, `clone copy-3: no node fits: placement policy "gold"`)
}

// TestPlacementByNodeSelector: a preference is left when it cannot be had, a requirement is not.
func TestPlacementByNodeSelector(t *testing.T) {
	t.Parallel()
	c := assembleEach(t, map[string][]string{
		"pve1": {"--node-selector=pve2"}, "pve3": {"--node-selector=pve3", "--placement-node-selector=required"},
	}, everywhere).acquainted()
	for i := range 3 {
		if id := c.create(request(fmt.Sprintf("liked-%d", i), local)); c.home(id) != "pve2" {
			t.Errorf("%s is on %s, pve2 is preferred", id, c.home(id))
		}
		if id := c.at["pve3"].create(request(fmt.Sprintf("required-%d", i), local)); c.home(id) != "pve3" {
			t.Errorf("%s is on %s, pve3 is required", id, c.home(id))
		}
	}
	c.cordon("pve2")
	if id := c.create(request("elsewhere", local)); c.home(id) == "pve2" {
		t.Error("on a node that is cordoned")
	}
	c.cordon("pve3")
	_, err := c.at["pve3"].agent.Provider.Create(c.ctx, request("nowhere", local))
	refused(t, err, codes.FailedPrecondition, "no node fits: pve1 is not in the node-selector (pve3), pve2 cordoned and is not in the node-selector (pve3), pve3 cordoned")
}

// uneven is a cluster in which each node lacks something else.
var uneven = setting{
	sim: func(c *pvesim.Config) {
		c.NodeMemory = map[string]int64{"pve1": 6 << 30}
		c.NodeCPUs = map[string]int{"pve2": 2}
		c.NodeBridges = map[string][]string{"pve3": {"vmbr0"}}
	},
	scene: func(s *stage) {
		s.must(s.sim.AddStorage(pvesim.Storage{Name: "nvme", Content: []string{"images"}, Nodes: []string{"pve3"}}))
	},
}

const (
	bigClass   = `{"CPU":4,"MemoryMiB":8192}`
	smallClass = `{"CPU":1,"MemoryMiB":512}`
)

// TestPlacementRefuses says of each node what it lacks, and whether it is room alone.
func TestPlacementRefuses(t *testing.T) {
	t.Parallel()
	c := assemble(t, everywhere, uneven).acquainted()
	wired := func(r *providerpb.CreateRequest) { r.NetworksJson = `[{"Name":"a","NetworkName":"vmbr1"}]` }
	for name, x := range map[string]struct {
		change []func(*providerpb.CreateRequest)
		code   codes.Code
		says   string
	}{
		"mixed": {
			[]func(*providerpb.CreateRequest){class(bigClass), wired},
			codes.FailedPrecondition,
			"create mixed: no node fits: pve1 memory (needs 8.0 GiB, 5.0 free), pve2 CPUs (needs 4, has 2), pve3 has no bridge vmbr1",
		},
		"huge": {
			[]func(*providerpb.CreateRequest){class(`{"CPU":1,"MemoryMiB":131072}`)},
			codes.ResourceExhausted,
			"create huge: no node fits: pve1 memory (needs 128.0 GiB, 5.0 free), pve2 memory (needs 128.0 GiB, 63.0 free), pve3 memory (needs 128.0 GiB, 63.0 free)",
		},
		"stored": {
			[]func(*providerpb.CreateRequest){class(bigClass), placedBy(`{"Cluster":"pve1","Datastore":"nvme"}`)},
			codes.FailedPrecondition,
			`create stored: no node fits: pve1 has no storage nvme and memory (needs 8.0 GiB, 5.0 free); every other node is ruled out by placement_json: Cluster "pve1"`,
		},
	} {
		_, err := c.at["pve3"].agent.Provider.Create(c.ctx, request(name, append(x.change, local)...))
		refused(t, err, x.code, x.says)
		if len(c.made(name))+len(c.records()) > 0 {
			t.Errorf("%s: something was made: %v", name, c.records())
		}
	}
	// Each is the only one for something.
	for name, x := range map[string]struct {
		change []func(*providerpb.CreateRequest)
		on     string
	}{
		"bridge-and-cpus": {[]func(*providerpb.CreateRequest){class(`{"CPU":4,"MemoryMiB":512}`), wired}, "pve1"},
		"bridge-and-room": {[]func(*providerpb.CreateRequest){class(`{"CPU":2,"MemoryMiB":8192}`), wired}, "pve2"},
		"cpus-and-room":   {[]func(*providerpb.CreateRequest){class(bigClass)}, "pve3"},
		"storage":         {[]func(*providerpb.CreateRequest){class(smallClass), placedBy(`{"Datastore":"nvme"}`)}, "pve3"},
	} {
		if id := c.create(request(name, append(x.change, local)...)); c.home(id) != x.on {
			t.Errorf("%s is on %s, %s alone has what it needs", name, c.home(id), x.on)
		}
	}
	c.cordon("pve3")
	_, err := c.agent.Provider.Create(c.ctx, request("kept-out", local, class(smallClass), placedBy(`{"Datastore":"nvme"}`)))
	refused(t, err, codes.FailedPrecondition, "no node fits: pve1 has no storage nvme, pve2 has no storage nvme, pve3 cordoned")
	c.uncordon("pve3")
	// PVE's own way to keep VMs away.
	c.must(c.sim.SetMaintenance("pve3", true))
	c.would("pve1", "pve3", "in HA maintenance", true)
	_, err = c.agent.Provider.Create(c.ctx, request("kept-out", local, class(bigClass), placed("pve3")))
	refused(t, err, codes.FailedPrecondition, `no node fits: pve3 in HA maintenance; every other node is ruled out by placement_json: Cluster "pve3"`)
	c.must(c.sim.SetMaintenance("pve3", false))
	c.would("pve1", "pve3", "in HA maintenance", false)
	if id := c.create(request("let-in", local, class(bigClass))); c.home(id) != "pve3" {
		t.Errorf("after its maintenance: on %s", c.home(id))
	}
}
