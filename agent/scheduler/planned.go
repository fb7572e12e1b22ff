package scheduler

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Decided journals a decision of Plan that is carried out, so that it can be explained; act is "drain" or "restore".
func (s *Scheduler) Decided(ctx context.Context, act, owner string, w placement.Want, d placement.Decision) {
	s.decided(ctx, act, owner, w, d)
}
