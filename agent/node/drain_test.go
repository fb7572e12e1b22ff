package node

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster"
)

// workshop is a Maintenance that answers without a View, or with that of another node.
type workshop struct {
	view *nodepb.View
	err  error
}

func (w workshop) Cordon(context.Context, *nodepb.CordonRequest) (*nodepb.CordonResponse, error) {
	return &nodepb.CordonResponse{View: w.view}, w.err
}

func (w workshop) answer() (*nodepb.DrainResponse, error) {
	return &nodepb.DrainResponse{View: w.view}, w.err
}

func (w workshop) Drain(context.Context, *nodepb.DrainRequest) (*nodepb.DrainResponse, error) {
	return w.answer()
}

func (w workshop) Restore(context.Context, *nodepb.RestoreRequest) (*nodepb.DrainResponse, error) {
	return w.answer()
}

func (w workshop) Evacuation(context.Context, *nodepb.EvacuationRequest) (*nodepb.DrainResponse, error) {
	return w.answer()
}

func (w workshop) StopEvacuation(context.Context, *nodepb.StopEvacuationRequest) (*nodepb.DrainResponse, error) {
	return w.answer()
}

// viewed is an answer with a View.
type viewed interface{ GetView() *nodepb.View }

// everyErrand makes all calls that change something.
func everyErrand(ctx context.Context, s *Service) map[string]func() (viewed, error) {
	return map[string]func() (viewed, error){
		"Cordon":         func() (viewed, error) { return s.Cordon(ctx, &nodepb.CordonRequest{}) },
		"Drain":          func() (viewed, error) { return s.Drain(ctx, &nodepb.DrainRequest{}) },
		"Restore":        func() (viewed, error) { return s.Restore(ctx, &nodepb.RestoreRequest{}) },
		"Evacuation":     func() (viewed, error) { return s.Evacuation(ctx, &nodepb.EvacuationRequest{}) },
		"StopEvacuation": func() (viewed, error) { return s.StopEvacuation(ctx, &nodepb.StopEvacuationRequest{}) },
	}
}

func TestMaintenance(t *testing.T) {
	world := &pmxcfs.World{Node: "pve1", Quorate: true, Members: pmxcfs.Members{Cluster: "lab"}}
	service := func(m Maintenance) *Service {
		return New(Config{Self: cluster.Member{Name: "pve1"}, World: func() (*pmxcfs.World, error) { return world, nil }, Maintenance: m})
	}
	refused := status.Error(codes.NotFound, "no such node")
	for what, test := range map[string]struct {
		service *Service
		code    codes.Code
		node    string
	}{
		"nobody does it":           {service(nil), codes.Unimplemented, ""},
		"done here":                {service(workshop{}), codes.OK, "pve1"},
		"passed on to another one": {service(workshop{view: &nodepb.View{Node: "pve2"}}), codes.OK, "pve2"},
		"refused":                  {service(workshop{err: refused}), codes.NotFound, ""},
	} {
		for name, call := range everyErrand(t.Context(), test.service) {
			resp, err := call()
			if status.Code(err) != test.code || err == nil && resp.GetView().GetNode() != test.node {
				t.Errorf("%s: %s: %v, %v", what, name, resp, err)
			}
		}
	}
}

// TestCordonsOfOthers: the file counts, whatever gossip says, also of a node whose agent says nothing more.
func TestCordonsOfOthers(t *testing.T) {
	n := nodes{
		"pve1": {Name: "pve1", Capacity: &nodepb.Capacity{Cordoned: true}},
		"pve2": {Name: "pve2", Capacity: &nodepb.Capacity{Draining: true}},
		"pve3": {Name: "pve3"},
	}
	n.addCordons(func(node string) (cordoned, draining bool) { return node != "pve1", node == "pve3" })
	if c := n["pve1"].GetCapacity(); c.GetCordoned() || c.GetDraining() {
		t.Errorf("a cordon that was lifted: %v", c)
	}
	if c := n["pve2"].GetCapacity(); !c.GetCordoned() || !c.GetDraining() {
		t.Errorf("a cordon of an agent that is stopping: %v", c)
	}
	if c := n["pve3"].GetCapacity(); c != nil {
		t.Errorf("a node of which nothing is known: %v", c)
	}
}
