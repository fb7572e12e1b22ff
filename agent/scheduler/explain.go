package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

const (
	// queued is how many decisions may wait for the journal.
	queued = 1024
	// explained is how many decisions about one VM are told.
	explained = 5
	// askFor is how long another agent may take to tell its decisions.
	askFor = 2 * time.Second
)

// String names the task.
func (s *Scheduler) String() string { return "scheduler" }

// Ready is closed when decisions are journaled.
func (s *Scheduler) Ready() <-chan struct{} { return s.ready }

// Run journals decisions until ctx ends. Nobody waits for that: a decision is only told.
func (s *Scheduler) Run(ctx context.Context) error {
	s.remember(ctx)
	close(s.ready)
	for {
		select {
		case d := <-s.noted:
			s.journal(ctx, s.drain(d))
		case <-ctx.Done():
			if rest := s.drain(); len(rest) > 0 {
				s.journal(ctx, rest)
			}
			return nil
		}
	}
}

// drain returns the decisions that wait.
func (s *Scheduler) drain(first ...ops.Decision) []ops.Decision {
	for {
		select {
		case d := <-s.noted:
			first = append(first, d)
		default:
			return first
		}
	}
}

func (s *Scheduler) journal(ctx context.Context, decisions []ops.Decision) {
	if err := s.cfg.Journal.Decide(decisions...); err != nil {
		s.cfg.Log.WarnContext(ctx, "decisions are not in the journal", "number", len(decisions), "err", err)
	}
}

// decided logs a decision and hands it to the journal.
func (s *Scheduler) decided(ctx context.Context, act, owner string, w placement.Want, d placement.Decision) {
	now := s.cfg.Now().UTC()
	p := s.placementOf(act, w, d)
	raw, err := protojson.Marshal(p)
	if err != nil { // what came as text that is no UTF-8
		s.cfg.Log.WarnContext(ctx, "a decision cannot be journaled", "name", w.Name, "err", err)
		return
	}
	message := w.Name + " goes to " + d.Node
	if d.Node == "" {
		message = w.Name + ": " + d.Refusal()
	}
	s.cfg.Log.InfoContext(ctx, "placed", "act", act, "name", w.Name, "node", d.Node, "policy", d.Policy, "warnings", d.Warnings)
	select {
	case s.noted <- ops.Decision{At: now, Subject: ops.Subject{Owner: owner, Name: w.Name}, Act: act, Message: message, Data: raw}:
	default:
		s.cfg.Log.WarnContext(ctx, "a decision is not journaled: too many wait for the disk", "name", w.Name)
	}
}

// placementOf is a decision as the node service tells it.
func (s *Scheduler) placementOf(act string, w placement.Want, d placement.Decision) *nodepb.Placement {
	p := &nodepb.Placement{
		Name: w.Name, DecidedBy: s.cfg.Node, Node: d.Node, Act: act, Policy: d.Policy, Scorer: d.Scorer, Wants: wishes(w), Warnings: d.Warnings,
	}
	if d.Node == "" {
		p.Refusal = d.Refusal()
	}
	for _, r := range d.Rows {
		row := &nodepb.PlacementRow{Node: r.Node, Fits: len(r.Reasons) == 0, Score: r.Score, MemoryFree: uint64(max(0, r.MemoryFree)), MemoryTotal: r.MemoryTotal}
		for _, reason := range r.Reasons {
			row.Reasons = append(row.Reasons, reason.Text)
		}
		row.Reasons = append(row.Reasons, r.Notes...)
		p.Rows = append(p.Rows, row)
	}
	return p
}

