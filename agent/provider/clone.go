package provider

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Clone copies a VM, or joins the copying, or returns the copy that an equal request has made. The id is final.
func (s *Server) Clone(ctx context.Context, r *providerpb.CloneRequest) (*providerpb.CloneResponse, error) {
	source, err := guest.ParseID(r.GetSourceVmId())
	if err != nil {
		return nil, Status(err)
	}
	wish, err := spec.DecodeClone(spec.CloneInput{
		TargetName: r.GetTargetName(), Linked: r.GetLinked(),
		ClassJSON: r.GetClassJson(), PlacementJSON: r.GetPlacementJson(), CustomizeJSON: r.GetCustomizeJson(),
	})
	if err != nil {
		return nil, Status(fault.New(fault.Invalid, "%w", err))
	}
	s.noteUnknown(ctx, wish.Unknown)
	ctx, cancel := inTime(ctx)
	defer cancel()
	made, err := s.cfg.Guests.Clone(ctx, s.cfg.Client(ctx), source, wish)
	if err != nil {
		return nil, Status(err)
	}
	task, err := s.await(ctx, made.Op)
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.CloneResponse{TargetVmId: made.ID, Task: task}, nil
}
