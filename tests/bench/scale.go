package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// join is errors.Join, which also accepts one error and none.
func join(errs ...error) error { return errors.Join(errs...) }

// monitors judges what the storm has done to the VMs' QMP monitors, which are PVE's: how long one was held at most,
// and how often.
func (b *bench) monitors(r *rig.Rig, took time.Duration) {
	var longest time.Duration
	var most uint64
	for _, vmid := range r.Sim.VMIDs() {
		q, ok := r.Sim.QEMU(vmid)
		if !ok {
			continue
		}
		s := q.Stats()
		longest, most = max(longest, s.LongestHold), max(most, uint64(s.Sessions))
	}
	b.figure("longest hold of a QMP monitor under the Describe storm", float64(longest.Microseconds())/1000, 5, "ms")
	// One at first sight of the VM, then at most one in each 10 s.
	allowed := 1 + uint64(took/(10*time.Second)) + 1
	b.print("QMP sessions of the busiest VM", fmt.Sprint(most), fmt.Sprintf("<= %d in %.0f s", allowed, took.Seconds()), most <= allowed)
}

const (
	manyVMs = 1000
	lists   = 21
)

// scale measures an agent with many VMs on its node.
func (b *bench) scale(ctx context.Context) (err error) {
	r, err := cluster(ctx, manyVMs)
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	agent, err := b.startAgent(ctx, r, "pve1")
	if err != nil {
		return err
	}
	defer func() { err = join(err, agent.stop()) }()
	b.figure(fmt.Sprintf("READY after the start, %d VMs", manyVMs), float64(agent.ready.Milliseconds()), 300, "ms")
	ids, err := vmIDs(ctx, agent)
	if err != nil {
		return err
	}
	if len(ids) != manyVMs {
		return fmt.Errorf("%d VMs listed, want %d", len(ids), manyVMs)
	}
	var times []float64
	for range lists {
		begin := time.Now()
		if _, err := agent.client.ListVMs(ctx, &providerpb.ListVMsRequest{}); err != nil {
			return err
		}
		times = append(times, float64(time.Since(begin).Microseconds())/1000)
	}
	b.figure(fmt.Sprintf("ListVMs, %d VMs, median", manyVMs), median(times), 25, "ms")
	// As after a round of the manager's polls: every VM has been described.
	for _, id := range ids {
		if err := describe(ctx, agent.client, id); err != nil {
			return err
		}
	}
	mib, err := agent.residentMiB()
	if err != nil {
		return err
	}
	b.figure(fmt.Sprintf("resident memory, %d VMs described", manyVMs), mib, 64, "MiB")
	return nil
}
