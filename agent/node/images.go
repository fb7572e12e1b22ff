package node

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// Images lists what VMs are made from. A node that is asked by another one tells its own part.
func (s *Service) Images(ctx context.Context, req *nodepb.ImagesRequest) (*nodepb.ImagesResponse, error) {
	if s.cfg.Images == nil {
		return nil, status.Error(codes.Unimplemented, "this agent knows no images")
	}
	world, err := s.cfg.World()
	if world == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the templates of the cluster are not known: %v", err)
	}
	resp := &nodepb.ImagesResponse{View: s.view(world, err, s.cfg.Now())}
	if resp.Images, err = s.cfg.Images(ctx, req.GetName(), forward.Part(ctx)); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the images of the cluster are not known: %v", err)
	}
	if req.GetName() != "" && len(resp.GetImages()) == 0 {
		return nil, status.Errorf(codes.NotFound, "there is no image %q, and no template of that name", req.GetName())
	}
	return resp, nil
}
