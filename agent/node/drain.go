package node

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// Maintenance takes nodes out of use and back; *drain.Drainer does. Its errors are gRPC status errors. It passes on what
// is for another node, whose answer has its own View then.
type Maintenance interface {
	Cordon(ctx context.Context, req *nodepb.CordonRequest) (*nodepb.CordonResponse, error)
	Drain(ctx context.Context, req *nodepb.DrainRequest) (*nodepb.DrainResponse, error)
	Restore(ctx context.Context, req *nodepb.RestoreRequest) (*nodepb.DrainResponse, error)
	Evacuation(ctx context.Context, req *nodepb.EvacuationRequest) (*nodepb.DrainResponse, error)
	StopEvacuation(ctx context.Context, req *nodepb.StopEvacuationRequest) (*nodepb.DrainResponse, error)
}

// maintenance is who does it.
func (s *Service) maintenance() (Maintenance, error) {
	if s.cfg.Maintenance == nil {
		return nil, status.Error(codes.Unimplemented, "this agent moves no VMs")
	}
	return s.cfg.Maintenance, nil
}

// Cordon implements nodepb.NodeServer.
func (s *Service) Cordon(ctx context.Context, req *nodepb.CordonRequest) (*nodepb.CordonResponse, error) {
	m, err := s.maintenance()
	if err != nil {
		return nil, err
	}
	resp, err := m.Cordon(ctx, req)
	if err == nil && resp.GetView() == nil {
		resp.View = s.viewNow()
	}
	return resp, err
}

// Drain implements nodepb.NodeServer.
func (s *Service) Drain(ctx context.Context, req *nodepb.DrainRequest) (*nodepb.DrainResponse, error) {
	return evacuate(s, func(m Maintenance) (*nodepb.DrainResponse, error) { return m.Drain(ctx, req) })
}

// Restore implements nodepb.NodeServer.
func (s *Service) Restore(ctx context.Context, req *nodepb.RestoreRequest) (*nodepb.DrainResponse, error) {
	return evacuate(s, func(m Maintenance) (*nodepb.DrainResponse, error) { return m.Restore(ctx, req) })
}

// Evacuation implements nodepb.NodeServer.
func (s *Service) Evacuation(ctx context.Context, req *nodepb.EvacuationRequest) (*nodepb.DrainResponse, error) {
	return evacuate(s, func(m Maintenance) (*nodepb.DrainResponse, error) { return m.Evacuation(ctx, req) })
}

// StopEvacuation implements nodepb.NodeServer.
func (s *Service) StopEvacuation(ctx context.Context, req *nodepb.StopEvacuationRequest) (*nodepb.DrainResponse, error) {
	return evacuate(s, func(m Maintenance) (*nodepb.DrainResponse, error) { return m.StopEvacuation(ctx, req) })
}

func evacuate(s *Service, do func(Maintenance) (*nodepb.DrainResponse, error)) (*nodepb.DrainResponse, error) {
	m, err := s.maintenance()
	if err != nil {
		return nil, err
	}
	resp, err := do(m)
	if err == nil && resp.GetView() == nil {
		resp.View = s.viewNow()
	}
	return resp, err
}

func (s *Service) viewNow() *nodepb.View {
	world, err := s.cfg.World()
	return s.view(world, err, s.cfg.Now())
}
