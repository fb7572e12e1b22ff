// Package peer is rigaud.v1.Peer: what the agents of a cluster ask of each other, put together from the rooms that can
// answer. Only agents of the cluster may ask.
package peer

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
)

// Snippets keeps cloud-init files.
type Snippets interface {
	PutSnippet(ctx context.Context, rq *peerpb.PutSnippetRequest) (*peerpb.PutSnippetResponse, error)
	GetSnippet(ctx context.Context, rq *peerpb.GetSnippetRequest) (*peerpb.GetSnippetResponse, error)
}

// Admission says whether a VM may come to this node.
type Admission interface {
	PeerAdmit(ctx context.Context, rq *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error)
}

// Volumes reads the disks of templates.
type Volumes interface {
	ReadVolume(ctx context.Context, rq *peerpb.ReadVolumeRequest) (*peerpb.ReadVolumeResponse, error)
}

// Migrations moves VMs of this node to others.
type Migrations interface {
	Migrate(ctx context.Context, rq *peerpb.MigrateRequest) (*peerpb.MigrateResponse, error)
}

// Service answers other agents.
type Service struct {
	peerpb.UnimplementedPeerServer
	Snippets  Snippets
	Admission Admission
	Volumes   Volumes
	Moves     Migrations
	// Status turns an error into the status an agent gets.
	Status func(error) error
}

// ReadVolume implements peerpb.PeerServer.
func (s *Service) ReadVolume(ctx context.Context, rq *peerpb.ReadVolumeRequest) (*peerpb.ReadVolumeResponse, error) {
	return s.Volumes.ReadVolume(ctx, rq)
}

// Admit implements peerpb.PeerServer.
func (s *Service) Admit(ctx context.Context, rq *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	resp, err := s.Admission.PeerAdmit(ctx, rq)
	if err != nil {
		return nil, s.Status(err)
	}
	return resp, nil
}

// Migrate implements peerpb.PeerServer.
func (s *Service) Migrate(ctx context.Context, rq *peerpb.MigrateRequest) (*peerpb.MigrateResponse, error) {
	return s.Moves.Migrate(ctx, rq)
}

// PutSnippet implements peerpb.PeerServer.
func (s *Service) PutSnippet(ctx context.Context, rq *peerpb.PutSnippetRequest) (*peerpb.PutSnippetResponse, error) {
	return s.Snippets.PutSnippet(ctx, rq)
}

// GetSnippet implements peerpb.PeerServer.
func (s *Service) GetSnippet(ctx context.Context, rq *peerpb.GetSnippetRequest) (*peerpb.GetSnippetResponse, error) {
	return s.Snippets.GetSnippet(ctx, rq)
}

// private are the services for agents: this one, and the node's, which its commands reach by the unix socket.
var private = []string{"/" + peerpb.Peer_ServiceDesc.ServiceName + "/", "/" + nodepb.Node_ServiceDesc.ServiceName + "/"}

// Private reports whether a method ("/package.Service/Method") is for agents only.
func Private(method string) bool {
	for _, prefix := range private {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	return false
}

// Guard refuses the private services to everybody but agents of the cluster. caller says which node's agent a call is
// from; false: from none.
func Guard(caller func(ctx context.Context) (node string, ok bool)) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if Private(info.FullMethod) {
			if _, ok := caller(ctx); !ok {
				return nil, status.Error(codes.PermissionDenied, "only the agents of this cluster may call this service")
			}
		}
		return handler(ctx, req)
	}
}
