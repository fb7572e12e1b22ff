package snippet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// parallel is how many snippets are fetched at once.
const parallel = 4

// errNowhere is why a snippet is not here: everybody was asked.
var errNowhere = errors.New("no node has it")

// needs are the volumes of ours that something refers to.
type needs map[string]need

// A need is what refers to a volume: the config of a VM on a node, or else an operation there that makes a VM, and may
// not have written the file yet.
type need struct {
	node   string
	config bool
}

// referred collects what the cluster needs: what any section of any VM's config names, and any record of a VM that is
// being made. With an error it is not all.
func (s *Store) referred(world *pmxcfs.World) (needs, error) {
	n := needs{}
	for _, vm := range world.VMs {
		if vm.Conf == nil {
			continue
		}
		for _, volume := range In(string(vm.Conf.Bytes())) {
			n[volume] = need{node: vm.Node, config: true}
		}
	}
	records, err := s.cfg.Records.List()
	for _, r := range records.Records {
		if r.State != record.Creating {
			continue
		}
		for _, volume := range r.Snippets {
			if _, known := n[volume]; !known {
				n[volume] = need{node: r.Node}
			}
		}
	}
	switch {
	case err != nil:
	case len(world.Unread) > 0:
		err = fmt.Errorf("the configs of %d guests cannot be read", len(world.Unread))
	case world.StorageErr != nil:
		err = world.StorageErr
	case !world.Quorate:
		err = fmt.Errorf("node %s: %w", s.cfg.Node, pmxcfs.ErrNoQuorum)
	}
	return n, err
}

// A pass is one look for what this node lacks.
type pass struct {
	*Store
	world *pmxcfs.World
	needs needs
}

// sync fetches what this node lacks. It reports whether something is left that a node may have which did not answer.
func (s *Store) sync(ctx context.Context) (again bool) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return true
	}
	p := pass{Store: s, world: world}
	if p.needs, err = s.referred(world); err != nil {
		s.cfg.Log.DebugContext(ctx, "perhaps not all cloud-init snippets are looked for that are needed", "err", err)
	}
	lacking := p.lacking(ctx)
	s.forget(func(g Gap) bool { return g.Node != s.cfg.Node || slices.Contains(lacking, g.Volume) })
	var fetches errgroup.Group
	fetches.SetLimit(parallel)
	left := make([]bool, len(lacking))
	for i, volume := range lacking {
		fetches.Go(func() error {
			left[i] = p.obtain(ctx, volume)
			return nil
		})
	}
	_ = fetches.Wait() // they have no errors
	return slices.Contains(left, true)
}

// lacking returns what is needed and not here, of storages that are not shared: what is missing there, no node has.
func (p pass) lacking(ctx context.Context) []string {
	var missing []string
	have := map[string]map[string]bool{}
	for _, volume := range slices.Sorted(maps.Keys(p.needs)) {
		storage, file, err := split(volume)
		st, ok := p.world.Storages.Get(storage)
		own := p.needs[volume] == need{node: p.cfg.Node} // its operation writes it
		if err != nil || !ok || own || st.Shared || !st.OnNode(p.cfg.Node) {
			continue
		}
		if have[storage] == nil {
			have[storage] = p.files(ctx, st)
		}
		if !have[storage][file] {
			missing = append(missing, volume)
		}
	}
	return missing
}

// files are the names in the directory of a storage. Where it cannot be read they are none: to keep what is fetched then
// fails, and that is told.
func (s *Store) files(ctx context.Context, st pmxcfs.Storage) map[string]bool {
	entries, err := in(ctx, s, st, list)
	if err != nil {
		s.cfg.Log.DebugContext(ctx, "cloud-init snippets cannot be listed", "err", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = e.Type().IsRegular()
	}
	return names
}

// obtain fetches a volume, and reports whether it is worth another try soon.
func (p pass) obtain(ctx context.Context, volume string) (again bool) {
	from, asked, err := p.fetch(ctx, volume)
	if err == nil {
		p.cfg.Log.InfoContext(ctx, "cloud-init snippet fetched", "volume", volume, "from", from)
		return false
	}
	early := errors.Is(err, errNowhere) && !p.needs[volume].config // who makes the VM is about to write it
	stops := errors.Is(ctx.Err(), context.Canceled)
	if !early && !stops {
		p.open(ctx, p.cfg.Node, volume, err)
	}
	return !asked
}

// fetch asks the other nodes for a volume until one has it: first that of the VM. Asked is whether all of them were.
func (p pass) fetch(ctx context.Context, volume string) (from string, asked bool, err error) {
	storage, file, err := split(volume)
	st, ok := p.world.Storages.Get(storage)
	if err != nil || !ok {
		return "", true, errors.Join(errNowhere, err)
	}
	asked, err = true, errNowhere
	for _, node := range p.nearest(st, p.needs[volume].node) {
		data, gerr := p.get(ctx, node, volume, file)
		if gerr == nil {
			return node, true, p.keep(ctx, st, data)
		}
		if unanswered(gerr) {
			asked = false
		}
		if status.Code(gerr) != codes.NotFound {
			err = gerr
		}
	}
	return "", asked, err
}

// nearest are the nodes to ask: the likeliest in front, and at the end who did not answer the last time.
func (p pass) nearest(st pmxcfs.Storage, likely string) []string {
	rank := func(node string) int {
		switch {
		case p.isSilent(node):
			return 2
		case node != likely:
			return 1
		}
		return 0
	}
	nodes := p.others(p.world, st)
	slices.SortStableFunc(nodes, func(a, b string) int { return rank(a) - rank(b) })
	return nodes
}

// offer gives other nodes what they lack and this one has. It reports whether something is left to try.
func (s *Store) offer(ctx context.Context) (again bool) {
	world, err := s.cfg.Watcher.World()
	if err != nil {
		return true
	}
	needs, err := s.referred(world)
	s.forget(func(g Gap) bool {
		_, needed := needs[g.Volume]
		_, member := world.Members.Nodes[g.Node]
		return member && (needed || err != nil)
	})
	down := map[string]bool{}
	for _, g := range s.Gaps() {
		if g.Node == s.cfg.Node || down[g.Node] || !world.Online(g.Node) {
			continue
		}
		down[g.Node] = !s.offerOne(ctx, world, g)
		again = again || down[g.Node]
	}
	return again
}

// offerOne closes a gap, and reports whether the node takes more.
func (s *Store) offerOne(ctx context.Context, world *pmxcfs.World, g Gap) bool {
	storage, file, err := split(g.Volume)
	st, ok := world.Storages.Get(storage)
	if err != nil || !ok {
		return true
	}
	data, err := in(ctx, s, st, func(dir *os.Root) ([]byte, error) { return load(dir, file) })
	if err == nil {
		err = s.put(ctx, g.Node, g.Volume, data)
	}
	if err != nil {
		s.open(ctx, g.Node, g.Volume, err)
		return !unanswered(err)
	}
	s.silent(g.Node, false)
	s.close(ctx, g.Node, g.Volume)
	return true
}
