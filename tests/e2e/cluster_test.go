package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// company is a cluster with an agent on each node.
type company struct {
	*stage
	at map[string]*stage // the stage as seen by a client of that node's agent
}

var secure = setting{sim: func(c *pvesim.Config) { c.TLS = true }}

// assemble starts a cluster of three nodes with their agents.
func assemble(t *testing.T, settings ...setting) *company {
	t.Helper()
	return assembleEach(t, nil, settings...)
}

// assembleEach is assemble with flags for the agents of some nodes.
func assembleEach(t *testing.T, flags map[string][]string, settings ...setting) *company {
	t.Helper()
	settings = append([]setting{{sim: func(c *pvesim.Config) { c.Nodes = 3 }}}, settings...)
	s := raise(t, settings...)
	for _, x := range settings {
		if x.scene != nil {
			x.scene(s)
		}
	}
	c := &company{stage: s, at: map[string]*stage{}}
	for _, n := range s.sim.Nodes() {
		one := *s
		one.agent = s.startAgentOn(n.Name, append(settings, setting{flags: flags[n.Name]})...)
		c.at[n.Name] = &one
	}
	c.agent = c.at["pve1"].agent
	return c
}

// owned checks which node has a VM.
func (s *stage) owned(id int, node string) {
	s.Helper()
	if owner, _ := s.sim.Owner(id); owner != node {
		s.Errorf("VM %d is on %q, want %s", id, owner, node)
	}
}

// TestAnyNodeAnswers walks a VM through its life, each step through another node, with and without TLS.
func TestAnyNodeAnswers(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]setting{"plaintext": {}, "TLS": secure} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := assemble(t, with)
			id := c.at["pve2"].create(request("web-01", from("9001"), placed("pve1"))) // on shared storage
			c.owned(10000, "pve1")
			for _, node := range []string{"pve1", "pve2", "pve3"} {
				if again := c.at[node].create(request("web-01", from("9001"))); again != id {
					t.Errorf("create through %s: %s, the first was %s", node, again, id)
				}
			}
			for _, node := range []string{"pve1", "pve2", "pve3"} {
				if d := c.at[node].described(id); d.GetPowerState() != "Off" {
					t.Errorf("described through %s: %v", node, d)
				}
			}
			c.at["pve3"].on(id)
			c.must(c.sim.MoveVM(10000, "pve2"))
			for _, node := range []string{"pve1", "pve2", "pve3"} {
				if raw := c.raw(c.at[node].described(id)); raw["node"] != "pve2" {
					t.Errorf("described through %s right after its migration: %v", node, raw)
				}
			}
			c.at["pve1"].on(id)
			c.must(c.at["pve3"].delete(id))
			if d, err := c.at["pve1"].describe(id); err != nil || d.GetExists() {
				t.Errorf("after its end: %v, %v", d, err)
			}
			if left := c.records(); len(left) > 0 {
				t.Errorf("records of nothing: %v", left)
			}
		})
	}
}

// TestACreationIsKnownEverywhere: while PVE copies, no node may say that the VM does not exist.
func TestACreationIsKnownEverywhere(t *testing.T) {
	t.Parallel()
	c := assemble(t, quick)
	release := c.sim.HoldTasks("qmclone")
	defer release()
	first := c.at["pve3"].began(request("web-01"))
	for node, s := range c.at {
		if again := s.began(request("web-01")); again.GetId() != first.GetId() || again.GetTask().GetId() != first.GetTask().GetId() {
			t.Errorf("a repeat through %s got %v, the first %v", node, again, first)
		}
		if st := s.poll(first.GetTask()); st.GetDone() || st.GetError() != "" {
			t.Errorf("the task through %s: %v", node, st)
		}
		if d, err := s.describe(first.GetId()); err != nil || !d.GetExists() {
			t.Errorf("described through %s: %v, %v", node, d, err)
		}
	}
	release()
	if failure := c.at["pve2"].outcome(first.GetTask()); failure != "" {
		t.Error(failure)
	}
	if made := c.made("web-01"); !slices.Equal(made, []int{10000}) {
		t.Errorf("made %v", made)
	}
}

