package scheduler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/capacity"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

const (
	// startsWithin is how long a VM that was made counts although it does not run: whoever has it made starts it next.
	startsWithin = 10 * time.Minute
	// guestWithin is how long room is kept for a VM that is made on another node.
	guestWithin = time.Hour
)

// room is what is kept on this node for VMs that its own numbers do not show.
type room struct {
	deciding sync.Mutex // held while it is decided whether there is room: of two VMs the second sees the first

	mu   sync.Mutex // guards held
	held map[string]held
}

func size(w placement.Want) capacity.Size {
	return capacity.Size{Memory: w.Memory, VCPUs: uint32(max(0, w.CPUs))}
}

// Making are the VMs for which room is kept here, for this node's capacity.
func (s *Scheduler) Making() []capacity.Making {
	kept := s.kept("")
	out := make([]capacity.Making, 0, len(kept))
	for _, h := range kept {
		out = append(out, capacity.Making{VMID: h.vmid, Size: size(h.want)})
	}
	return out
}

// kept are the VMs for which room is kept here, without the one of a key.
func (s *Scheduler) kept(without string) []held {
	now := s.cfg.Now()
	world, err := s.cfg.Watcher.World()
	if err != nil {
		world = nil
	}
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	out := make([]held, 0, len(s.room.held))
	for key, h := range s.room.held {
		if h.over(world, now) {
			delete(s.room.held, key)
			continue
		}
		s.room.held[key] = h
		if key != without {
			out = append(out, h)
		}
	}
	return out
}

// Admit keeps room for a VM on a node, this one or another, if there is some; see guest.Admission.
func (s *Scheduler) Admit(ctx context.Context, node, key string, w placement.Want) error {
	var err error
	if node == s.cfg.Node {
		err = s.admit(ctx, key, w, held{})
	} else {
		err = s.admitThere(ctx, node, key, w)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.Settle(key, s.cfg.Now()) // if it was placed from here: what the node tells next has it in it
	return nil
}

// admitThere asks the agent of another node to keep room.
func (s *Scheduler) admitThere(ctx context.Context, node, key string, w placement.Want) error {
	rq := &peerpb.AdmitRequest{Key: key, Memory: w.Memory, Cpus: uint32(max(0, w.CPUs)), Name: w.Name}
	err := s.cfg.Call(ctx, node, peerpb.Peer_Admit_FullMethodName, rq, &peerpb.AdmitResponse{})
	if err == nil {
		return nil
	}
	if lacks, full := forward.IsFull(err); full {
		return cannot(node, w, fault.Exhausted, lacks)
	}
	return fault.MovedTo("", "%w", err)
}

// cannot is the answer of a node that would not have a VM.
func cannot(node string, w placement.Want, reason fault.Reason, why string) error {
	return fault.MovedTo("", "node %s cannot take %s: %w", node, w.Name, fault.New(reason, "%s", why))
}

// admit is Admit for this node. What is new in held is when it ends, and whether the VM comes from elsewhere.
func (s *Scheduler) admit(ctx context.Context, key string, w placement.Want, h held) error {
	cordons, err := s.cfg.Cordons(ctx)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", w.Name, err)
	}
	s.room.deciding.Lock()
	defer s.room.deciding.Unlock()
	reasons, err := s.against(key, w, cordons)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", w.Name, err)
	}
	if was, again := s.room.get(key); again {
		h.vmid, h.seen, h.made, h.name, h.others = was.vmid, was.seen, was.made, was.name, was.others
		reasons = slices.DeleteFunc(reasons, func(r placement.Reason) bool { return r.Filter != "cordoned" }) // it has its room
	}
	if len(reasons) > 0 {
		return cannot(s.cfg.Node, w, reasonOf(reasons), words(reasons))
	}
	h.want = w
	s.room.keep(key, h)
	return nil
}

// against are the reasons against a VM on this node. The agent that has chosen it may have seen nothing yet of the VMs that
// came here, or come here, by way of others: so policies are asked again, too.
func (s *Scheduler) against(key string, w placement.Want, cordons map[string]string) ([]placement.Reason, error) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.lockedKnown(now, cordons)
	if err != nil {
		return nil, err
	}
	here := slices.Index(s.builder.names, s.cfg.Node)
	coming := s.kept(key)
	c.VMs = slices.DeleteFunc(slices.Clone(c.VMs), func(vm placement.VM) bool { // one that is half made has not its tags yet
		return slices.ContainsFunc(coming, func(h held) bool { return h.vmid == vm.ID })
	})
	for _, h := range coming {
		c.VMs = append(c.VMs, placement.VM{Node: here, Tags: h.want.Tags, Pool: h.want.Pool, ID: h.vmid, Name: h.want.Name})
	}
	return s.placer.Place(c, w, s.cfg.Settings, now).Rows[here].Reasons, nil
}

