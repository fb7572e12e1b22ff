package guest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// removeVolumes deletes those of the given volumes that PVE has left behind.
func (g *Guests) removeVolumes(ctx context.Context, vmid int, vols []string) error {
	left, err := g.leftVolumes(ctx, vmid, vols)
	if err == nil {
		left, err = g.unused(ctx, vmid, left)
	}
	if err != nil {
		return err
	}
	for _, volume := range left {
		err := ops.Retry(ctx, passing, func(ctx context.Context) error {
			u, err := g.cfg.PVE.DeleteVolume(ctx, g.cfg.Node, volume)
			if err != nil || u == "" {
				return err
			}
			return g.cfg.PVE.Wait(ctx, u)
		})
		if err != nil && pve.KindOf(err) != pve.KindNoVolume {
			return explain(fmt.Sprintf("delete VM %d: delete its volume %s", vmid, volume), err)
		}
	}
	return nil
}

// leftVolumes asks each storage once which of the volumes are still there.
func (g *Guests) leftVolumes(ctx context.Context, vmid int, vols []string) ([]string, error) {
	byStorage := map[string][]string{}
	for _, v := range vols {
		storage, _, _ := strings.Cut(v, ":")
		byStorage[storage] = append(byStorage[storage], v)
	}
	var left []string
	for storage, want := range byStorage {
		var there []pve.Volume
		err := ops.Retry(ctx, passing, func(ctx context.Context) (err error) {
			there, err = g.cfg.PVE.Content(ctx, g.cfg.Node, storage, pve.ContentQuery{VMID: vmid})
			return err
		})
		if pve.KindOf(err) == pve.KindNoStorage {
			continue // gone with everything on it
		}
		if err != nil {
			return nil, explain(fmt.Sprintf("delete VM %d: look for its volumes on %s", vmid, storage), err)
		}
		for _, v := range there {
			if slices.Contains(want, v.VolID) {
				left = append(left, v.VolID)
			}
		}
	}
	return left, nil
}

// unused returns the volumes that nobody can have a claim on. Another machine may have the number by now, and PVE gives
// its disks the same names, even before its config names them (a restore): then none of them is touched.
func (g *Guests) unused(ctx context.Context, vmid int, vols []string) ([]string, error) {
	if len(vols) == 0 {
		return nil, nil
	}
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		return nil, fault.New(fault.Precondition, "delete VM %d: see whether its volumes are in use: %w", vmid, err)
	}
	world, err := g.cfg.Watcher.World()
	if err == nil {
		err = world.Unread[vmid]
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "delete VM %d: see whether its volumes are in use: %w", vmid, err)
	}
	if world.Has(vmid) {
		return nil, nil
	}
	return slices.DeleteFunc(vols, func(volume string) bool {
		for _, vm := range world.VMs {
			if vm.Conf != nil && strings.Contains(string(vm.Conf.Bytes()), volume) {
				return true
			}
		}
		return false
	}), nil
}
