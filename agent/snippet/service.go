package snippet

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// Service is what the agents of other nodes ask of this one's snippets. Nobody else is answered: files hold secrets, and
// become part of VMs.
type Service struct {
	peerpb.UnimplementedPeerServer
	store  *Store
	caller func(ctx context.Context) (node string, ok bool)
}

// NewService makes the service of a store. caller says which node's agent a call is from; false: from none of this
// cluster.
func NewService(store *Store, caller func(ctx context.Context) (node string, ok bool)) *Service {
	return &Service{store: store, caller: caller}
}

// PutSnippet implements peerpb.PeerServer.
func (v *Service) PutSnippet(ctx context.Context, rq *peerpb.PutSnippetRequest) (*peerpb.PutSnippetResponse, error) {
	st, file, err := v.admit(ctx, rq.GetVolume())
	if err != nil {
		return nil, err
	}
	if fileOf(rq.GetContent()) != file {
		return nil, status.Errorf(codes.InvalidArgument, "%s: the content is not what the name says", rq.GetVolume())
	}
	if err := v.store.keep(ctx, st, rq.GetContent()); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &peerpb.PutSnippetResponse{}, nil
}

// GetSnippet implements peerpb.PeerServer.
func (v *Service) GetSnippet(ctx context.Context, rq *peerpb.GetSnippetRequest) (*peerpb.GetSnippetResponse, error) {
	st, file, err := v.admit(ctx, rq.GetVolume())
	if err != nil {
		return nil, err
	}
	data, err := in(ctx, v.store, st, func(dir *os.Root) ([]byte, error) { return load(dir, file) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &peerpb.GetSnippetResponse{Content: data}, nil
}

// admit finds what a call of another agent is about.
func (v *Service) admit(ctx context.Context, volume string) (st pmxcfs.Storage, file string, err error) {
	if _, ok := v.caller(ctx); !ok {
		return st, "", status.Error(codes.PermissionDenied, "only the agents of this cluster may call this service")
	}
	storage, file, err := split(volume)
	if err != nil {
		return st, "", status.Error(codes.InvalidArgument, err.Error())
	}
	world, err := v.store.cfg.Watcher.World()
	if err != nil {
		return st, "", status.Error(codes.Unavailable, err.Error())
	}
	st, ok := world.Storages.Get(storage)
	if !ok || !st.OnNode(v.store.cfg.Node) {
		return st, "", status.Errorf(codes.FailedPrecondition, "storage %s does not exist on node %s", storage, v.store.cfg.Node)
	}
	return st, file, nil
}
