package drain

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// The states of a Move, as nodepb has them.
const (
	planned = "planned"
	moving  = "moving"
	moved   = "moved"
	failed  = "failed"
	stays   = "stays"
)

// Move is what is to become of one VM, and what has.
type Move struct {
	VMID    int
	ID      string // "<vmid>-<first 8 digits of its SMBIOS uuid>"; "" of a container
	Name    string
	From    string
	To      string `json:",omitempty"` // "" if it stays
	State   string
	Reason  string `json:",omitempty"`
	HA      bool   `json:",omitempty"`
	Running bool   `json:",omitempty"`
	Memory  uint64 `json:",omitempty"` // bytes
	Took    int64  `json:",omitempty"` // ms
	Tries   int    `json:",omitempty"`
	// Avoid are the nodes that have failed it, and why.
	Avoid map[string]string `json:",omitempty"`
}

// open reports whether there is still something to be done.
func (m Move) open() bool { return m.State == planned || m.State == moving }

// proposal is a plan, and what it does not touch.
type proposal struct {
	moves   []Move
	stopped int    // VMs that are left because they do not run
	drawn   []Move // VMs that HA may bring back at once
	choices []choice
}

// notes are what else there is to know of a plan, in words.
func (p proposal) notes() string {
	var notes []string
	if p.stopped > 0 {
		notes = append(notes, fmt.Sprintf("VMs that do not run, and stay: %d", p.stopped))
	}
	for _, m := range p.drawn {
		notes = append(notes, fmt.Sprintf("HA prefers node %s for VM %d and may bring it back at once; to prevent that: ha-manager crm-command node-maintenance enable %s", m.From, m.VMID, m.From))
	}
	return strings.Join(notes, "; ")
}

// draws reports whether HA's rules prefer the node that a VM is on to all others.
func draws(world *pmxcfs.World, vm *pmxcfs.VM) bool {
	nodes, _, _, ok := world.HA.Allowed(vm.ID)
	here, named := nodes[vm.Node]
	if !ok || !named || !world.HA.Managed(vm.ID) || world.HA.Maintenance(vm.Node) {
		return false
	}
	for node, priority := range nodes {
		if node != vm.Node && priority >= here {
			return false
		}
	}
	return true
}

// choice is a decision of a plan.
type choice struct {
	want     placement.Want
	decision placement.Decision
}

// decided writes down what was decided in a plan that is carried out.
func (d *Drainer) decided(ctx context.Context, act ops.Kind, p proposal) {
	for _, c := range p.choices {
		d.cfg.Scheduler.Decided(ctx, string(act), d.cfg.Client(ctx), c.want, c.decision)
	}
}

// obstacles are the VMs of a plan that could not be moved. Containers are nobody's to move, and in the way of no plan.
func (p proposal) obstacles() []Move {
	return slices.DeleteFunc(slices.Clone(p.moves), func(m Move) bool { return m.State != stays || m.ID == "" })
}

// refusal says which VMs keep a plan from being carried out.
func (p proposal) refusal(node string) string {
	var lines []string
	for _, m := range p.obstacles() {
		lines = append(lines, fmt.Sprintf("VM %d (%s) stays: %s", m.VMID, m.Name, m.Reason))
	}
	return fmt.Sprintf("node %s cannot be emptied, nothing was begun: %s. With --force the others are moved", node, strings.Join(lines, "; "))
}

// order is the one in which VMs are placed and moved: what is hard to place comes first.
func order(a, b Move) int {
	return cmp.Or(cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.VMID, b.VMID))
}

