package route

import (
	"context"
	"fmt"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	pb "github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// Unreachable answers for a node that cannot be asked. Nothing is known then: a VM there is not said not to exist, and
// an operation there is not said to have failed, because either could not be taken back. The reason is the state of one
// VM's node, not of this endpoint, whose other VMs are fine: so the code is FailedPrecondition.
func (r *Router) Unreachable(ctx context.Context, u forward.Unreachable) (any, error) {
	r.mu.Lock()
	r.avoid[u.Node] = time.Now().Add(avoidFor)
	r.mu.Unlock()
	if taskKind(u.Req) != "" {
		return &pb.TaskStatusResponse{}, nil // an error would end the operation for the caller
	}
	text := fmt.Sprintf("%s: node %s %s", about(u.Method, u.Req), u.Node, r.silence(ctx, u))
	if u.Sent {
		text += "; whether it was carried out is not known, a repeat finds out"
	}
	return nil, r.cfg.Status(fault.New(fault.Precondition, "%s", text))
}

// silence says in words why a node cannot be asked, and since when.
func (r *Router) silence(ctx context.Context, u forward.Unreachable) string {
	_ = r.Refresh(ctx) // what is known may be from before the node went; if it cannot be read, it has to do
	if world, err := r.cfg.Watcher.World(); err == nil {
		if since, offline := world.OfflineSince(u.Node); offline {
			return "is offline in the cluster since " + stamp(since)
		}
	}
	if why := r.cfg.Stranger(u.Node); why != "" {
		return "cannot be asked: " + why
	}
	text := "is online, but its agent does not answer"
	if !u.Since.IsZero() {
		text += " since " + stamp(u.Since)
	}
	if u.Err != nil {
		text += ": " + u.Err.Error()
	}
	return text + " (systemctl status pve-rigaud there)"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
