package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// decisions is how often placement is asked.
const decisions = 101

// placing measures what it adds to a Create that its node is chosen: what the VM needs, what is known of three nodes with
// many VMs, and the choice. It is asked for the choice alone, so a call over a unix socket is in the figure as well.
func (b *bench) placing(ctx context.Context) (err error) {
	sim := clusterConfig(manyVMs)
	sim.Nodes, sim.Memory = 3, 1<<40
	r, err := rig.Start(ctx, rig.Config{Sim: sim})
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	var first *process
	for _, n := range r.Sim.Nodes() {
		agent, err := b.startAgent(ctx, r, n.Name)
		if err != nil {
			return err
		}
		defer func() { _ = agent.stop() }() // it ends by our signal
		if first == nil {
			first = agent
		}
	}
	chosen, err := choices(ctx, r.Sim.Nodes()[0].Socket)
	if err != nil {
		return err
	}
	var whole []float64
	for i := range creates {
		begin := time.Now()
		if err := createAndWait(ctx, first.client, fmt.Sprintf("placed-%d", i)); err != nil {
			return err
		}
		whole = append(whole, float64(time.Since(begin).Microseconds()))
	}
	took, of := median(chosen), median(whole)
	what := fmt.Sprintf("choose the node of a Create, 3 nodes, %d VMs (%.1f %%)", manyVMs, 100*took/of)
	b.figure(what, took, 5000, "us")
	return nil
}

// choices asks an agent where a VM of the template would go, when it knows all nodes, and returns how long each answer
// took in microseconds.
func choices(ctx context.Context, socket string) ([]float64, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // nothing is lost with it
	client := nodepb.NewNodeClient(conn)
	rq := &nodepb.PlaceRequest{Name: "bench", Image: fmt.Sprint(pvesim.TemplateID), Cpus: 2, Memory: 4 << 30}
	var took []float64
	for len(took) < decisions {
		begin := time.Now()
		resp, err := client.Place(ctx, rq)
		if err != nil {
			return nil, err
		}
		if p := resp.GetPlacement(); p.GetNode() == "" || len(p.GetRows()) != 3 {
			return nil, errors.New("placed nowhere: " + p.GetRefusal())
		}
		took = append(took, float64(time.Since(begin).Microseconds()))
	}
	return took, nil
}
