package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario"
)

// verbs are what stories can say in this world alone.
var verbs = map[string]func(w *World, ctx context.Context, args []string) error{
	"settle":    (*World).settle,   // see InRealTime
	"switch-on": (*World).switchOn, // VM NODE: switch the power on, through the agent of a node
}

// InRealTime changes a story for this world: to settle takes no longer than it has to.
func InRealTime(steps []scenario.Step) []scenario.Step {
	out := slices.Clone(steps)
	for i := range out {
		if out[i].Verb == "settle" {
			out[i].Verb = "settle here" // which the runner does not know, so that Do gets the line
		}
	}
	return out
}

// Times of agents that settling has to allow for.
const (
	leftAlone  = 62 * time.Second // what an abandoned claim has to be old for being removed, and a bit
	settleMost = 30 * time.Second // after the agents have started anew
	lookEvery  = 500 * time.Millisecond
)

// settle repairs everything and waits until nothing is under way. Agents clean up every ten minutes and when they start:
// if something is left after a minute, all are killed and started.
func (w *World) settle(ctx context.Context, _ []string) error {
	err := w.Heal(ctx)
	for _, node := range w.Nodes() {
		err = errors.Join(err, w.StartAgent(ctx, node))
	}
	if err == nil && w.awaitQuiet(ctx, leftAlone) != nil {
		for _, node := range w.Nodes() {
			err = errors.Join(err, w.KillAgent(ctx, node), w.StartAgent(ctx, node))
		}
		if err == nil {
			err = w.awaitQuiet(ctx, settleMost)
		}
	}
	w.note(err)
	return err
}

// awaitQuiet waits until nothing is unfinished; the error says what is.
func (w *World) awaitQuiet(ctx context.Context, most time.Duration) error {
	end := time.Now().Add(most)
	for {
		err := w.unfinished(ctx)
		if err == nil || time.Now().After(end) {
			return err
		}
		if err := w.Wait(ctx, lookEvery); err != nil {
			return err
		}
	}
}

// unfinished says what shows that something is under way: a VM that is not whole, a record without one, a node that is
// missing for another.
func (w *World) unfinished(ctx context.Context) error {
	if quorate := w.sim.Quorate(); len(quorate) != len(w.Nodes()) {
		return fmt.Errorf("only %s have quorum", quorate)
	}
	vms, err := w.sim.VMs()
	if err != nil {
		return err
	}
	ready, err := w.records()
	if err != nil {
		return err
	}
	for _, v := range vms {
		switch {
		case v.Template:
		case v.Lock != "":
			return fmt.Errorf("VM %d: locked (%s)", v.ID, v.Lock)
		case !ready[v.ID] && !strings.HasPrefix(v.Name, "stranger"):
			return fmt.Errorf("VM %d: no record", v.ID)
		}
		delete(ready, v.ID)
	}
	if len(ready) > 0 {
		return fmt.Errorf("records without VMs: %v", ready)
	}
	for _, node := range w.Nodes() {
		if err := w.seesAll(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// records returns the numbers of the VMs that there are records of; an error if one is not ready.
func (w *World) records() (map[int]bool, error) {
	dir := filepath.Join(w.sim.Tree(), "priv/pve-rigaud/vms")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ready := map[int]bool{}
	for _, e := range entries {
		var record struct {
			VMID  int
			State string
		}
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if rerr == nil {
			rerr = json.Unmarshal(b, &record)
		}
		if rerr == nil && record.State != "ready" {
			rerr = fmt.Errorf("%s: %s", e.Name(), record.State)
		}
		err = errors.Join(err, rerr)
		ready[record.VMID] = true
	}
	return ready, err
}

// seesAll returns an error if an agent does not reach another.
func (w *World) seesAll(ctx context.Context, node string) error {
	return w.call(ctx, node, func(ctx context.Context, c providerpb.ProviderClient) error {
		list, err := c.ListVMs(ctx, &providerpb.ListVMsRequest{})
		for _, v := range list.GetVms() {
			if v.GetProviderRaw()["stale"] == "true" {
				return fmt.Errorf("%s: %s is stale", node, v.GetName())
			}
		}
		return err
	})
}

// switchOn switches a VM on. The story names it by its number; agents know it by its id.
func (w *World) switchOn(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("want: switch-on VM NODE")
	}
	vms, err := w.sim.VMs()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(vms, func(v pvesim.VM) bool { return strconv.Itoa(v.ID) == args[0] && len(v.UUID) >= 8 })
	if i < 0 {
		return fmt.Errorf("no VM %s", args[0])
	}
	id := fmt.Sprintf("%d-%s", vms[i].ID, vms[i].UUID[:8])
	return w.call(ctx, args[1], func(ctx context.Context, c providerpb.ProviderClient) error {
		_, err := c.Power(ctx, &providerpb.PowerRequest{Id: id, Op: providerpb.PowerOp_POWER_OP_ON})
		return err
	})
}

// callTime is what a call has that is no part of the story.
const callTime = 10 * time.Second

func (w *World) call(ctx context.Context, node string, do func(context.Context, providerpb.ProviderClient) error) error {
	client, hangUp, err := w.Dial(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return errors.Join(do(ctx, client), hangUp())
}
