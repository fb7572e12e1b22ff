package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

const (
	stormVMs = 50
	rounds   = 9                      // odd: the median is one of them
	slice    = 400 * time.Millisecond // of load on one server before the other has its turn
)

// cluster starts one simulated node with VMs of the fake QEMU, and /etc/pve as slow as pmxcfs where FUSE can be mounted.
func cluster(ctx context.Context, vms int) (*rig.Rig, error) {
	return rig.Start(ctx, rig.Config{Sim: clusterConfig(vms)})
}

func clusterConfig(vms int) pvesim.Config {
	sim := pvesim.Config{Nodes: 1, VMs: vms, QEMU: pvesim.Fake, PMXCFS: pvesim.Dir}
	if _, err := os.Stat("/dev/fuse"); err == nil && os.Geteuid() == 0 {
		sim.PMXCFS, sim.ReadDelay = pvesim.FUSE, 300*time.Microsecond
	} else {
		fmt.Println("/etc/pve is a plain directory here, faster than pmxcfs: FUSE needs root and /dev/fuse")
	}
	return sim
}

// request is one call of a server, for the VM with that id.
type request func(ctx context.Context, c providerpb.ProviderClient, id string) error

func validate(ctx context.Context, c providerpb.ProviderClient, _ string) error {
	_, err := c.Validate(ctx, &providerpb.ValidateRequest{})
	return err
}

func describe(ctx context.Context, c providerpb.ProviderClient, id string) error {
	d, err := c.Describe(ctx, &providerpb.DescribeRequest{Id: id})
	if err == nil && !d.GetExists() {
		err = fmt.Errorf("VM %s is said not to exist", id)
	}
	return err
}

// storm loads the agent and the constant server in turn with Describe and Validate.
func (b *bench) storm(ctx context.Context) (err error) {
	r, err := cluster(ctx, stormVMs)
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	agent, err := b.startAgent(ctx, r, "pve1")
	if err != nil {
		return err
	}
	defer func() { err = join(err, agent.stop()) }()
	addr, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	constant, err := start(ctx, addr, insecure.NewCredentials(), r.Dir, os.Args[0], constantCommand, addr)
	if err != nil {
		return err
	}
	defer func() { _ = constant.stop() }() // it ends by our signal
	ids, err := vmIDs(ctx, agent)
	if err != nil {
		return err
	}
	begin := time.Now()
	for _, kind := range []struct {
		name string
		do   request
	}{{"Describe", describe}, {"Validate", validate}} {
		for _, callers := range []int{1, 10, 50} {
			if err := b.compare(ctx, fmt.Sprintf("%s, %d callers", kind.name, callers), agent, constant, kind.do, callers, ids); err != nil {
				return err
			}
		}
	}
	b.monitors(r, time.Since(begin))
	return nil
}

func vmIDs(ctx context.Context, p *process) ([]string, error) {
	l, err := p.client.ListVMs(ctx, &providerpb.ListVMsRequest{})
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(l.GetVms()))
	for _, vm := range l.GetVms() {
		ids = append(ids, vm.GetId())
	}
	return ids, nil
}

// compare loads the two servers in turn and judges the medians of the rounds' ratios.
func (b *bench) compare(ctx context.Context, what string, agent, constant *process, do request, callers int, ids []string) error {
	var latency, throughput []float64
	var shown sample
	for range rounds {
		a, err := load(ctx, agent.client, do, callers, ids)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		c, err := load(ctx, constant.client, do, callers, ids)
		if err != nil {
			return fmt.Errorf("%s: constant server: %w", what, err)
		}
		latency = append(latency, float64(a.p50)/float64(c.p50))
		throughput = append(throughput, a.perSecond/c.perSecond)
		shown = a
	}
	b.ratio(fmt.Sprintf("%s: p50 (%s) of a constant answer's", what, shown.p50.Round(time.Microsecond)), median(latency), 1.5, false)
	b.ratio(fmt.Sprintf("%s: calls/s (%.0f) of a constant answer's", what, shown.perSecond), median(throughput), 0.6, true)
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// sample is what one slice of load showed.
type sample struct {
	p50       time.Duration
	perSecond float64
}

// load calls a server from so many callers at once for one slice.
func load(ctx context.Context, c providerpb.ProviderClient, do request, callers int, ids []string) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	times := make([][]time.Duration, callers)
	errs := make([]error, callers)
	begin := time.Now()
	end := begin.Add(slice)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := i; ; n++ {
				t := time.Now()
				if t.After(end) {
					return
				}
				if errs[i] = do(ctx, c, ids[n%len(ids)]); errs[i] != nil {
					cancel()
					return
				}
				times[i] = append(times[i], time.Since(t))
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	all := slices.Concat(times...)
	if err := join(errs...); err != nil || len(all) == 0 {
		return sample{}, err
	}
	slices.Sort(all)
	return sample{p50: all[len(all)/2], perSecond: float64(len(all)) / took.Seconds()}, nil
}
