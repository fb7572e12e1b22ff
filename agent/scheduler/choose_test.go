package scheduler

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

func TestChoose(t *testing.T) {
	h := newHere(t)
	h.fill(8*gib, 30*gib, 16*gib)
	way := h.chosen(vm("web", 8*gib))
	if way.Node != "pve2" || way.Note != "pve2 create/me/web" {
		t.Errorf("%+v", way)
	}
	if node, key := guest.ReadNote(way.Note); node != "pve2" || key != "create/me/web" {
		t.Errorf("%q, %q", node, key)
	}
}

// TestAChoiceIsReserved until it is answered: the next one sees it, and the same one again does not.
func TestAChoiceIsReserved(t *testing.T) {
	h := newHere(t)
	h.fill(0, 8*gib, 8*gib)
	first := h.chosen(vm("one", 8*gib))
	if again := h.chosen(vm("one", 8*gib)); again != first {
		t.Errorf("%v, and the same VM again %v: it stands in its own way", first, again)
	}
	second := h.chosen(vm("two", 8*gib))
	if second.Node == first.Node {
		t.Errorf("both on %s, which has room for one", first.Node)
	}
	h.Answered(t.Context(), first, status.Error(codes.FailedPrecondition, "PVE says no"))
	if third := h.chosen(vm("three", 8*gib)); third.Node != first.Node {
		t.Errorf("%v: the room of a VM that was not made is %s's", third, first.Node)
	}
}

// TestACordonThatIsLifted counts no more, although its node has not told that yet.
func TestACordonThatIsLifted(t *testing.T) {
	h := newHere(t)
	h.fill(8*gib, 30*gib, 16*gib)
	h.told["pve2"].Digest.Cordoned = true
	if way := h.chosen(vm("web", 8*gib)); way.Node != "pve2" {
		t.Errorf("%+v", way)
	}
}

// TestRefusal: the code says whether there is a lack of room alone, the words say what of each node.
func TestRefusal(t *testing.T) {
	h := newHere(t)
	h.fill(gib, 2*gib, 3*gib)
	_, err := h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Exhausted, "create web: no node fits: pve1 memory (needs 8.0 GiB, 1.0 free), pve2 memory (needs 8.0 GiB, 2.0 free), pve3 memory (needs 8.0 GiB, 3.0 free)")
	h.cordons["pve2"] = "cordoned (new disks)"
	h.offline["pve3"] = true
	h.sync()
	_, err = h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Precondition, "pve2 cordoned (new disks)", "pve3 is offline")
	h.offline["pve3"], h.peers["pve3"] = false, strange(h.peers["pve3"])
	h.sync()
	_, err = h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Precondition, "pve3 has an agent of version 9.9")
	h.unread = errBroken
	_, err = h.Choose(t.Context(), vm("web", gib))
	h.refused(err, fault.Precondition, "create web: broken")
	if !errors.Is(err, errBroken) {
		t.Error("the cause is lost")
	}
}

// TestMaintenance: HA moves the VMs of a node in maintenance away, so it gets no new ones.
func TestMaintenance(t *testing.T) {
	h := newHere(t)
	h.fill(30*gib, 60*gib, 20*gib)
	h.write("ha/manager_status", `{"node_status":{"pve1":"online","pve2":"maintenance","pve3":"online"}}`)
	h.sync()
	if way := h.chosen(vm("web", gib)); way.Node != "pve1" {
		t.Errorf("%v", way)
	}
	_, err := h.Choose(t.Context(), on(vm("two", gib), "pve2"))
	h.refused(err, fault.Precondition, "pve2 in HA maintenance")
}

// TestBlind: a node that has told nothing, which PVE has as online, is chosen only if nothing else speaks against it and
// no other fits.
func TestBlind(t *testing.T) {
	h := newHere(t)
	h.fill(4*gib, gib, gib)
	h.told["pve2"] = &view.Node{}
	if way := h.chosen(vm("small", 4*gib)); way.Node != "pve1" {
		t.Errorf("%v: pve1 fits", way)
	}
	if way := h.chosen(vm("web", 8*gib)); way.Node != "pve2" {
		t.Errorf("%v", way)
	}
	h.tell("pve2", 0)
	h.told["pve2"].DigestAt = h.now.Add(-view.Stale)
	if way := h.chosen(vm("late", 8*gib)); way.Node != "pve2" {
		t.Errorf("%v", way)
	}
	h.cordons["pve2"] = "cordoned"
	_, err := h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Precondition, "pve2 was not heard of for 45s and cordoned")
	delete(h.cordons, "pve2")
	h.offline["pve2"] = true
	h.sync()
	_, err = h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Precondition, "pve2 is offline")
}

