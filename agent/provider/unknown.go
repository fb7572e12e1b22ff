package provider

import (
	"context"
	"sync"
)

// unknownMost bounds what one has to remember of keys that clients make up.
const unknownMost = 1000

// unknown are the keys of requests that this version does not know, and that were logged already.
type unknown struct {
	mu   sync.Mutex // guards keys
	keys map[string]bool
}

// fresh returns those of keys that were not seen before.
func (u *unknown) fresh(keys []string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []string
	for _, k := range keys {
		if u.keys[k] || len(u.keys) >= unknownMost {
			continue
		}
		if u.keys == nil {
			u.keys = map[string]bool{}
		}
		u.keys[k] = true
		found = append(found, k)
	}
	return found
}

// noteUnknown logs keys that no version of the contract known here has, each once: the manager sends them with every
// request.
func (s *Server) noteUnknown(ctx context.Context, keys []string) {
	if found := s.unknown.fresh(keys); len(found) > 0 {
		s.cfg.Log.InfoContext(ctx, "keys of a request that this version does not know", "keys", found)
	}
}
