package node

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// Scheduler decides where VMs are made, and tells why. Its errors are gRPC status errors; its answers are without View.
type Scheduler interface {
	Explain(ctx context.Context, rq *nodepb.ExplainRequest) (*nodepb.ExplainResponse, error)
	Place(ctx context.Context, rq *nodepb.PlaceRequest) (*nodepb.PlaceResponse, error)
}

// Explain tells what was decided about a VM.
func (s *Service) Explain(ctx context.Context, rq *nodepb.ExplainRequest) (*nodepb.ExplainResponse, error) {
	resp, err := s.cfg.Scheduler.Explain(ctx, rq)
	if err != nil {
		return nil, err
	}
	resp.View = s.here()
	return resp, nil
}

// Place says where a VM would go now.
func (s *Service) Place(ctx context.Context, rq *nodepb.PlaceRequest) (*nodepb.PlaceResponse, error) {
	resp, err := s.cfg.Scheduler.Place(ctx, rq)
	if err != nil {
		return nil, err
	}
	resp.View = s.here()
	return resp, nil
}

// here is the view of an answer that rests on what is known now.
func (s *Service) here() *nodepb.View {
	world, err := s.cfg.World()
	return s.view(world, err, s.cfg.Now())
}
