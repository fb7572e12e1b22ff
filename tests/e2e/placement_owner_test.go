package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// explained is what an agent tells of the decisions about a VM, the newest first.
func (c *company) explained(through, vm string, decisions int) []*nodepb.Placement {
	c.Helper()
	var resp *nodepb.ExplainResponse
	root := c.root(through)
	c.eventually(fmt.Sprintf("%d decisions about %s are told by %s", decisions, vm, through), func() bool {
		var err error
		resp, err = root.Explain(c.ctx, &nodepb.ExplainRequest{Vm: vm})
		return err == nil && len(resp.GetPlacements()) == decisions
	})
	return resp.GetPlacements()
}

// TestPlacementOwnerSaysNo: the node that was chosen looks at itself, and if it has no room another one gets the VM.
func TestPlacementOwnerSaysNo(t *testing.T) {
	t.Parallel()
	// pve2 has less to give than the others believe.
	c := assembleEach(t, map[string][]string{
		"pve1": {"--node-selector=pve2"}, "pve2": {"--placement-memory-reserve=63GiB"}, "pve3": {"--node-selector=pve2"},
	}, everywhere).acquainted()
	id := c.create(request("web-01", local))
	c.alone("web-01", id, c.home(id))
	if c.home(id) == "pve2" {
		t.Error("on a node without room")
	}
	told := c.explained("pve3", "web-01", 2)
	if told[1].GetNode() != "pve2" || told[0].GetNode() != c.home(id) || !strings.Contains(table(told[0]),
		"pve2 no: refused a moment ago: memory (needs 4.0 GiB, 1.0 free)") {
		t.Errorf("decisions\n%s: %s\n%s: %s", told[1].GetNode(), table(told[1]), told[0].GetNode(), table(told[0]))
	}
	_, err := c.agent.Provider.Create(c.ctx, request("web-02", local, placed("pve2")))
	refused(t, err, codes.FailedPrecondition, "create web-02: no node fits: pve2 refused a moment ago: memory (needs 4.0 GiB, 1.0 free); every other")
	if id := c.create(request("web-03", local, class(smallClass))); c.home(id) != "pve2" {
		t.Errorf("a small one is on %s: pve2 has room for it", c.home(id))
	}
	// A node whose agent does not answer is passed over, and not asked again for a while.
	c.must(c.at["pve2"].agent.Stop())
	delete(c.at, "pve2")
	for i, through := range []string{"pve1", "pve1", "pve3"} {
		name := fmt.Sprintf("passed-%d", i)
		id := c.at[through].create(request(name, local, class(smallClass)))
		c.alone(name, id, c.home(id))
		if c.home(id) == "pve2" {
			t.Error("on a node without an agent")
		}
	}
	if told := c.explained("pve1", "passed-0", 2); !strings.Contains(table(told[0]), "pve2 no: has an agent that did not answer a moment ago") {
		t.Errorf("told\n%s", table(told[0]))
	}
	if told := c.explained("pve1", "passed-1", 1); told[0].GetNode() == "pve2" {
		t.Error("it was asked again at once")
	}
}

// TestPlacementBlind: a node that has told nothing yet is asked, if no other fits.
func TestPlacementBlind(t *testing.T) {
	t.Parallel()
	// With a key of its own, pve2 hears nobody, and nobody hears it; requests reach it all the same.
	c := assembleEach(t, map[string][]string{"pve2": {"--gossip-key-file=" + t.TempDir() + "/own.key"}}, everywhere)
	id := c.create(request("named", local, placed("pve2")))
	c.alone("named", id, "pve2")
	told := c.explained("pve3", "named", 1)
	if !strings.Contains(strings.Join(told[0].GetWarnings(), "; "), "node pve2 was chosen although it has not told anything of itself yet: no other fits") {
		t.Errorf("warnings %q", told[0].GetWarnings())
	}
	if id := c.create(request("free", local)); c.home(id) == "pve2" {
		t.Error("although others fit, a node that nobody has heard of was chosen")
	}
}

