package capacity

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// String names the task.
func (s *Source) String() string { return "capacity" }

// Ready is closed when Run runs: nobody has to wait for PVE to tell its storages.
func (s *Source) Ready() <-chan struct{} { return s.ready }

// Run asks the API for the storages of this node and the version of PVE now and once per interval, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	close(s.ready)
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		s.refresh(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// refresh asks once. A question that took longer than the interval would delay the next one.
func (s *Source) refresh(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, s.cfg.Interval)
	defer cancel()
	storages, err := s.cfg.API.Storages(ask, s.cfg.Node)
	version, verr := s.cfg.API.Version(ask)
	if ctx.Err() != nil {
		return // no fault of the API
	}
	s.complain("storages", err)
	s.complain("version of PVE", verr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.storages, s.storagesAt = offered(storages), time.Now()
	}
	if verr == nil {
		s.version = version.Version
	}
}

// offered are the storages that can be used now.
func offered(storages []pve.Storage) []view.Storage {
	var out []view.Storage
	for _, st := range storages {
		if !bool(st.Enabled) || !bool(st.Active) {
			continue
		}
		content := strings.FieldsFunc(st.Content, func(r rune) bool { return r == ',' })
		slices.Sort(content) // PVE gives them in no order
		out = append(out, view.Storage{
			Name: st.Storage, Type: st.Type, Content: content, Shared: bool(st.Shared),
			Total: uint64(max(0, st.Total)), Free: uint64(max(0, st.Avail)),
		})
	}
	slices.SortFunc(out, func(a, b view.Storage) int { return cmp.Compare(a.Name, b.Name) })
	return most(out)
}

// told is what the API said last. Storages are forgotten when it has been silent for long: others would take their free
// space for as new as the rest of the Facts.
func (s *Source) told(now time.Time) (version string, storages []view.Storage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.storagesAt) > forgetAfter*s.cfg.Interval {
		return s.version, nil
	}
	return s.version, slices.Clone(s.storages)
}