// propose plans what a drain of this node moves where. What is in done is left alone.
func (d *Drainer) propose(ctx context.Context, world *pmxcfs.World, withStopped bool, done map[int]bool) (proposal, error) {
	var (
		p     proposal
		wants = map[int]placement.Want{}
	)
	for _, id := range slices.Sorted(maps.Keys(world.VMs)) {
		vm := world.VMs[id]
		if vm.Node != d.cfg.Node || done[id] {
			continue
		}
		if vm.Type != pmxcfs.TypeQEMU {
			p.moves = append(p.moves, Move{VMID: id, From: vm.Node, State: stays, Reason: "it is a container"})
			continue
		}
		running := d.cfg.Running(id)
		if vm.Conf.Template() || !running && !withStopped {
			if !vm.Conf.Template() {
				p.stopped++
			}
			continue
		}
		m := newMove(world, vm, running)
		want, err := d.want(ctx, vm, running)
		if err != nil {
			return p, err
		}
		m.Memory = want.Memory
		if m.Reason = d.cfg.Immovable(vm.Conf, world.Storages, running); m.Reason != "" {
			m.State = stays
		}
		wants[id] = want
		p.moves = append(p.moves, m)
		if draws(world, vm) {
			p.drawn = append(p.drawn, m)
		}
	}
	p.moves = append(p.moves, d.unread(world, done)...)
	return p, d.target(ctx, &p, wants)
}

// unread are the guests of this node of whose configs nothing is known.
func (d *Drainer) unread(world *pmxcfs.World, done map[int]bool) (moves []Move) {
	for id, err := range world.Unread {
		if _, known := world.VMs[id]; !known && !done[id] && strings.Contains(err.Error(), "/nodes/"+d.cfg.Node+"/") {
			moves = append(moves, Move{VMID: id, From: d.cfg.Node, State: stays, Reason: fmt.Sprintf("its config cannot be read: %v", err), ID: "?"})
		}
	}
	return moves
}

func newMove(world *pmxcfs.World, vm *pmxcfs.VM, running bool) Move {
	return Move{
		VMID: vm.ID, ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String(), Name: vm.Conf.Name(), From: vm.Node,
		State: planned, HA: world.HA.Managed(vm.ID), Running: running,
	}
}

// want is what a VM needs of its new node. One that does not run needs no memory.
func (d *Drainer) want(ctx context.Context, vm *pmxcfs.VM, running bool) (placement.Want, error) {
	w, err := d.cfg.Scheduler.WantOf(ctx, vm)
	if err != nil {
		return w, fmt.Errorf("what VM %d needs: %w", vm.ID, err)
	}
	w.Current = vm.Node
	if !running {
		w.Memory = 0
	}
	return w, nil
}

// target gives the moves that are planned their targets, the largest first; those that fit nowhere stay.
func (d *Drainer) target(ctx context.Context, p *proposal, wants map[int]placement.Want) error {
	slices.SortFunc(p.moves, order)
	var (
		which []int
		list  []placement.Want
	)
	for i, m := range p.moves {
		if m.State == planned {
			which, list = append(which, i), append(list, wants[m.VMID])
		}
	}
	if len(list) == 0 {
		return nil
	}
	decisions, err := d.cfg.Scheduler.Plan(ctx, list)
	if err != nil {
		return fmt.Errorf("plan where VMs of node %s go: %w", d.cfg.Node, err)
	}
	for i, decision := range decisions {
		p.moves[which[i]].decide(decision)
		p.choices = append(p.choices, choice{list[i], decision})
	}
	return nil
}

func (m *Move) decide(decision placement.Decision) {
	m.To = decision.Node
	if m.To == "" {
		m.State, m.Reason = stays, decision.Refusal()
	}
}

