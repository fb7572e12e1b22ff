package provider

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// Clone copies a VM, or joins the copying, or returns the copy that an equal request has made. The id is final.
func (s *Server) Clone(ctx context.Context, r *providerpb.CloneRequest) (*providerpb.CloneResponse, error) {
	source, err := guest.ParseID(r.GetSourceVmId())
	if err != nil {
		return nil, Status(err)
	}
	wish, err := CloneWish(r)
	if err != nil {
		return nil, Status(err)
	}
	s.noteUnknown(ctx, wish.Unknown)
	ctx, cancel := inTime(ctx)
	defer cancel()
	made, err := s.cfg.Guests.Clone(ctx, s.cfg.Client(ctx), source, wish, target(ctx))
	if err != nil {
		return nil, Status(err)
	}
	task, err := s.await(ctx, made.Op)
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.CloneResponse{TargetVmId: made.ID, Task: task}, nil
}

// CloneWish decodes a Clone request. Every error is that of a bad request.
func CloneWish(r *providerpb.CloneRequest) (spec.Clone, error) {
	wish, err := spec.DecodeClone(spec.CloneInput{
		TargetName: r.GetTargetName(), Linked: r.GetLinked(),
		ClassJSON: r.GetClassJson(), PlacementJSON: r.GetPlacementJson(), CustomizeJSON: r.GetCustomizeJson(),
	})
	if err != nil {
		return wish, fault.New(fault.Invalid, "%w", err)
	}
	return wish, nil
}

// target is the node on which a VM is to be, as was decided when the request came; "": here.
func target(ctx context.Context) string {
	node, _ := guest.ReadNote(forward.Note(ctx))
	return node
}
