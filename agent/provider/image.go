package provider

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Images prepares what VMs are made from; *image.Images does.
type Images interface {
	Prepare(ctx context.Context, wish spec.ImagePrepare) error
}

// ImagePrepare finds the templates that an image is to be, and records them under its name. The id of a prepared image is
// its name: which template that means is decided at each Create, because the manager never asks again, and a template may
// be rebuilt, or have a replica on the node where the VM is to be.
func (s *Server) ImagePrepare(ctx context.Context, r *providerpb.ImagePrepareRequest) (*providerpb.ImagePrepareResponse, error) {
	wish, err := spec.DecodeImagePrepare(spec.ImagePrepareInput{
		ImageJSON: r.GetImageJson(), TargetName: r.GetTargetName(), StorageHint: r.GetStorageHint(),
	})
	if err != nil {
		return nil, Status(fault.New(fault.Invalid, "%w", err))
	}
	s.noteUnknown(ctx, wish.Unknown)
	ctx, cancel := inTime(ctx)
	defer cancel()
	if err := s.cfg.Images.Prepare(ctx, wish); err != nil {
		return nil, Status(err)
	}
	return &providerpb.ImagePrepareResponse{PreparedImageId: wish.Name, PreparedImagePath: spec.PreparedPath + wish.Name}, nil
}
