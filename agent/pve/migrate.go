package pve

import (
	"context"
	"net/http"
	"net/url"
)

// MigrateParams says how a VM is moved.
type MigrateParams struct {
	Target         string // node
	Online         bool   // while it runs; else it must be stopped
	WithLocalDisks bool   // copies disks that are on storages of the node; of a stopped VM PVE does so anyway
}

// Migrate begins to move a VM to another node (POST /nodes/{node}/qemu/{vmid}/migrate). For a VM that HA manages the task
// ends when HA has taken the request.
func (c *Client) Migrate(ctx context.Context, node string, vmid int, p MigrateParams) (UPID, error) {
	params := url.Values{"target": {p.Target}}
	if p.Online {
		params.Set("online", "1")
	}
	if p.WithLocalDisks {
		params.Set("with-local-disks", "1")
	}
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/migrate"), params)
}