// TestASharedTemplate is cloned where it is: if that agent cannot be asked, no other node gets the VM either.
func TestASharedTemplate(t *testing.T) {
	h := newHere(t)
	h.fill(20*gib, 20*gib, 40*gib)
	p := vm("web", gib)
	p.Want.Source = &placement.Source{Name: `replica of "golden"`, Why: map[string]string{"pve1": "has it not"}, Nodes: map[string]placement.Reach{
		"pve2": {}, "pve3": {How: placement.Shared},
	}}
	p.Makers["pve3"] = "pve2"
	if way := h.chosen(p); way.Node != "pve2" || way.Note != "pve3 create/me/web" {
		t.Errorf("%+v: it is made by pve2 for pve3", way)
	}
	h.offline["pve2"] = true
	h.sync()
	_, err := h.Choose(t.Context(), p)
	h.refused(err, fault.Precondition, "pve1 has it not", "pve2 is offline", `pve3 cannot get replica of "golden": it is on node pve2, which is offline`)
	if _, ok := p.Want.Source.Nodes["pve3"]; !ok {
		t.Error("the source of the request was changed")
	}
	h.offline["pve2"] = false
	h.sync()
	h.Answered(t.Context(), forward.Way{Node: "pve2", Note: p.Note("pve3")}, &forward.PeerError{Node: "pve2", Err: errBroken})
	_, err = h.Choose(t.Context(), p)
	h.refused(err, fault.Precondition, "pve3 cannot get", "did not answer a moment ago")
}

// TestAnswered: what becomes of a reservation, and of the node that gave the answer.
func TestAnswered(t *testing.T) {
	const free, kept, settled = "free", "kept", "settled"
	for name, tc := range map[string]struct {
		err  error
		room string // whether the VM counts on, and whether as one that the node's next numbers show
		says string // what is said of the node if it is asked for the same VM again; "": nothing
		of   string // the same for any other VM
	}{
		"made":                     {err: nil, room: settled},
		"is being made":            {err: status.Error(codes.Aborted, "interrupted"), room: settled},
		"waited too long":          {err: status.Error(codes.DeadlineExceeded, "late"), room: settled},
		"the client has gone":      {err: status.Error(codes.Canceled, "gone"), room: settled},
		"failed":                   {err: status.Error(codes.FailedPrecondition, "no"), room: free},
		"belongs elsewhere":        {err: forward.Elsewhere("pve3", "it is there"), room: free},
		"would not have it":        {err: forward.Elsewhere("", "pve2: node pve2 is cordoned"), room: free, says: "refused a moment ago: node pve2 is cordoned"},
		"has no room":              {err: forward.Full("memory (needs 8.0 GiB, 7.0 free)", "pve2: no"), room: free, says: "refused a moment ago: memory (needs 8.0 GiB, 7.0 free)"},
		"has not answered":         {err: &forward.PeerError{Node: "pve2", Sent: true, Err: errBroken}, room: kept},
		"has not even been called": {err: &forward.PeerError{Node: "pve2", Err: errBroken}, room: free, says: "did not answer a moment ago", of: "did not answer a moment ago"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHere(t)
			h.fill(0, 15*gib, 0)
			way := h.chosen(vm("web", 8*gib))
			h.after(time.Second)
			h.Answered(t.Context(), way, tc.err)
			h.says("pve2", vm("web", 4*gib), tc.says)
			h.says("pve2", vm("other", 4*gib), tc.of)
			h.after(refusalCounts)
			h.says("pve2", vm("web", 4*gib), "")
		})
		t.Run(name+", its room", func(t *testing.T) {
			h := newHere(t)
			h.fill(0, 15*gib, 0)
			way := h.chosen(vm("web", 8*gib))
			h.after(time.Second)
			h.Answered(t.Context(), way, tc.err)
			h.after(time.Second)
			if got := h.reserved("pve2"); (got == 0) != (tc.room == free) {
				t.Errorf("%d GiB reserved", got/gib)
			}
			h.told["pve2"].DigestAt = h.now
			if got := h.reserved("pve2"); (got == 0) != (tc.room != kept) {
				t.Errorf("%d GiB reserved when the node has told of itself", got/gib)
			}
		})
	}
}

