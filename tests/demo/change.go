package main

import (
	"context"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// The VM is made with 2 vCPUs and room for more, and gets 4 and a data disk while it runs.
const (
	madeWith   = `{"CPU":2,"MemoryMiB":1024,"PerformanceProfile":{"CPUHotAddEnabled":true}}`
	changed    = `{"Name":"` + name + `","Class":{"CPU":4,"MemoryMiB":1024,"PerformanceProfile":{"CPUHotAddEnabled":true}},"Image":{},"Disks":[{"Name":"data","SizeGiB":1}],"Tags":["demo"]}`
	snapshot   = "before.the.change" // PVE takes no dots in a name
	cpusThen   = 4
	disksThen  = 2
	cpusBefore = 2
)

func (w *walk) takeSnapshot(ctx context.Context) (string, error) {
	r, err := w.agent.Provider.SnapshotCreate(ctx, &providerpb.SnapshotCreateRequest{VmId: w.id, NameHint: snapshot, Description: "of the demo"})
	if err != nil {
		return "", err
	}
	w.snapshot = r.GetSnapshotId()
	return fmt.Sprintf("%s, which PVE calls %s", snapshot, w.snapshot), w.await(ctx, r.GetTask())
}

func (w *walk) reconfigure(ctx context.Context) (string, error) {
	r, err := w.agent.Provider.Reconfigure(ctx, &providerpb.ReconfigureRequest{Id: w.id, DesiredJson: changed})
	if err != nil {
		return "", err
	}
	if r.GetTask().GetId() != "" {
		return "", fmt.Errorf("answered with task %s, which the manager takes for success", r.GetTask().GetId())
	}
	vm, err := w.listed(ctx)
	if err != nil {
		return "", err
	}
	if vm.GetCpu() != cpusThen || len(vm.GetDisks()) != disksThen {
		return "", fmt.Errorf("%d vCPUs and %d disks, want %d and %d", vm.GetCpu(), len(vm.GetDisks()), cpusThen, disksThen)
	}
	return fmt.Sprintf("%d vCPUs instead of %d, a data disk more", vm.GetCpu(), cpusBefore), nil
}

func (w *walk) reconfigureAgain(ctx context.Context) (string, error) {
	_, err := w.agent.Provider.Reconfigure(ctx, &providerpb.ReconfigureRequest{Id: w.id, DesiredJson: changed})
	return "nothing to do", err
}

func (w *walk) dropSnapshot(ctx context.Context) (string, error) {
	r, err := w.agent.Provider.SnapshotDelete(ctx, &providerpb.SnapshotDeleteRequest{VmId: w.id, SnapshotId: w.snapshot})
	if err != nil {
		return "", err
	}
	return "gone", w.await(ctx, r.GetTask())
}
