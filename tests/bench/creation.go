package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const creates = 15

// creation measures what Create adds to the PVE tasks it waits for: everything but the clone and the resize.
func (b *bench) creation(ctx context.Context) (err error) {
	r, err := cluster(ctx, 2)
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	agent, err := b.startAgent(ctx, r, "pve1")
	if err != nil {
		return err
	}
	defer func() { err = join(err, agent.stop()) }()
	var own []float64
	clock := watchTasks(r.Sim)
	for i := range creates {
		clock.reset()
		begin := time.Now()
		if err := createAndWait(ctx, agent.client, fmt.Sprintf("bench-%d", i)); err != nil {
			return err
		}
		took := time.Since(begin)
		own = append(own, float64((took-clock.total()).Microseconds())/1000)
	}
	b.figure("Create beyond the PVE tasks it waits for, median", median(own), 50, "ms")
	return nil
}

// taskClock adds up how long PVE's tasks work.
type taskClock struct {
	mu    sync.Mutex // guards what follows
	began map[*pvesim.Task]time.Time
	sum   time.Duration
}

func watchTasks(sim *pvesim.Cluster) *taskClock {
	c := &taskClock{began: map[*pvesim.Task]time.Time{}}
	sim.BeforeTask(func(t *pvesim.Task) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.began[t] = time.Now()
	})
	sim.AfterTask(func(t *pvesim.Task) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sum += time.Since(c.began[t])
		delete(c.began, t)
	})
	return c
}

func (c *taskClock) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum = 0
}

func (c *taskClock) total() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

// createAndWait returns when the VM is made. The wait inside the agent ends with the operation; a create that takes
// longer is polled.
func createAndWait(ctx context.Context, c providerpb.ProviderClient, name string) error {
	made, err := c.Create(ctx, &providerpb.CreateRequest{
		Name: name, ClassJson: payloads.MinimalClass, ImageJson: payloads.Image, NetworksJson: payloads.NoNetworks, DisksJson: payloads.NoDisks,
	})
	if err != nil {
		return err
	}
	for made.GetTask().GetId() != "" {
		st, err := c.TaskStatus(ctx, &providerpb.TaskStatusRequest{Task: made.GetTask()})
		if err != nil {
			return err
		}
		if st.GetError() != "" {
			return errors.New(st.GetError())
		}
		if st.GetDone() {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