// again plans one VM anew after a node has failed it. What is still to be moved counts as if it were where it goes.
func (d *Drainer) again(ctx context.Context, vm *pmxcfs.VM, m Move, others []Move) (placement.Decision, error) {
	world, err := d.refresh(ctx)
	if err != nil {
		return placement.Decision{}, err
	}
	var wants []placement.Want
	for _, o := range others {
		other := world.VMs[o.VMID]
		if !o.open() || o.VMID == m.VMID || other == nil || other.Node == o.To {
			continue
		}
		w, err := d.want(ctx, other, o.Running)
		if err != nil {
			return placement.Decision{}, err
		}
		w.Only = []string{o.To}
		wants = append(wants, w)
	}
	w, err := d.want(ctx, vm, m.Running)
	if err != nil {
		return placement.Decision{}, err
	}
	w.Never = maps.Clone(w.Never)
	for node, why := range m.Avoid {
		if w.Never == nil {
			w.Never = map[string]string{}
		}
		w.Never[node] = why
	}
	decisions, err := d.cfg.Scheduler.Plan(ctx, append(wants, w))
	if err != nil {
		return placement.Decision{}, err
	}
	last := decisions[len(decisions)-1]
	d.decided(ctx, ops.Drain, proposal{choices: []choice{{w, last}}})
	return last, nil
}

// filterCordoned is the filter of placement that a node which gets its VMs back passes once its cordon is lifted.
const filterCordoned = "cordoned"

// comeBack plans which VMs come back to this node. The cordon, which is to be lifted or has just been, is looked through.
func (d *Drainer) comeBack(ctx context.Context, world *pmxcfs.World) (proposal, error) {
	var p proposal
	list, err := d.cfg.Cordons.Moved(d.cfg.Node)
	if err != nil {
		return p, err
	}
	wants := map[int]placement.Want{}
	for _, was := range list {
		vm := world.VMs[was.VMID]
		if vm == nil || vm.Type != pmxcfs.TypeQEMU || record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String() != was.ID || vm.Node == d.cfg.Node {
			continue // it is gone, or here
		}
		m := newMove(world, vm, was.Running)
		want, err := d.want(ctx, vm, was.Running)
		if err != nil {
			return p, err
		}
		want.Only, want.OnlyWhy = []string{d.cfg.Node}, "the restore of node "+d.cfg.Node
		m.Memory, wants[was.VMID] = want.Memory, want
		if m.Reason = d.cfg.Immovable(vm.Conf, world.Storages, was.Running); m.Reason != "" {
			m.State = stays
		}
		p.moves = append(p.moves, m)
	}
	return p, d.lookThrough(ctx, &p, wants)
}

// lookThrough is target for a node whose cordon is lifted, or going to be: the others may not have heard of it yet.
func (d *Drainer) lookThrough(ctx context.Context, p *proposal, wants map[int]placement.Want) error {
	slices.SortFunc(p.moves, order)
	var taken int64
	for i := range p.moves {
		m := &p.moves[i]
		if m.State != planned {
			continue
		}
		decisions, err := d.cfg.Scheduler.Plan(ctx, []placement.Want{wants[m.VMID]})
		if err != nil {
			return fmt.Errorf("plan what comes back to node %s: %w", d.cfg.Node, err)
		}
		decision := uncordoned(decisions[0], d.cfg.Node)
		row := rowOf(decision, d.cfg.Node)
		switch {
		case len(row.Reasons) > 0:
			m.State, m.Reason = stays, d.cfg.Node+" "+row.Reasons[0].Text
		case int64(m.Memory)+taken > row.MemoryFree:
			m.State, m.Reason = stays, d.cfg.Node+" has no memory left for it after the others"
		default:
			m.To, decision.Node = d.cfg.Node, d.cfg.Node
			taken += int64(m.Memory)
		}
		p.choices = append(p.choices, choice{wants[m.VMID], decision})
	}
	return nil
}

// uncordoned is a decision as it would be if a node had no cordon.
func uncordoned(d placement.Decision, node string) placement.Decision {
	d.Rows = slices.Clone(d.Rows)
	for i := range d.Rows {
		if r := &d.Rows[i]; r.Node == node {
			r.Reasons = slices.DeleteFunc(slices.Clone(r.Reasons), func(r placement.Reason) bool { return r.Filter == filterCordoned })
		}
	}
	return d
}

func rowOf(d placement.Decision, node string) placement.Row {
	for _, r := range d.Rows {
		if r.Node == node {
			return r
		}
	}
	return placement.Row{Node: node, Reasons: []placement.Reason{{Text: "is not known"}}}
}
