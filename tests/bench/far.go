package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// far measures what it costs to ask another node than the VM's own, over TLS as on a real cluster, and how soon a node
// whose agent is dead is reported.
func (b *bench) far(ctx context.Context) (err error) {
	sim := clusterConfig(stormVMs)
	sim.Nodes, sim.TLS = 3, true // every other VM runs: with three nodes, some on each
	r, err := rig.Start(ctx, rig.Config{Sim: sim})
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	near, err := b.startAgent(ctx, r, "pve1")
	if err != nil {
		return err
	}
	defer func() { err = join(err, near.stop()) }()
	other, err := b.startAgent(ctx, r, "pve2")
	if err != nil {
		return err
	}
	defer func() { err = join(err, other.killed()) }()
	here, there, err := byNode(ctx, near)
	if err != nil {
		return err
	}
	// Many callers share two processors with three processes instead of two, whatever a request costs.
	for _, at := range []struct {
		callers int
		bound   float64
	}{{1, 2.2}, {10, 3}} {
		if err := b.forwarded(ctx, near, at.callers, at.bound, here, there); err != nil {
			return err
		}
	}
	return b.dead(ctx, near, other, there[0])
}

// byNode returns the ids of the VMs that run on pve1 and pve2: what a Describe costs depends on that.
func byNode(ctx context.Context, p *process) (here, there []string, err error) {
	l, err := p.client.ListVMs(ctx, &providerpb.ListVMsRequest{})
	if err != nil {
		return nil, nil, err
	}
	for _, vm := range l.GetVms() {
		node, on := vm.GetProviderRaw()["node"], vm.GetPowerState() == "On"
		switch {
		case node == "pve2" && vm.GetProviderRaw()["stale"] != "":
			return nil, nil, fmt.Errorf("VM %s: the other agent was not reached", vm.GetId())
		case node == "pve1" && on:
			here = append(here, vm.GetId())
		case node == "pve2" && on:
			there = append(there, vm.GetId())
		}
	}
	if len(here) == 0 || len(there) == 0 {
		return nil, nil, fmt.Errorf("%d VMs on pve1, %d on pve2", len(here), len(there))
	}
	return here, there, nil
}

// forwarded loads one agent with Describe of its own and of the other node's VMs in turn.
func (b *bench) forwarded(ctx context.Context, agent *process, callers int, bound float64, here, there []string) error {
	var ratios []float64
	var shown sample
	for range rounds {
		local, err := load(ctx, agent.client, describe, callers, here)
		if err != nil {
			return err
		}
		far, err := load(ctx, agent.client, describe, callers, there)
		if err != nil {
			return err
		}
		ratios = append(ratios, float64(far.p50)/float64(local.p50))
		shown = far
	}
	b.ratio(fmt.Sprintf("Describe through the wrong node, %d callers: p50 (%s) of a local one's", callers, shown.p50.Round(time.Microsecond)), median(ratios), bound, false)
	return nil
}

// dead measures how long it takes to hear that the node of a VM does not answer: first of an agent that hangs, whose
// kernel goes on answering for it, then of one that is killed.
func (b *bench) dead(ctx context.Context, near, other *process, id string) error {
	for _, way := range []struct {
		what   string
		signal os.Signal
	}{{"hangs", syscall.SIGSTOP}, {"is killed", syscall.SIGKILL}} {
		if err := other.cmd.Process.Signal(way.signal); err != nil {
			return err
		}
		var began time.Time
		var err error
		for err == nil { // the signal takes its time
			began = time.Now()
			_, err = near.client.Describe(ctx, &providerpb.DescribeRequest{Id: id})
		}
		if status.Code(err) != codes.FailedPrecondition {
			return fmt.Errorf("describe a VM whose agent %s: %w", way.what, errors.Join(errors.New("want FailedPrecondition"), err))
		}
		b.figure("report that the owner's agent "+way.what, float64(time.Since(began).Microseconds())/1000, 1000, "ms")
	}
	return nil
}
