package agent

import (
	"context"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/image"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/snippet"
)

// peerService is what agents ask of each other, put together from the rooms that answer.
type peerService struct {
	*snippet.Service
	images *image.Images
	caller func(ctx context.Context) (node string, ok bool)
}

// ReadVolume implements peerpb.PeerServer.
func (p *peerService) ReadVolume(ctx context.Context, rq *peerpb.ReadVolumeRequest) (*peerpb.ReadVolumeResponse, error) {
	if _, ok := p.caller(ctx); !ok {
		return nil, grpcstatus.Error(codes.PermissionDenied, "only the agents of this cluster may call this service")
	}
	return p.images.ReadVolume(ctx, rq)
}
