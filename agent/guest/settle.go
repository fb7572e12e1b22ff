package guest

import (
	"context"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// settleEvery is how often the records of this node are compared with the world.
const settleEvery = 10 * time.Minute

// settleAfter is the age from which a claim without an operation counts as abandoned: a fresh one may belong to a
// request that is between its steps.
const settleAfter = time.Minute

func (g *Guests) String() string { return "guests" }

// Ready is closed from the beginning: requests do not wait for records to be settled.
func (g *Guests) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Run settles records at the start and then now and then, until ctx ends.
func (g *Guests) Run(ctx context.Context) error {
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	for {
		if err := g.settle(ctx); err != nil && ctx.Err() == nil {
			g.log.WarnContext(ctx, "records could not be compared with the VMs there are", "err", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// settle removes what no journal knows any more: records of VMs that somebody else has destroyed, and half-made VMs
// whose operation is lost with their records.
func (g *Guests) settle(ctx context.Context) error {
	select {
	case <-g.cfg.Ops.Ready(): // before that, no operation is known to be running
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := g.cfg.Records.Sweep(g.cfg.Now()); err != nil {
		return err
	}
	list, err := g.cfg.Records.List()
	if err != nil {
		return err
	}
	for _, rec := range list.Records {
		if rec.Node != g.cfg.Node || rec.State == record.Creating && g.cfg.Now().Sub(rec.Created) < settleAfter {
			continue
		}
		dead, err := g.dead(ctx, rec)
		if err != nil {
			g.log.WarnContext(ctx, "record kept", "vm", rec.VMID, "name", rec.Name, "err", err)
			continue
		}
		if !dead {
			continue
		}
		if _, err := g.dropDead(ctx, rec); err != nil {
			g.log.WarnContext(ctx, "dead record kept", "vm", rec.VMID, "name", rec.Name, "err", err)
		}
	}
	return ctx.Err()
}

// dropDead removes what a dead record stands for, as a delete operation that leaves the VM alone unless it is half made.
func (g *Guests) dropDead(ctx context.Context, rec record.Record) (*ops.Handle, error) {
	h, _, err := g.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Delete, Key: deleteKey(rec.ID().String()),
		// No volumes: those that the VM's config named went with it, and others of their names are somebody else's.
		Params:  removal{ID: rec.ID().String(), Record: &rec, Generation: rec.Generation, Snippets: rec.Snippets},
		Subject: ops.Subject{Owner: rec.Owner, Name: rec.Name, ID: rec.ID().String()},
	})
	return h, err
}
