package snippet

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"
)

// Gap is a snippet that a node should have and has not, as far as this node knows: a VM that refers to it does not start
// there.
type Gap struct {
	Node   string
	Volume string
	Since  time.Time
	Reason string // in words, with what helps
}

type gapKey struct{ node, volume string }

// Gaps returns what is missing where, ordered by node and volume: on other nodes what this one has written and they could
// not be given, here what nobody could give.
func (s *Store) Gaps() []Gap {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Gap, 0, len(s.gaps))
	for _, g := range s.gaps {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b Gap) int {
		if c := strings.Compare(a.Node, b.Node); c != 0 {
			return c
		}
		return strings.Compare(a.Volume, b.Volume)
	})
	return all
}

// open notes a gap. It is logged once for each node, which may lack everything, and while this one starts at the end of
// that only.
func (s *Store) open(ctx context.Context, node, volume string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.lockedOwes(node) || node == s.cfg.Node && !s.started()
	key := gapKey{node, volume}
	g, again := s.gaps[key]
	if !again {
		g = Gap{Node: node, Volume: volume, Since: s.cfg.Now()}
	}
	g.Reason = reason(why)
	s.gaps[key] = g
	if !known && !again {
		s.cfg.Log.WarnContext(ctx, "a node lacks cloud-init snippets: VMs that refer to them do not start there", "at", node, "volume", volume, "err", g.Reason)
	}
	if again {
		return
	}
	select {
	case s.opened <- struct{}{}:
	default:
	}
}

// started reports whether this node has looked for what it lacks.
func (s *Store) started() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// reason is an error in words alone.
func reason(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}

func (s *Store) lockedOwes(node string) bool {
	for key := range s.gaps {
		if key.node == node {
			return true
		}
	}
	return false
}

// close notes that a node has a volume.
func (s *Store) close(ctx context.Context, node, volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := gapKey{node, volume}
	g, open := s.gaps[key]
	if !open {
		return
	}
	delete(s.gaps, key)
	if !s.lockedOwes(node) {
		s.cfg.Log.InfoContext(ctx, "a node has the cloud-init snippets that it lacked", "at", node, "since", g.Since)
	}
}

// forget drops gaps that matter no more.
func (s *Store) forget(matters func(Gap) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, g := range s.gaps {
		if !matters(g) {
			delete(s.gaps, key)
		}
	}
}

// silent notes whether a node answers.
func (s *Store) silent(node string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is {
		s.mute[node] = true
	} else {
		delete(s.mute, node)
	}
}

func (s *Store) isSilent(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute[node]
}