// TestPlacementDisagrees: three agents that want a VM of one name on three nodes make one.
func TestPlacementDisagrees(t *testing.T) {
	t.Parallel()
	c := assembleEach(t, map[string][]string{
		"pve1": {"--node-selector=pve1"}, "pve2": {"--node-selector=pve2"}, "pve3": {"--node-selector=pve3"},
	}, everywhere, fuse).acquainted()
	homes := map[string]bool{}
	for round := range 10 {
		name := fmt.Sprintf("web-%02d", round)
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex // guards ids
			ids = map[string]bool{}
		)
		for _, s := range c.at {
			wg.Go(func() {
				id := s.create(request(name, local, class(smallClass)))
				mu.Lock()
				defer mu.Unlock()
				ids[id] = true
			})
		}
		wg.Wait()
		if made := c.made(name); len(made) != 1 || len(ids) != 1 {
			t.Fatalf("%s: VMs %v, ids %v", name, made, ids)
		}
		for id := range ids {
			homes[c.home(id)] = true
		}
	}
	t.Logf("on %v", homes)
}

// TestPlacementOfRepeats: a repeat is answered with what the first request has made, whatever has become of its node.
func TestPlacementOfRepeats(t *testing.T) {
	t.Parallel()
	c := assemble(t, everywhere, quick).acquainted()
	release := c.sim.HoldTasks("qmclone")
	defer release()
	first := c.began(request("web-01", local, placed("pve2"), class(`{"CPU":1,"MemoryMiB":49152}`)))
	c.cordon("pve2")
	for through, s := range c.at {
		again := s.began(request("web-01", local, placed("pve2"), class(`{"CPU":1,"MemoryMiB":49152}`)))
		if again.GetId() != first.GetId() || again.GetTask().GetId() != first.GetTask().GetId() {
			t.Errorf("through %s: %v, the first was %v", through, again, first)
		}
	}
	release()
	if failure := c.at["pve3"].outcome(first.GetTask()); failure != "" {
		t.Error(failure)
	}
	for through, s := range c.at {
		if again := s.create(request("web-01", local, placed("pve2"), class(`{"CPU":1,"MemoryMiB":49152}`))); again != first.GetId() {
			t.Errorf("through %s: %s, the first was %s", through, again, first.GetId())
		}
	}
	// Full, it takes no other.
	c.uncordon("pve2")
	_, err := c.at["pve3"].agent.Provider.Create(c.ctx, request("web-02", local, placed("pve2"), class(`{"CPU":1,"MemoryMiB":49152}`)))
	refused(t, err, codes.FailedPrecondition, "no node fits: pve2 ", "needs 48.0 GiB, 15.0 free", `every other node is ruled out by placement_json: Cluster "pve2"`)
	if again := c.create(request("web-01", local)); again != first.GetId() {
		t.Errorf("%s, the first was %s", again, first.GetId())
	}
	c.alone("web-01", first.GetId(), "pve2")
}

// TestPlacementCounts each VM once, while it is and no longer, also one that was made by another node.
func TestPlacementCounts(t *testing.T) {
	t.Parallel()
	c := assemble(t, everywhere).acquainted()
	for through, from := range map[string]func(*providerpb.CreateRequest){"pve1": local, "pve2": shared} {
		s := c.at[through]
		large := s.create(request("large", from, placed("pve3"), class(`{"CPU":1,"MemoryMiB":40960}`)))
		s.on(large)
		c.free("pve3", 23)
		small := s.create(request("small", from, placed("pve3"), class(`{"CPU":1,"MemoryMiB":20480}`)))
		if c.home(large) != "pve3" || c.home(small) != "pve3" {
			t.Errorf("on %s and %s", c.home(large), c.home(small))
		}
		c.must(s.delete(large))
		c.must(s.delete(small))
		c.free("pve3", 63)
	}
}

// free waits until all agents believe that a node has so many GiB for VMs.
func (c *company) free(node string, gib uint64) {
	c.Helper()
	for through := range c.at {
		root := c.root(through)
		var free uint64
		c.eventually(fmt.Sprintf("%s believes that %s has %d GiB", through, node, gib), func() bool {
			resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Cpus: 1, Memory: 1 << 20})
			for _, r := range resp.GetPlacement().GetRows() {
				if r.GetNode() == node {
					free = r.GetMemoryFree() >> 30
				}
			}
			return err == nil && free == gib
		})
	}
}