// reasonOf is Exhausted if there is a lack of room and nothing else.
func reasonOf(reasons []placement.Reason) fault.Reason {
	if slices.ContainsFunc(reasons, func(r placement.Reason) bool { return !r.Capacity }) {
		return fault.Precondition
	}
	return fault.Exhausted
}

// get returns what is kept for a VM.
func (r *room) get(key string) (h held, kept bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, kept = r.held[key]
	return h, kept
}

func (r *room) keep(key string, h held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[key] = h
}

func words(reasons []placement.Reason) string {
	var texts []string
	for _, r := range reasons {
		texts = append(texts, r.Text)
	}
	return strings.Join(texts, " and ")
}

// Hold keeps room on this node for a VM whose making has begun.
func (s *Scheduler) Hold(key string, vmid int, w placement.Want) {
	s.room.keep(key, held{vmid: vmid, want: w})
}

// Settle says that the VM is made.
func (s *Scheduler) Settle(key string) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	if h, ok := s.room.held[key]; ok {
		h.until = s.cfg.Now().Add(startsWithin)
		h.made = time.Now() // it may be deleted before anybody looks again
		s.room.held[key] = h
	}
}

// Release gives back the room on a node. One that cannot be asked forgets it by itself.
func (s *Scheduler) Release(ctx context.Context, node, key string) {
	if node != s.cfg.Node {
		if err := s.cfg.Call(ctx, node, peerpb.Peer_Admit_FullMethodName, &peerpb.AdmitRequest{Key: key, Release: true}, &peerpb.AdmitResponse{}); err != nil {
			s.cfg.Log.WarnContext(ctx, "the room kept on another node was not given back; it is forgotten there in an hour", "node", node, "err", err)
		}
		return
	}
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	delete(s.room.held, key)
}

// PeerAdmit is Peer.Admit, for a VM that the agent of another node makes.
func (s *Scheduler) PeerAdmit(ctx context.Context, rq *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	if rq.GetKey() == "" {
		return nil, fault.New(fault.Invalid, "admit: no key")
	}
	if rq.GetRelease() {
		s.come(ctx, rq.GetKey())
		return &peerpb.AdmitResponse{}, nil
	}
	w := placement.Want{Name: rq.GetName(), Memory: rq.GetMemory(), CPUs: int(rq.GetCpus())}
	h := held{name: w.Name, until: s.cfg.Now().Add(guestWithin)}
	if world, err := s.cfg.Watcher.World(); err == nil {
		h.others = named(world, w.Name)
	}
	return &peerpb.AdmitResponse{}, s.admit(ctx, rq.GetKey(), w, h)
}

// come gives back the room for a VM that another node makes. If the VM has come, it keeps that until it is started.
func (s *Scheduler) come(ctx context.Context, key string) {
	if err := s.cfg.Watcher.Refresh(ctx); err != nil {
		s.cfg.Log.WarnContext(ctx, "whether a VM has come cannot be seen", "key", key, "err", err)
	}
	s.kept("")
	if h, _ := s.room.get(key); h.vmid == 0 {
		s.Release(ctx, s.cfg.Node, key)
	}
}

// remember keeps room for the VMs of this node that an earlier life of the agent has made a moment ago: they are about to
// be started.
func (s *Scheduler) remember(ctx context.Context) {
	select {
	case <-s.cfg.Watcher.Ready():
	case <-ctx.Done():
		return
	}
	world, err := s.cfg.Watcher.World()
	var made []record.Record
	if err == nil {
		made, err = s.cfg.Made()
	}
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "VMs that were made a moment ago do not count before they run", "err", err)
		return
	}
	for _, r := range made {
		vm, there := world.VMs[r.VMID]
		if r.State != record.Ready || !there || vm.Node != s.cfg.Node || s.cfg.Now().Sub(r.Created) >= startsWithin {
			continue
		}
		want := guest.WantOf(vm)
		want.Pool = world.PoolOf(vm.ID)
		s.room.keep(fmt.Sprintf("made/%d", r.VMID), held{vmid: r.VMID, want: want, until: r.Created.Add(startsWithin)})
	}
}