// says checks what is said of the node to a request for it alone; "": it fits.
func (h *here) says(node string, p guest.Placing, words string) {
	h.Helper()
	_, err := h.Choose(h.Context(), on(p, node))
	switch {
	case words == "" && err != nil:
		h.Errorf("%s: %v", p.Want.Name, err)
	case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
		h.Errorf("%s: %v, want %q", p.Want.Name, err, words)
	}
}

// reserved is how much memory the book has for a node.
func (h *here) reserved(node string) uint64 {
	h.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	c, err := h.lockedCluster(h.now, nil)
	h.must(err)
	for _, n := range c.Nodes {
		if n.Name == node {
			return n.Reserved.Memory
		}
	}
	h.Fatalf("no node %s", node)
	return 0
}

// TestWantOfRoom: nodes that all refuse for want of room make a want of room, until they tell of some.
func TestWantOfRoom(t *testing.T) {
	h := newHere(t)
	h.fill(0, 8*gib, 8*gib)
	for range 2 {
		way := h.chosen(vm("web", 8*gib))
		h.Answered(t.Context(), way, forward.Full("memory (needs 8.0 GiB, 0.0 free)", "no room"))
	}
	_, err := h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Exhausted, "pve2 refused a moment ago: memory (needs 8.0 GiB, 0.0 free)", "pve1 memory (needs 8.0 GiB, 0.0 free)")
	h.after(time.Second)
	h.told["pve2"].DigestAt = h.now
	_, err = h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Exhausted) // what it told may be older than its refusal
	h.after(time.Second)
	h.told["pve2"].DigestAt = h.now
	if way := h.chosen(vm("web", 8*gib)); way.Node != "pve2" {
		t.Errorf("%v", way)
	}
	if len(h.refusals()) != 2 {
		t.Errorf("%v", h.refusals())
	}
	h.after(time.Hour)
	h.Answered(t.Context(), forward.Way{Node: "pve3", Note: "pve3 other"}, forward.Elsewhere("", "no"))
	if got := h.refusals(); len(got) != 1 || got["pve3"].text != "no" {
		t.Errorf("%v are kept", got)
	}
}

// refusals are those that are remembered of all VMs, by node.
func (h *here) refusals() map[string]refusal {
	all := map[string]refusal{}
	for _, of := range h.Scheduler.refused {
		for node, r := range of {
			all[node] = r
		}
	}
	return all
}

// TestDoubt: what this agent has placed on a node may be in the node's numbers already, so it is asked.
func TestDoubt(t *testing.T) {
	h := newHere(t)
	h.fill(8*gib, 9*gib, 10*gib)
	for _, name := range []string{"one", "two", "three"} {
		h.chosen(vm(name, 8*gib))
	}
	way := h.chosen(vm("web", 8*gib))
	if got := h.reserved(way.Node); got != 16*gib {
		t.Errorf("%v, where %d GiB are reserved", way, got/gib)
	}
	asked := map[string]bool{}
	for range nodes {
		way := h.chosen(vm("web", 8*gib))
		asked[way.Node] = true
		h.Answered(t.Context(), way, forward.Full("memory", "no room"))
	}
	if len(asked) != 3 {
		t.Errorf("asked %v", asked)
	}
	_, err := h.Choose(t.Context(), vm("web", 8*gib))
	h.refused(err, fault.Exhausted, "pve1 memory (needs 8.0 GiB, 0.0 free)")
	// It is no way around anything else.
	h.cordons["pve1"], h.cordons["pve2"] = "cordoned", "cordoned"
	_, err = h.Choose(t.Context(), vm("large", 11*gib))
	h.refused(err, fault.Precondition, "cordoned")
}