// TestPlacementExplained: any agent tells what any other has decided, by each way to name the VM, also after a restart.
func TestPlacementExplained(t *testing.T) {
	t.Parallel()
	c := assemble(t, everywhere).acquainted()
	id := c.at["pve2"].create(request("web-01", local, placed("pve3")))
	_, err := c.at["pve2"].agent.Provider.Create(c.ctx, request("web-02", local, class(`{"CPU":1,"MemoryMiB":131072}`)))
	refused(t, err, codes.ResourceExhausted, "create web-02: no node fits: pve1 memory (needs 128.0 GiB, 63.0 free), pve2 memory (needs 128.0 GiB, 63.0 free), pve3 memory (needs 128.0 GiB, 59.0 free)")
	check := func() {
		t.Helper()
		for through := range c.at {
			for _, name := range []string{"web-01", id, fmt.Sprint(vmid(t, id))} {
				p := c.explained(through, name, 1)[0]
				if p.GetName() != "web-01" || p.GetNode() != "pve3" || p.GetDecidedBy() != "pve2" || p.GetAct() != "create" || len(p.GetRows()) != 3 || p.GetRefusal() != "" ||
					!strings.Contains(p.GetWants(), "2 CPUs, 4.0 GiB memory") || !strings.Contains(table(p), `pve1 no: is ruled out by placement_json: Cluster "pve3"`) {
					t.Errorf("%s through %s: %v", name, through, p)
				}
			}
			p := c.explained(through, "web-02", 1)[0]
			if p.GetNode() != "" || !strings.HasSuffix(strings.TrimSpace(err.Error()), p.GetRefusal()) {
				t.Errorf("web-02 through %s: %v; the client was told %v", through, p, err)
			}
		}
	}
	check()
	c.must(c.at["pve2"].agent.Stop())
	c.at["pve2"].agent = c.startAgentOn("pve2")
	check()
	_, err = c.root("pve1").Explain(c.ctx, &nodepb.ExplainRequest{Vm: "nobody"})
	refused(t, err, codes.NotFound, "explain nobody")

	// What would be: it counts for nothing.
	root := c.root("pve3")
	for range 20 {
		resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Name: "big", Image: "linux-template", Cpus: 4, Memory: 40 << 30, Node: "pve3"})
		if p := resp.GetPlacement(); err != nil || p.GetNode() != "pve3" || p.GetAct() != "dry run" || p.GetDecidedBy() != "pve3" {
			t.Fatalf("%v, %v", p, err)
		}
	}
	resp, err := root.Place(c.ctx, &nodepb.PlaceRequest{Image: "linux-template", Cpus: 32, Memory: 1 << 30})
	if p := resp.GetPlacement(); err != nil || p.GetNode() != "" || p.GetRefusal() != "no node fits: every node CPUs (needs 32, has 16)" {
		t.Errorf("%v, %v", p, err)
	}
	_, err = root.Place(c.ctx, &nodepb.PlaceRequest{Image: "no-such", Cpus: 1, Memory: 1 << 30})
	refused(t, err, codes.NotFound, "no-such")
	if len(c.made("big")) > 0 || c.home(c.create(request("real", local, placed("pve3"), class(`{"CPU":1,"MemoryMiB":49152}`)))) != "pve3" {
		t.Error("a question has taken something")
	}
}

// TestPlacementMakesReplica: where the only node with room has no replica, and may have one, it makes one first.
func TestPlacementMakesReplica(t *testing.T) {
	t.Parallel()
	c := assemble(t, setting{flags: []string{"--placement-image-replicas=2"}, sim: replicas.sim}, quick).acquainted()
	c.fillTemplate("some data")
	c.cordon("pve1")
	c.cordon("pve3")
	made, err := c.at["pve3"].agent.Provider.Create(c.ctx, request("web-01"))
	c.must(err)
	if made.GetId() == "" || made.GetTask().GetId() == "" {
		t.Errorf("answered %v", made)
	}
	if failure := c.outcome(made.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	c.alone("web-01", made.GetId(), "pve2")
	if told := c.explained("pve2", "web-01", 1); !strings.Contains(table(told[0]), `pve2: needs a replica of "linux-template" first`) {
		t.Errorf("told\n%s", table(told[0]))
	}
	if r := c.replicaOn("pve2"); r.From != template {
		t.Errorf("replica %+v", r)
	}
}
