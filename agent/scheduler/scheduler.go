// Package scheduler decides on which node a VM is made: it puts together what is known of the nodes for package
// placement, remembers what it has placed until the nodes' own numbers show it, and tells why it decided so. On the node
// that was chosen it has the last word: it admits a VM, or sends the request elsewhere.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// refusalCounts is how long a node that would not have a VM is not asked for it again, and one that did not answer not
// for any.
const refusalCounts = 10 * time.Second

// Config configures a Scheduler. All of it must be set, but for what says otherwise.
type Config struct {
	Node     string
	Watcher  *pmxcfs.Watcher
	Settings placement.Settings

	Peers func() []cluster.Peer // the agents that gossip has seen
	// Digest and Facts are what this node has now.
	Digest func() view.Digest
	Facts  func() view.Facts
	// CPUs returns the host CPUs of a node, 0 when unknown.
	CPUs func(node string) int
	// Cordons returns the nodes that take no new VMs, and why, in words.
	Cordons func(ctx context.Context) (map[string]string, error)
	// Made returns the records of all VMs.
	Made func() ([]record.Record, error)
	// Call asks the agent of another node.
	Call    func(ctx context.Context, node, method string, req, resp proto.Message) error
	Journal *ops.Journal
	Now     func() time.Time // default time.Now
	Log     *slog.Logger
}

// Scheduler is a task of the agent. It is safe for concurrent use.
type Scheduler struct {
	cfg     Config
	ready   chan struct{}
	noted   chan ops.Decision
	room    room
	builder builder

	mu      sync.Mutex // guards the fields below
	placer  placement.Placer
	book    placement.Book
	refused map[string]map[string]refusal // by placing, by node
	silent  map[string]time.Time          // nodes that did not answer, and when
}

type refusal struct {
	at   time.Time
	text string
	full bool // for want of room
}

// counts says whether a refusal is still held against a node, by the age of what the node tells of its room.
func (r refusal) counts(told, now time.Time) bool {
	return now.Sub(r.at) < refusalCounts && (!r.full || !told.After(r.at.Add(time.Second)))
}

// New makes a Scheduler; nothing runs before Run.
func New(cfg Config) *Scheduler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Scheduler{
		cfg: cfg, ready: make(chan struct{}), noted: make(chan ops.Decision, queued), room: room{held: map[string]held{}},
		refused: map[string]map[string]refusal{}, silent: map[string]time.Time{},
	}
}

