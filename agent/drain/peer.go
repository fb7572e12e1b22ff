package drain

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// Migrate begins to move a VM of this node, for the agent of another one. Whoever serves it lets nobody else ask.
func (d *Drainer) Migrate(ctx context.Context, req *peerpb.MigrateRequest) (*peerpb.MigrateResponse, error) {
	id, err := record.ParseID(req.GetId())
	if err != nil {
		return nil, refuse(fault.New(fault.Invalid, "%w", err))
	}
	h, err := d.cfg.Guests.Migrate(ctx, d.cfg.Client(ctx), id, req.GetTarget())
	if err != nil {
		return nil, refuse(err)
	}
	if h == nil {
		return &peerpb.MigrateResponse{}, nil
	}
	return &peerpb.MigrateResponse{Op: d.cfg.Guests.Task(h.Op())}, nil
}
