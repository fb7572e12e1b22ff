package provider

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// SnapshotCreate takes a snapshot, or joins the taking of it, or returns the one of that name. The id is final.
func (s *Server) SnapshotCreate(ctx context.Context, r *providerpb.SnapshotCreateRequest) (*providerpb.SnapshotCreateResponse, error) {
	id, err := guest.ParseID(r.GetVmId())
	if err != nil {
		return nil, Status(err)
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	snap, err := s.cfg.Guests.SnapshotCreate(ctx, s.cfg.Client(ctx), id, guest.SnapshotWish{
		Name: r.GetNameHint(), Description: r.GetDescription(), Memory: r.GetIncludeMemory(),
	})
	if err != nil {
		return nil, Status(err)
	}
	task, err := s.await(ctx, snap.Op)
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.SnapshotCreateResponse{SnapshotId: snap.ID, Task: task}, nil
}

// SnapshotDelete removes a snapshot; one that is not there is success.
func (s *Server) SnapshotDelete(ctx context.Context, r *providerpb.SnapshotDeleteRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetVmId())
	if err != nil {
		return nil, Status(err)
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	op, err := s.cfg.Guests.SnapshotDelete(ctx, s.cfg.Client(ctx), id, r.GetSnapshotId())
	return s.taskResponse(ctx, op, err)
}

// SnapshotRevert takes a VM back to a snapshot.
func (s *Server) SnapshotRevert(ctx context.Context, r *providerpb.SnapshotRevertRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetVmId())
	if err != nil {
		return nil, Status(err)
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	op, err := s.cfg.Guests.SnapshotRevert(ctx, s.cfg.Client(ctx), id, r.GetSnapshotId())
	return s.taskResponse(ctx, op, err)
}