// Choose decides where a VM is made, and keeps room for it there until Answered. No node: the error says of each why,
// with reason Exhausted if all of them lack room, else Precondition.
func (s *Scheduler) Choose(ctx context.Context, p guest.Placing) (forward.Way, error) {
	now := s.cfg.Now()
	cordons, err := s.cfg.Cordons(ctx)
	if err != nil {
		return forward.Way{}, fault.New(fault.Precondition, "%s %s: %w", p.Kind, p.Want.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.Cancel(p.Key) // of an earlier choice, for the same VM
	c, err := s.lockedCluster(now, cordons)
	if err != nil {
		return forward.Way{}, fault.New(fault.Precondition, "%s %s: %w", p.Kind, p.Want.Name, err)
	}
	s.lockedRefusals(c.Nodes, p, now)
	w := p.Want
	w.Source = reachable(c.Nodes, p)
	d := s.placer.Place(c, w, s.cfg.Settings, now)
	if d.Node == "" {
		s.lockedDoubt(&d, c, w, now)
	}
	if d.Node == "" {
		blind(&d, c.Nodes, w, now)
	}
	s.decided(ctx, string(p.Kind), p.Owner, w, d)
	if d.Node == "" {
		reason := fault.Precondition
		if d.Exhausted() {
			reason = fault.Exhausted
		}
		return forward.Way{}, fault.New(reason, "%s %s: %s", p.Kind, w.Name, d.Refusal())
	}
	s.book.Reserve(p.Key, d.Node, w.Amount(d.Node), now)
	s.book.Identify(p.Key, w)
	return forward.Way{Node: p.Maker(d.Node), Note: p.Note(d.Node)}, nil
}

// doubts is how many nodes are asked that look full, before that is believed.
const doubts = 3

// lockedDoubt chooses a node that lacks memory only by what was placed there a moment ago, where no other fits: what the
// node has told may have that in it already. It has the last word.
func (s *Scheduler) lockedDoubt(d *placement.Decision, c placement.Cluster, w placement.Want, now time.Time) {
	asked := 0
	nodes := slices.Clone(c.Nodes)
	for i := range nodes {
		nodes[i].Reserved.Memory = 0
		if nodes[i].Refused != "" {
			asked++
		}
	}
	if asked >= doubts {
		return
	}
	again := s.placer.Place(placement.Cluster{Nodes: nodes, VMs: c.VMs}, w, s.cfg.Settings, now)
	if again.Node != "" {
		again.Warnings = append(again.Warnings, "node "+again.Node+" was chosen although it may be full with what was placed there a moment ago: no other fits")
		*d = again
	}
}

// blind chooses a node that has told nothing lately, where no other fits: PVE has it as online, and its agent has the
// last word. So it is after a start, and while gossip is cut off, where a refused Clone would be the end of it.
func blind(d *placement.Decision, nodes []placement.Node, w placement.Want, now time.Time) {
	for i, row := range d.Rows {
		age, told := nodes[i].State.DigestAge(now)
		if nodes[i].Silent != "" || told && age < view.Stale || len(row.Reasons) != 1 {
			continue
		}
		d.Node = row.Node
		if w.Source != nil {
			d.How = w.Source.Nodes[row.Node].How
		}
		d.Warnings = append(d.Warnings, "node "+row.Node+" was chosen although it "+row.Reasons[0].Text+": no other fits")
		return
	}
}

// reachable is the source without the nodes whose VMs would have to be made by an agent that cannot be asked.
func reachable(nodes []placement.Node, p guest.Placing) *placement.Source {
	if p.Want.Source == nil {
		return nil
	}
	silent := map[string]string{}
	for _, n := range nodes {
		silent[n.Name] = n.Silent
	}
	source := *p.Want.Source
	source.Nodes, source.Why = map[string]placement.Reach{}, map[string]string{}
	for node, why := range p.Want.Source.Why {
		source.Why[node] = why
	}
	for node, reach := range p.Want.Source.Nodes {
		if maker := p.Maker(node); maker != node && silent[maker] != "" {
			source.Why[node] = "cannot get " + source.Name + ": it is on node " + maker + ", which " + silent[maker]
			continue
		}
		source.Nodes[node] = reach
	}
	return &source
}

// lockedRefusals tells of the nodes that would not have this VM a moment ago.
func (s *Scheduler) lockedRefusals(nodes []placement.Node, p guest.Placing, now time.Time) {
	for i := range nodes {
		if r, ok := s.refused[p.Key][nodes[i].Name]; ok && r.counts(nodes[i].State.DigestAt, now) {
			nodes[i].Refused, nodes[i].Full = r.text, r.full
		}
	}
}

// Answered is told what became of a choice.
func (s *Scheduler) Answered(ctx context.Context, way forward.Way, err error) {
	node, key := guest.ReadNote(way.Note)
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	hint, elsewhere := forward.IsElsewhere(err)
	down := unanswered(err)
	switch {
	case err == nil || mayGoOn(err):
		s.book.Settle(key, now)
		delete(s.refused, key)
	case down != nil && down.Sent: // it may be made there
	case down != nil:
		s.book.Cancel(key)
		s.silent[way.Node] = now
	case elsewhere && hint == "":
		s.book.Cancel(key)
		s.lockedRefuse(key, node, refused(err, way.Node, now))
	default:
		s.book.Cancel(key)
	}
	s.cfg.Log.DebugContext(ctx, "placed", "key", key, "node", node, "by", way.Node, "err", err)
}

// refused is what a node answered that would not have a VM.
func refused(err error, by string, now time.Time) refusal {
	if lacks, full := forward.IsFull(err); full {
		return refusal{at: now, text: lacks, full: true}
	}
	return refusal{at: now, text: strings.TrimPrefix(status.Convert(err).Message(), by+": ")}
}

func (s *Scheduler) lockedRefuse(key, node string, r refusal) {
	for k, nodes := range s.refused { // of VMs that nobody asks for any more
		for n, old := range nodes {
			if r.at.Sub(old.at) >= refusalCounts {
				delete(nodes, n)
			}
		}
		if len(nodes) == 0 {
			delete(s.refused, k)
		}
	}
	if s.refused[key] == nil {
		s.refused[key] = map[string]refusal{}
	}
	s.refused[key][node] = r
}

// mayGoOn reports whether an error leaves open that the VM is being made.
func mayGoOn(err error) bool {
	_, elsewhere := forward.IsElsewhere(err)
	code := status.Code(err)
	return !elsewhere && unanswered(err) == nil && (code == codes.Aborted || code == codes.DeadlineExceeded || code == codes.Canceled)
}

// Plan decides for several VMs one after the other, as if each were on its node then. Nothing is kept of it.
func (s *Scheduler) Plan(ctx context.Context, wants []placement.Want) ([]placement.Decision, error) {
	now := s.cfg.Now()
	cordons, err := s.cfg.Cordons(ctx)
	if err != nil {
		return nil, fault.New(fault.Precondition, "plan: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]placement.Decision, len(wants))
	for i, w := range wants {
		c, err := s.lockedCluster(now, cordons)
		if err != nil {
			return nil, fault.New(fault.Precondition, "plan: %w", err)
		}
		out[i] = s.placer.Place(c, w, s.cfg.Settings, now)
		if node := out[i].Node; node != "" {
			key := fmt.Sprintf("plan/%d", i)
			s.book.Reserve(key, node, w.Amount(node), now)
			s.book.Identify(key, w)
			defer s.book.Cancel(key)
		}
	}
	return out, nil
}
