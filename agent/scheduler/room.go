package scheduler

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/capacity"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
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

// held is room for one VM.
type held struct {
	vmid  int // 0: it has no number yet
	size  capacity.Size
	until time.Time // zero: as long as its operation goes on
}

func size(w placement.Want) capacity.Size {
	return capacity.Size{Memory: w.Memory, VCPUs: uint32(max(0, w.CPUs))}
}

// Making are the VMs for which room is kept here, for this node's capacity.
func (s *Scheduler) Making() []capacity.Making {
	now := s.cfg.Now()
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	out := make([]capacity.Making, 0, len(s.room.held))
	for key, h := range s.room.held {
		if !h.until.IsZero() && now.After(h.until) {
			delete(s.room.held, key)
			continue
		}
		out = append(out, capacity.Making{VMID: h.vmid, Size: h.size})
	}
	return out
}

// Admit keeps room for a VM on a node, this one or another, if there is some; see guest.Admission.
func (s *Scheduler) Admit(ctx context.Context, node, key string, w placement.Want) error {
	if node != s.cfg.Node {
		rq := &peerpb.AdmitRequest{Key: key, Memory: w.Memory, Cpus: uint32(max(0, w.CPUs)), Name: w.Name}
		if err := s.cfg.Call(ctx, node, peerpb.Peer_Admit_FullMethodName, rq, &peerpb.AdmitResponse{}); err != nil {
			return fault.MovedTo("", "%w", err)
		}
		return nil
	}
	return s.admit(ctx, key, w, time.Time{})
}

// admit is Admit for this node.
func (s *Scheduler) admit(ctx context.Context, key string, w placement.Want, until time.Time) error {
	cordons, err := s.cfg.Cordons(ctx)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", w.Name, err)
	}
	s.room.deciding.Lock()
	defer s.room.deciding.Unlock()
	vmid, again := s.room.number(key)
	if !again {
		now := s.cfg.Now()
		n := placement.Node{Name: s.cfg.Node, Cordoned: cordons[s.cfg.Node], CPUs: s.cfg.CPUs(s.cfg.Node), State: s.own(now)}
		if reasons := placement.Fits(n, w, s.cfg.Settings, now); len(reasons) > 0 {
			return fault.MovedTo("", "node %s cannot take %s: %s", s.cfg.Node, w.Name, words(reasons))
		}
	}
	s.room.keep(key, held{vmid: vmid, size: size(w), until: until})
	return nil
}

// number returns the number of a VM for which room is kept.
func (r *room) number(key string) (vmid int, kept bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, kept := r.held[key]
	return h.vmid, kept
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
	s.room.keep(key, held{vmid: vmid, size: size(w)})
}

// Settle says that the VM is made.
func (s *Scheduler) Settle(key string) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	if h, ok := s.room.held[key]; ok {
		h.until = s.cfg.Now().Add(startsWithin)
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
		s.Release(ctx, s.cfg.Node, rq.GetKey())
		return &peerpb.AdmitResponse{}, nil
	}
	w := placement.Want{Name: rq.GetName(), Memory: rq.GetMemory(), CPUs: int(rq.GetCpus())}
	return &peerpb.AdmitResponse{}, s.admit(ctx, rq.GetKey(), w, s.cfg.Now().Add(guestWithin))
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
		s.room.keep(fmt.Sprintf("made/%d", r.VMID), held{vmid: r.VMID, size: size(guest.WantOf(vm)), until: r.Created.Add(startsWithin)})
	}
}
