package provider

import (
	"context"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// reconfigureWait is how long Reconfigure waits for its operation. The manager itself would wait for five minutes, with
// one of its ten workers.
const reconfigureWait = 60 * time.Second

// Reconfigure makes a VM what the wish says and answers when that is done: the manager takes a returned task for success.
// What takes longer goes on, and a repeat joins it.
func (s *Server) Reconfigure(ctx context.Context, r *providerpb.ReconfigureRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetId())
	if err != nil {
		return nil, Status(err)
	}
	wish, err := spec.DecodeReconfigure(r.GetDesiredJson())
	if err != nil {
		return nil, Status(fault.New(fault.Invalid, "%w", err))
	}
	s.noteUnknown(ctx, wish.Unknown)
	ctx, cancel := inTime(ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, reconfigureWait)
	defer stop()
	op, err := s.cfg.Guests.Reconfigure(ctx, s.cfg.Client(ctx), id, wish)
	if err == nil {
		err = finish(ctx, op)
	}
	if why := s.cfg.Guests.InTheWay(id); why != "" && ctx.Err() != nil {
		err = fault.New(fault.Of(err), "%w; %s", err, why)
	}
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.TaskResponse{}, nil
}
