package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// explained are the decisions about a VM, in one line each.
func (h *here) explained(name string) []string {
	h.Helper()
	resp, err := h.Explain(h.Context(), &nodepb.ExplainRequest{Vm: name})
	h.must(err)
	return lines(resp)
}

func lines(resp *nodepb.ExplainResponse) []string {
	var out []string
	for _, p := range resp.GetPlacements() {
		out = append(out, fmt.Sprintf("%s by %s: %s to %q, %ds ago", p.GetAct(), p.GetDecidedBy(), p.GetName(), p.GetNode(), p.GetAgeMs()/1000))
	}
	return out
}

func (h *here) expect(what string, got []string, want ...string) {
	h.Helper()
	if !slices.Equal(got, want) {
		h.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestExplain: decisions are told by the VM's name, number and id, from this node's journal and those of the others.
func TestExplain(t *testing.T) {
	h := newHere(t)
	h.fill(10*gib, 40*gib, 5*gib)
	h.run(func() {
		h.chosen(vm("web", 8*gib))
		h.after(time.Second)
		_, err := h.Choose(t.Context(), vm("large", 60*gib))
		h.refused(err, fault.Exhausted)
		h.after(time.Second)
		h.Decided(t.Context(), "drain", "me", vm("web", 8*gib).Want, placement.Decision{Node: "pve3"})
	})
	h.after(time.Second)
	want := []string{`drain by pve1: web to "pve3", 1s ago`, `create by pve1: web to "pve2", 3s ago`}
	h.expect("by name", h.explained("web"), want...)
	h.put(500, "pve2", "name: web\nsmbios1: uuid=01234567-89ab-cdef-0123-456789abcdef\n")
	h.expect("by number", h.explained("500"), want...)
	h.expect("by id", h.explained("500-01234567"), want...)
	slices.Sort(h.asked)
	if got := slices.Compact(h.asked); !slices.Equal(got, []string{"pve2 Explain", "pve3 Explain"}) {
		t.Errorf("asked %q", got)
	}
	resp, err := h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "large"})
	h.must(err)
	p := resp.GetPlacements()[0]
	if p.GetNode() != "" || !strings.HasPrefix(p.GetRefusal(), "no node fits: pve1 memory") || p.GetWants() != "2 CPUs, 60.0 GiB memory, 1.0 GiB on local, vmbr0" {
		t.Errorf("%v", p)
	}
	_, err = h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "unknown"})
	h.refused(err, fault.NotFound, "explain unknown")
}

// TestExplainRows: the table says of each node what speaks for it and against it.
func TestExplainRows(t *testing.T) {
	h := newHere(t)
	h.fill(10*gib, 40*gib, 5*gib)
	h.cordons["pve1"] = "cordoned"
	p := vm("web", 8*gib)
	p.Want.Source = &placement.Source{Name: `replica of "golden"`, Nodes: map[string]placement.Reach{"pve1": {}, "pve2": {}, "pve3": {}}}
	p.Want.OnlyWhy = "by a test"
	h.run(func() { h.chosen(p) })
	resp, err := h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "web", Part: true})
	h.must(err)
	got := resp.GetPlacements()[0]
	if len(got.GetRows()) != 3 || len(h.asked) > 0 {
		t.Fatalf("%v, asked %q", got, h.asked)
	}
	for i, want := range []struct {
		fits    bool
		reasons string
		free    uint64
	}{
		{false, "cordoned", 10 * gib}, {true, `has the replica of "golden"`, 40 * gib}, {false, "memory (needs 8.0 GiB, 5.0 free)", 5 * gib},
	} {
		row := got.GetRows()[i]
		if row.GetNode() != nodes[i] || row.GetFits() != want.fits || strings.Join(row.GetReasons(), ", ") != want.reasons || row.GetMemoryFree() != want.free || row.GetMemoryTotal() != 64*gib {
			t.Errorf("%v, want %+v", row, want)
		}
	}
	if w := got.GetWants(); !strings.HasSuffix(w, `vmbr0, the replica of "golden", only by a test`) || got.GetScorer() != "crs" || got.GetAct() != string(ops.Create) {
		t.Errorf("%v", got)
	}
}

// TestExplainOfAll: the newest five of all agents, and who could not be asked.
func TestExplainOfAll(t *testing.T) {
	h := newHere(t)
	h.run(func() {
		for range 7 {
			h.after(10 * time.Second)
			h.chosen(vm("web", gib))
		}
	})
	h.answer = func(node, _ string, req, resp proto.Message) error {
		if rq, ok := req.(*nodepb.ExplainRequest); !ok || !rq.GetPart() || rq.GetVm() != "web" {
			t.Errorf("asked for %v", req)
		}
		if node == "pve3" {
			return errBroken
		}
		proto.Merge(resp, &nodepb.ExplainResponse{Placements: []*nodepb.Placement{
			{Name: "web", DecidedBy: node, Node: "pve2", Act: "clone", AgeMs: 15_000}, {Name: "web", DecidedBy: node, Node: "pve2", Act: "clone", AgeMs: 100_000},
		}})
		return nil
	}
	resp, err := h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "web"})
	h.must(err)
	var ages []int64
	for _, p := range resp.GetPlacements() {
		ages = append(ages, p.GetAgeMs()/1000)
	}
	if !slices.Equal(ages, []int64{0, 10, 15, 20, 30}) {
		t.Errorf("ages %v", ages)
	}
	if resp.GetPlacements()[2].GetDecidedBy() != "pve2" || !slices.Equal(resp.GetSilent(), []string{"pve3"}) {
		t.Errorf("%v", resp)
	}
	h.answer = func(string, string, proto.Message, proto.Message) error { return errBroken }
	resp, err = h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "web"})
	h.must(err)
	h.expect("silent", resp.GetSilent(), "pve2", "pve3")
	part, err := h.Explain(t.Context(), &nodepb.ExplainRequest{Vm: "unknown", Part: true})
	if err != nil || len(part.GetPlacements()) > 0 {
		t.Errorf("a part may be empty: %v, %v", part, err)
	}
}

// TestTry decides, and neither keeps nor journals anything.
func TestTry(t *testing.T) {
	h := newHere(t)
	h.fill(0, 8*gib, 0)
	h.run(func() {
		for range 2 {
			p, err := h.Try(t.Context(), vm("web", 8*gib).Want)
			if err != nil || p.GetNode() != "pve2" || p.GetAct() != "dry run" {
				t.Errorf("%v, %v", p, err)
			}
		}
	})
	if got, err := h.remembered("web"); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	h.unread = errBroken
	_, err := h.Try(t.Context(), vm("web", gib).Want)
	h.refused(err, fault.Precondition, "broken")
}

// TestAFullQueue: nobody waits for the journal; what it does not get is in the log.
func TestAFullQueue(t *testing.T) {
	h := newHere(t)
	for i := range queued + 1 {
		h.decided(t.Context(), "create", "me", placement.Want{Name: fmt.Sprint("vm-", i)}, placement.Decision{Node: "pve1"})
	}
	if text := h.log.String(); strings.Count(text, "too many wait") != 1 || !strings.Contains(text, "name=vm-1024") {
		t.Error("the log does not say that a decision is lost")
	}
	h.run(func() {})
	h.expect("all that there was room for", h.explained("vm-1023"), `create by pve1: vm-1023 to "pve1", 0s ago`)
	h.decided(t.Context(), "create", "me", placement.Want{Name: "\xff"}, placement.Decision{Node: "pve1"})
	if len(h.noted) > 0 || !strings.Contains(h.log.String(), "cannot be journaled") {
		t.Error("a name that is no text is journaled")
	}
}