// wishes says in words what a VM needs.
func wishes(w placement.Want) string {
	parts := []string{fmt.Sprintf("%d CPUs", w.CPUs), fmt.Sprintf("%.1f GiB memory", float64(w.Memory)/(1<<30))}
	bytes := map[string]uint64{}
	for _, d := range w.Disks {
		bytes[d.Storage] += d.Bytes
	}
	for _, storage := range slices.Sorted(maps.Keys(bytes)) {
		parts = append(parts, fmt.Sprintf("%.1f GiB on %s", float64(bytes[storage])/(1<<30), storage))
	}
	if len(w.Bridges) > 0 {
		parts = append(parts, strings.Join(w.Bridges, ", "))
	}
	if w.Source != nil {
		parts = append(parts, "the "+w.Source.Name)
	}
	if w.OnlyWhy != "" {
		parts = append(parts, "only "+w.OnlyWhy)
	}
	return strings.Join(parts, ", ")
}

// Explain returns what agents have decided about a VM, the newest first, and the nodes whose agents could not be asked.
func (s *Scheduler) Explain(ctx context.Context, rq *nodepb.ExplainRequest) (*nodepb.ExplainResponse, error) {
	name := s.nameOf(rq.GetVm())
	resp := &nodepb.ExplainResponse{}
	var err error
	if resp.Placements, err = s.remembered(name); err != nil {
		return nil, fault.New(fault.Internal, "explain %s: %w", rq.GetVm(), err)
	}
	if rq.GetPart() {
		return resp, nil
	}
	s.askOthers(ctx, name, resp)
	slices.SortStableFunc(resp.Placements, func(a, b *nodepb.Placement) int { return cmp.Compare(a.GetAgeMs(), b.GetAgeMs()) })
	resp.Placements = resp.Placements[:min(len(resp.Placements), explained)]
	if len(resp.GetPlacements()) == 0 {
		return nil, fault.New(fault.NotFound, "explain %s: no agent that can be asked remembers a decision about it", rq.GetVm())
	}
	return resp, nil
}

// askOthers adds what the agents of other nodes have decided.
func (s *Scheduler) askOthers(ctx context.Context, name string, resp *nodepb.ExplainResponse) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards resp
	)
	for _, node := range s.others() {
		group.Go(func() {
			var part nodepb.ExplainResponse
			err := s.cfg.Call(ctx, node, nodepb.Node_Explain_FullMethodName, &nodepb.ExplainRequest{Vm: name, Part: true}, &part)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				resp.Silent = append(resp.Silent, node)
				return
			}
			resp.Placements = append(resp.Placements, part.GetPlacements()...)
		})
	}
	group.Wait()
	slices.Sort(resp.Silent)
}

func (s *Scheduler) others() []string {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return nil
	}
	var names []string
	for name := range world.Members.Nodes {
		if name != s.cfg.Node {
			names = append(names, name)
		}
	}
	return names
}

// nameOf is the name of the VM that a text means: a number, an id, or its name.
func (s *Scheduler) nameOf(text string) string {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return text
	}
	vmid, err := strconv.Atoi(text)
	if id, ierr := record.ParseID(text); err != nil && ierr == nil {
		vmid = id.VMID
	}
	if vm, ok := world.VMs[vmid]; ok && vm.Conf != nil {
		return vm.Conf.Name()
	}
	return text
}

// remembered are this node's newest decisions about the VM of a name.
func (s *Scheduler) remembered(name string) ([]*nodepb.Placement, error) {
	now := s.cfg.Now()
	var out []*nodepb.Placement
	var broken error
	err := s.cfg.Journal.Decisions(func(d ops.Decision) bool {
		if d.Subject.Name != name {
			return true
		}
		p := &nodepb.Placement{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(d.Data, p); err != nil {
			broken = err
			return false
		}
		p.AgeMs = max(0, now.Sub(d.At).Milliseconds())
		out = append(out, p)
		return len(out) < explained
	})
	return out, cmp.Or(err, broken)
}

// Try decides for a VM as Choose does, and keeps nothing.
func (s *Scheduler) Try(ctx context.Context, w placement.Want) (*nodepb.Placement, error) {
	decisions, err := s.Plan(ctx, []placement.Want{w})
	if err != nil {
		return nil, err
	}
	return s.placementOf("dry run", w, decisions[0]), nil
}
