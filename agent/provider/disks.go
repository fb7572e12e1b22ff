package provider

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// GetDiskInfo describes one disk, as it is or as a snapshot holds it.
func (s *Server) GetDiskInfo(ctx context.Context, r *providerpb.GetDiskInfoRequest) (*providerpb.GetDiskInfoResponse, error) {
	id, err := guest.ParseID(r.GetVmId())
	if err != nil {
		return nil, Status(err)
	}
	d, err := s.cfg.Guests.DiskInfo(ctx, id, r.GetDiskId(), r.GetSnapshotId())
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.GetDiskInfoResponse{
		DiskId: d.Key, Format: d.Format, VirtualSizeBytes: d.VirtualBytes, ActualSizeBytes: d.ActualBytes, Path: d.Volume,
		IsBootable: d.Bootable, Snapshots: d.Snapshots, BackingFile: d.Backing, Metadata: d.Metadata,
	}, nil
}

// HardwareUpgrade raises the machine version of a VM that is off.
func (s *Server) HardwareUpgrade(ctx context.Context, r *providerpb.HardwareUpgradeRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetId())
	if err != nil {
		return nil, Status(err)
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	if err := s.cfg.Guests.HardwareUpgrade(ctx, id, int(r.GetTargetVersion())); err != nil {
		return nil, Status(err)
	}
	return &providerpb.TaskResponse{}, nil
}