// TestDoubtEnds before forwarding gives up: the client is to hear that there is no room, not that it keeps moving.
func TestDoubtEnds(t *testing.T) {
	h := newHere(t)
	h.fill(8*gib, 8*gib, 8*gib)
	for _, name := range []string{"one", "two", "three"} {
		h.chosen(vm(name, 8*gib))
	}
	c, err := h.lockedCluster(h.now, nil)
	h.must(err)
	for i := range c.Nodes {
		c.Nodes[i].Refused, c.Nodes[i].Full = "memory", true
	}
	free := placement.Node{Name: "pve4", State: c.Nodes[1].State, Reserved: placement.Amount{Memory: 8 * gib}}
	for asked, want := range map[int]string{2: "pve4", 3: ""} {
		more := placement.Cluster{Nodes: append(c.Nodes[:asked:asked], free)}
		var d placement.Decision
		h.lockedDoubt(&d, more, vm("web", 8*gib).Want, h.now)
		if d.Node != want {
			t.Errorf("after %d refusals: %q, want %q", asked, d.Node, want)
		}
		if want != "" && (len(d.Warnings) == 0 || !strings.Contains(d.Warnings[len(d.Warnings)-1], "may be full")) {
			t.Errorf("no warning: %q", d.Warnings)
		}
	}
}

// TestPlan: each VM of a plan sees those before it, and nothing of it is kept.
func TestPlan(t *testing.T) {
	h := newHere(t)
	h.fill(8*gib, 8*gib, 8*gib)
	var wants []placement.Want
	for _, name := range []string{"a", "b", "c", "d"} {
		wants = append(wants, vm(name, 8*gib).Want)
	}
	for range 2 {
		plan, err := h.Plan(t.Context(), wants)
		h.must(err)
		used := map[string]bool{}
		for _, d := range plan[:3] {
			used[d.Node] = true
		}
		if len(used) != 3 || plan[3].Node != "" {
			t.Errorf("%v, and the fourth on %q", used, plan[3].Node)
		}
	}
	if got := h.reserved("pve1") + h.reserved("pve2") + h.reserved("pve3"); got != 0 {
		t.Errorf("%d GiB of a plan are kept", got/gib)
	}
	h.unread = errBroken
	_, err := h.Plan(t.Context(), wants)
	h.refused(err, fault.Precondition, "plan: broken")
}

// TestPoliciesSeeWhatIsUnderWay: two that are to be apart are, though /etc/pve has none of them yet; of a plan too.
func TestPoliciesSeeWhatIsUnderWay(t *testing.T) {
	h := newHere(t, func(c *Config) {
		c.Settings.Policies = []placement.Policy{{
			Name: "db", Match: placement.Match{Tags: []string{"db"}},
			AntiAffinity: []placement.Term{{Key: "tag", Operator: "In", Values: []string{"db"}, Hard: true}},
		}}
	})
	h.fill(40*gib, 20*gib, 10*gib)
	h.put(500, "pve1", "name: old\ntags: db\nmemory: 1024\n")
	h.put(501, "pve2", "name: golden\ntags: db\ntemplate: 1\n") // which is no VM
	db := func(name string) guest.Placing {
		p := vm(name, gib)
		p.Want.Tags = []string{"db"}
		return p
	}
	plan, err := h.Plan(t.Context(), []placement.Want{db("x").Want, db("y").Want, db("z").Want})
	h.must(err)
	if plan[0].Node != "pve2" || plan[1].Node != "pve3" || plan[2].Node != "" {
		t.Errorf("planned %q, %q, %q", plan[0].Node, plan[1].Node, plan[2].Node)
	}
	if one, two := h.chosen(db("one")), h.chosen(db("two")); one.Node != "pve2" || two.Node != "pve3" {
		t.Errorf("%v, %v", one, two)
	}
	_, err = h.Choose(t.Context(), db("three"))
	h.refused(err, fault.Precondition, `pve1 has VM 500 "old" (anti-affinity of policy "db"`, "pve2 has")
}

func strange(p cluster.Peer) cluster.Peer {
	p.Compatible, p.Version = false, "9.9"
	return p
}
