package forward

import (
	"context"
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// chooses lets the router of a node choose among nodes for a VM.
func (w *world) chooses(vm string, nodes ...string) {
	for _, a := range w.agents {
		a.router.mu.Lock()
		a.router.choices = map[string][]string{vm: nodes}
		a.router.mu.Unlock()
	}
}

// answers are what the router was told of its choices.
func (r *router) answers() []answeredWay {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.answered)
}

func TestChoiceIsTold(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, node := range []string{"pve1", "pve2"} {
			w.chooses("new", node)
			note := ""
			w.agents[node].on(func(ctx context.Context, _ string) error {
				note = Note(ctx)
				return nil
			})
			if got := mustCall(t, w.client("manager", "pve1"), "new"); got.By != node {
				t.Errorf("%s was chosen, got %v", node, got)
			}
			if note != "chosen "+node {
				t.Errorf("the handler on %s finds the note %q", node, note)
			}
		}
		got := w.agents["pve1"].router.answers()
		if len(got) != 2 || got[0].way.Node != "pve1" || got[1].way.Node != "pve2" || got[0].err != nil || got[1].err != nil {
			t.Errorf("the router was told %v", got)
		}
	}, "pve1", "pve2")
}

func TestOtherChoice(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.chooses("new", "pve2", "pve3", "pve1", "pve4")
		for _, node := range []string{"pve1", "pve2"} { // pve1 refuses as one that is asked directly
			w.agents[node].on(func(context.Context, string) error { return Elsewhere("", "no room") })
		}
		w.agents["pve3"].server.Stop()
		<-w.agents["pve3"].served
		if got := mustCall(t, w.client("manager", "pve1"), "new"); got.By != "pve4" {
			t.Errorf("got %v", got)
		}
		got := w.agents["pve1"].router.answers()
		if len(got) != 4 {
			t.Fatalf("the router was told %v", got)
		}
		if _, ok := IsElsewhere(got[0].err); !ok || got[0].way.Node != "pve2" {
			t.Errorf("of pve2 the router was told %v", got[0])
		}
		if _, ok := errors.AsType[*PeerError](got[1].err); !ok || got[1].way.Node != "pve3" {
			t.Errorf("of pve3 the router was told %v", got[1])
		}
	}, "pve1", "pve2", "pve3", "pve4")
}

func TestNoChoiceIsLeft(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.chooses("new", "pve1", "pve2")
		for _, a := range w.agents {
			a.on(func(context.Context, string) error { return Elsewhere("", "no room") })
		}
		_, err := call(t.Context(), w.client("manager", "pve1"), "new")
		if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "no node fits" {
			t.Errorf("got %v", err)
		}
	}, "pve1", "pve2")
}

// TestFull: who chose learns on the way of a refusal that it is for want of room, and of what.
func TestFull(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.chooses("new", "pve2", "pve1")
		w.agents["pve2"].on(func(context.Context, string) error { return Full("memory", "pve2 lacks memory") })
		w.agents["pve1"].on(func(context.Context, string) error { return Elsewhere("pve2", "no room") })
		_, _ = call(t.Context(), w.client("manager", "pve1"), "new") // it is refused in the end
		got := w.agents["pve1"].router.answers()
		if len(got) < 2 {
			t.Fatalf("the router was told %v", got)
		}
		if lacks, ok := IsFull(got[0].err); !ok || lacks != "memory" {
			t.Errorf("%q, %v: %v", lacks, ok, got[0].err)
		}
		if node, ok := IsElsewhere(got[0].err); !ok || node != "" {
			t.Errorf("%q, %v: %v", node, ok, got[0].err)
		}
		if lacks, ok := IsFull(got[1].err); ok {
			t.Errorf("%q: %v", lacks, got[1].err)
		}
	}, "pve1", "pve2")
	for _, err := range []error{nil, errors.New("full"), status.Error(codes.Aborted, "full"), status.Error(codes.ResourceExhausted, "full")} {
		if _, ok := IsFull(err); ok {
			t.Errorf("%v is taken for a want of room", err)
		}
	}
}

// TestEnoughChoices: not all nodes of a large cluster are asked one after the other.
func TestEnoughChoices(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.chooses("new", "pve1", "pve2", "pve3", "pve4", "pve5")
		for _, a := range w.agents {
			a.on(func(context.Context, string) error { return Elsewhere("", "no room") })
		}
		_, err := call(t.Context(), w.client("manager", "pve1"), "new")
		const want = "no node was found that takes it: node pve4 is the last of 4 that were asked and would not (pve4: no room); try again"
		if status.Code(err) != codes.Aborted || status.Convert(err).Message() != want {
			t.Errorf("got %v", err)
		}
	}, "pve1", "pve2", "pve3", "pve4", "pve5")
}
