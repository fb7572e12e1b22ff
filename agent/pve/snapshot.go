package pve

import (
	"context"
	"net/http"
	"net/url"
)

// SnapshotParams says what POST /nodes/{node}/qemu/{vmid}/snapshot makes.
type SnapshotParams struct {
	Name        string // 2..40 of [A-Za-z0-9_-], first a letter; "current" and "pending" are reserved
	Description string
	Memory      bool // also the memory of a VM that runs; of a stopped one there is none to save
}

// CreateSnapshot starts the taking of a snapshot. That the name is used already is the failure of the task
// (KindExists).
func (c *Client) CreateSnapshot(ctx context.Context, node string, vmid int, p SnapshotParams) (UPID, error) {
	v := url.Values{"snapname": {p.Name}}
	setText(v, "description", p.Description)
	if p.Memory {
		v.Set("vmstate", "1")
	}
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/snapshot"), v)
}

// DeleteSnapshot starts the removal of a snapshot. That there is none of this name is the failure of the task
// (KindNoSnapshot).
func (c *Client) DeleteSnapshot(ctx context.Context, node string, vmid int, name string) (UPID, error) {
	return c.task(ctx, http.MethodDelete, snapshotPath(node, vmid, name, ""), nil)
}

// Rollback starts the way back to a snapshot. PVE stops a running VM for it. Afterwards a VM runs if the snapshot holds
// memory, else not. What the storage cannot do is the failure of the task, before anything has changed
// (KindNotNewest).
func (c *Client) Rollback(ctx context.Context, node string, vmid int, name string) (UPID, error) {
	return c.task(ctx, http.MethodPost, snapshotPath(node, vmid, name, "/rollback"), nil)
}

// Snapshot is an entry of GET /nodes/{node}/qemu/{vmid}/snapshot. The last one is "current": the VM as it is now.
type Snapshot struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Parent      string `json:"parent"`    // the snapshot it was taken after, or ""
	Time        Int    `json:"snaptime"`  // Unix time; 0 for "current"
	Memory      Bool   `json:"vmstate"`   // holds the VM's memory
	State       string `json:"snapstate"` // "prepare" or "delete" while PVE is at work on it, or was interrupted
}

// Snapshots lists the snapshots of a VM.
func (c *Client) Snapshots(ctx context.Context, node string, vmid int) ([]Snapshot, error) {
	var out []Snapshot
	err := c.Call(ctx, http.MethodGet, vmPath(node, vmid, "/snapshot"), nil, &out)
	return out, err
}

// A Feature is something that the storages of all of a VM's disks have to be able to do.
type Feature string

// The features PVE can be asked about.
const (
	FeatureSnapshot Feature = "snapshot"
	FeatureClone    Feature = "clone" // a linked one
	FeatureCopy     Feature = "copy"  // a full clone
)

// HasFeature asks whether a VM, as it is now, can do that (GET /nodes/{node}/qemu/{vmid}/feature).
func (c *Client) HasFeature(ctx context.Context, node string, vmid int, f Feature) (bool, error) {
	var out struct {
		Has Bool `json:"hasFeature"`
	}
	err := c.Call(ctx, http.MethodGet, vmPath(node, vmid, "/feature"), url.Values{"feature": {string(f)}}, &out)
	return bool(out.Has), err
}

// Machine is a machine version that a node's QEMU can be.
type Machine struct {
	ID      string `json:"id"`      // "pc-q35-9.2+pve1"
	Type    string `json:"type"`    // "q35", "i440fx", ...
	Version string `json:"version"` // "9.2+pve1"
}

// Machines lists the machine versions of a node (GET /nodes/{node}/capabilities/qemu/machines), in no order to rely on.
func (c *Client) Machines(ctx context.Context, node string) ([]Machine, error) {
	var out []Machine
	err := c.Call(ctx, http.MethodGet, nodePath(node, "capabilities", "qemu", "machines"), nil, &out)
	return out, err
}

// snapshotPath is the path of a snapshot, or of something below it. A name cannot leave its place.
func snapshotPath(node string, vmid int, name, below string) string {
	return vmPath(node, vmid, "/snapshot/"+url.PathEscape(name)+below)
}