// TestOneNameThroughThreeNodesAtOnce: two of the three may see nothing of the others' claims when they look.
func TestOneNameThroughThreeNodesAtOnce(t *testing.T) {
	t.Parallel()
	c := assemble(t, fuse, setting{sim: func(c *pvesim.Config) { c.Memory = 1 << 40 }})
	for round := range 20 {
		name := fmt.Sprintf("web-%02d", round)
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex // guards ids
			ids = map[string]bool{}
		)
		for _, s := range c.at {
			wg.Go(func() {
				id := s.create(request(name))
				mu.Lock()
				defer mu.Unlock()
				ids[id] = true
			})
		}
		wg.Wait()
		if made := c.made(name); len(made) != 1 || len(ids) != 1 {
			t.Fatalf("%s: VMs %v, ids %v", name, made, ids)
		}
	}
}

// TestAnAgentThatIsDown: its VMs are unknown, not absent; its operations are under way, not failed; the others' are fine.
func TestAnAgentThatIsDown(t *testing.T) {
	t.Parallel()
	c := assemble(t, quick)
	here := c.create(request("here"))
	c.must(c.sim.AddVM(500, "pve2", map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"}))
	c.eventually("VM 500 is seen", func() bool { d, err := c.describe("500"); return err == nil && d.GetExists() })
	release := c.sim.HoldTasks("qmstart")
	defer release()
	task, err := c.at["pve3"].tryPower("500", powerOn)
	c.must(err)
	if task.GetId() == "" {
		t.Fatal("no task, although starting is held")
	}
	c.at["pve2"].stop()
	for _, node := range []string{"pve1", "pve3"} {
		s := c.at[node]
		_, err := s.describe("500")
		refused(t, err, codes.FailedPrecondition, "500", "pve2", "agent", "since 20")
		refused(t, s.delete("500"), codes.FailedPrecondition, "500", "pve2")
		if st := s.poll(task); st.GetDone() || st.GetError() != "" {
			t.Errorf("its task through %s: %v", node, st)
		}
		s.described(here)
		s.listsStale(map[string]bool{here: false, "500-01234567": true})
	}
	release()
	fresh := c.startAgentOn("pve2")
	c.eventually("its agent is back", func() bool { d, err := c.describe("500"); return err == nil && d.GetExists() })
	c.at["pve2"].agent = fresh
	if failure := c.at["pve1"].outcome(task); failure != "" {
		t.Error(failure)
	}
	// An agent that did not answer is tried again a second later.
	c.eventually("pve3 hears of it", func() bool {
		return !slices.ContainsFunc(c.at["pve3"].list(), func(v *providerpb.VMInfo) bool { return v.GetProviderRaw()["stale"] != "" })
	})
	c.at["pve3"].listsStale(map[string]bool{here: false, "500-01234567": false})
}

// listsStale checks which VMs are listed, and which of them as /etc/pve has them.
func (s *stage) listsStale(want map[string]bool) {
	s.Helper()
	got := map[string]bool{}
	for _, v := range s.list() {
		if _, twice := got[v.GetId()]; twice {
			s.Errorf("%s is listed twice", v.GetId())
		}
		got[v.GetId()] = v.GetProviderRaw()["stale"] == "true"
	}
	for id, stale := range want {
		if was, listed := got[id]; !listed || was != stale {
			s.Errorf("%s: listed %v, stale %v; want stale %v", id, listed, was, stale)
		}
	}
	if len(got) != len(want) {
		s.Errorf("listed %v, want %v", got, want)
	}
}

// TestAClientCannotPassForAnAgent: what agents tell each other beside requests is believed from agents only.
func TestAClientCannotPassForAnAgent(t *testing.T) {
	t.Parallel()
	c := assemble(t, secure)
	forged := metadata.AppendToOutgoingContext(c.ctx, "pve-rigaud-forwarded-by", "pve2", "pve-rigaud-client-bin", "somebody-else")
	// Believed, it would be refused: the template is on another node, and a forwarded request is not passed on.
	made, err := c.at["pve3"].agent.Provider.Create(forged, request("web-01"))
	c.must(err)
	if failure := c.outcome(made.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	list, err := record.New(record.Config{Dir: c.rig.Dir + "/etc/pve/priv/pve-rigaud"}).List()
	c.must(err)
	if len(list.Records) != 1 || list.Records[0].Owner == "somebody-else" {
		t.Errorf("records %+v: the owner is whoever holds the client's certificate", list.Records)
	}
}

// TestTheOwnerIsTheClientWhicheverNodeItAsks: with the agent's own identity, a repeat through another node would be
// another client's request.
func TestTheOwnerIsTheClientWhicheverNodeItAsks(t *testing.T) {
	t.Parallel()
	c := assemble(t, secure)
	c.at["pve1"].create(request("here"))
	c.at["pve2"].create(request("there"))
	list, err := record.New(record.Config{Dir: c.rig.Dir + "/etc/pve/priv/pve-rigaud"}).List()
	c.must(err)
	owners := map[string]bool{}
	for _, r := range list.Records {
		owners[r.Owner] = true
	}
	if len(list.Records) != 2 || len(owners) != 1 {
		t.Errorf("records %+v", list.Records)
	}
}

// TestAnAgentThatCannotBeRecognized: while pmxcfs restarts, .members names no cluster. Taken for a client, the agent that
// forwards would make a second VM, in its own name.
func TestAnAgentThatCannotBeRecognized(t *testing.T) {
	t.Parallel()
	c := assemble(t, secure)
	c.must(c.sim.AddVM(9500, "pve2", map[string]string{"template": "1", "name": "far"}))
	c.eventually("the template is seen", func() bool {
		_, err := c.at["pve2"].describe("9500")
		return err == nil
	})
	// With it a node that hears nobody is not one without a cluster.
	c.must(os.WriteFile(filepath.Join(c.rig.Dir, "pve2", "own", "corosync.conf"), []byte("totem {}\n"), 0o600))
	members := filepath.Join(c.rig.Dir, "pve2", "own", ".members")
	whole, err := os.ReadFile(members)
	c.must(err)
	alone := []byte(`{"nodename":"pve2","version":0}`)
	c.must(os.WriteFile(members, alone, 0o600))
	c.eventually("pve2 knows no cluster", func() bool { return c.at["pve2"].validate() != "" })
	_, err = c.agent.Provider.Create(c.ctx, request("web-01", from("9500")))
	refused(t, err, codes.FailedPrecondition, "pve2", ".members")
	c.must(os.WriteFile(members, whole, 0o600))
	c.at["pve2"].healthy()
	c.create(request("web-01", from("9500")))
	list, err := record.New(record.Config{Dir: c.rig.Dir + "/etc/pve/priv/pve-rigaud"}).List()
	c.must(err)
	if len(list.Records) != 1 || strings.HasPrefix(list.Records[0].Owner, "pve-rigaud://") {
		t.Errorf("records %+v: the owner is the client", list.Records)
	}
}

// TestAnAgentOfAnotherVersion: with nothing in common the two do not guess, and say what to do.
func TestAnAgentOfAnotherVersion(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.must(s.sim.AddVM(500, "pve2", nil))
	s.startAgent()
	other := s.startAgentOn("pve2", setting{options: []agent.Option{agent.WithProtocol("9.0", cluster.Protocols{Min: 7, Max: 9})}})
	s.eventually("gossip has told", func() bool {
		_, err := s.describe("500")
		return err != nil && strings.Contains(err.Error(), "9.0")
	})
	_, err := s.describe("500")
	refused(t, err, codes.FailedPrecondition, "500", "pve2", "versions 7 to 9", "upgrade")
	// One of a newer version that still speaks ours is asked.
	s.must(other.Stop())
	s.startAgentOn("pve2", setting{options: []agent.Option{agent.WithProtocol("9.1", cluster.Protocols{Min: 1, Max: 9})}})
	s.eventually("it is asked", func() bool { d, err := s.describe("500"); return err == nil && d.GetExists() })
}
