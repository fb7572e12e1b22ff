package image

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// askOther is how long the agent of another node may take to say what it is making.
const askOther = 2 * time.Second

// The states of what is no member yet.
const (
	underway = "making"
	broken   = "failed"
)

// Overview tells of all images, or of one, where they are: those on record, and templates of one name. What is being made
// is known to the node that does it: others are asked for that, unless alone is set. It works without quorum, with what was
// last known.
func (m *Images) Overview(ctx context.Context, name string, alone bool) ([]*nodepb.Image, error) {
	world, err := m.cfg.Watcher.Latest()
	if world == nil {
		return nil, err
	}
	images, _, err := m.cfg.Records.List()
	if err != nil {
		return nil, err
	}
	l := &lookup{Images: m, world: world, images: images}
	var out []*nodepb.Image
	for _, set := range l.all() {
		if name == "" || set.Name == name {
			out = append(out, l.describe(set))
		}
	}
	if !alone {
		m.addOthers(ctx, world, name, out)
	}
	for _, i := range out {
		slices.SortStableFunc(i.Replicas, func(a, b *nodepb.Replica) int {
			return cmp.Or(strings.Compare(a.GetNode(), b.GetNode()), cmp.Compare(a.GetVmid(), b.GetVmid()))
		})
	}
	return out, nil
}

// all are the images on record, and those of templates that no record has, by name.
func (l *lookup) all() []Set {
	var sets []Set
	recorded := map[int]bool{}
	for _, img := range l.images {
		set, _ := l.recorded(img) // what is ambiguous, or gone, is shown too
		sets = append(sets, set)
		for _, m := range set.Members {
			recorded[m.VMID] = true
		}
	}
	byName := map[string]*Set{}
	for _, id := range slices.Sorted(maps.Keys(l.world.VMs)) {
		vm := l.world.VMs[id]
		if vm.Conf == nil || !vm.Conf.Template() || recorded[id] {
			continue
		}
		name := vm.Conf.Name()
		if name == "" {
			name = strconv.Itoa(id)
		}
		if byName[name] == nil {
			byName[name] = &Set{Name: name, Template: true}
		}
		byName[name].Members = append(byName[name].Members, l.member(vm))
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		byName[name].sort()
		sets = append(sets, *byName[name])
	}
	slices.SortStableFunc(sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	return sets
}

// describe is one image for people.
func (l *lookup) describe(set Set) *nodepb.Image {
	now := l.cfg.Now()
	out := &nodepb.Image{Name: set.Name, Source: set.Record.Source, Wanted: int32(l.wantedOn(set))}
	if !set.Recorded {
		out.Source = "not recorded"
	}
	if !set.Record.Created.IsZero() {
		out.AgeMs = max(1, now.Sub(set.Record.Created).Milliseconds())
	}
	for _, m := range set.Members {
		r := &nodepb.Replica{Node: m.Node, Vmid: int32(m.VMID), State: string(m.State), Shared: m.Shared, Reason: m.Reason}
		if m.VM != nil {
			for _, d := range copied(m.VM.Conf) {
				r.Bytes += uint64(max(d.Size, 0))
			}
			r.Clones = int32(len(clones(l.world, m.VM)))
			if m.State == Stale && r.Clones > 0 {
				r.Reason += "; kept for the VMs that share its disks"
			}
		}
		if at := made(m); !at.IsZero() {
			r.AgeMs = max(1, now.Sub(at).Milliseconds())
		}
		out.AgeMs = max(out.AgeMs, r.GetAgeMs())
		out.Checksum = cmp.Or(out.GetChecksum(), firstSum(m))
		out.Replicas = append(out.Replicas, r)
	}
	out.Replicas = append(out.Replicas, l.underWay(set)...)
	return out
}

// wantedOn is on how many nodes an image is to be.
func (l *lookup) wantedOn(set Set) int {
	any, ok := set.Any()
	switch {
	case ok && any.Shared, l.cfg.Replicas >= 0 && l.cfg.Replicas <= 1:
		return 1
	case l.cfg.Replicas == EveryNode:
		return len(l.world.Members.Nodes)
	}
	return min(l.cfg.Replicas, len(l.world.Members.Nodes))
}

// made is when a member was made, as far as that is known.
func made(m Member) time.Time {
	if m.Replica {
		return m.Record.Created
	}
	if m.VM == nil {
		return time.Time{}
	}
	meta, _ := m.VM.Conf.Get("meta")
	text, _ := pmxcfs.Props(meta).Get("ctime")
	if sec, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Unix(sec, 0)
	}
	return time.Time{}
}

// firstSum is the checksum of the first disk of a replica, as it was copied.
func firstSum(m Member) string {
	for _, key := range slices.Sorted(maps.Keys(m.Record.Checksums)) {
		if m.State == Ready && key != "efidisk0" && key != "tpmstate0" {
			return m.Record.Checksums[key]
		}
	}
	return ""
}

// underWay is what this node is making of an image, or could not make.
func (l *lookup) underWay(set Set) []*nodepb.Replica {
	for _, op := range l.cfg.Ops.Active() {
		if op.Kind != ops.Replica || op.Key != keyOf(set.Name, l.cfg.Node) {
			continue
		}
		id, err := record.ParseID(op.Subject.ID)
		if err != nil {
			id = record.ID{}
		}
		return []*nodepb.Replica{{
			Node: l.cfg.Node, Vmid: int32(id.VMID), State: underway, Done: progressOf(op), AgeMs: max(1, l.cfg.Now().Sub(op.Created).Milliseconds()),
		}}
	}
	l.mu.Lock()
	why := l.failed[set.Name].why
	l.mu.Unlock()
	if _, here := set.On(l.cfg.Node); why == "" || here {
		return nil
	}
	return []*nodepb.Replica{{Node: l.cfg.Node, State: broken, Reason: why}}
}

// addOthers adds what the other nodes are making. Who does not answer in time makes nothing that could be shown.
func (m *Images) addOthers(ctx context.Context, world *pmxcfs.World, name string, out []*nodepb.Image) {
	ctx, cancel := context.WithTimeout(ctx, askOther)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards out
	for node := range world.Members.Nodes {
		if node == m.cfg.Node || !world.Online(node) {
			continue
		}
		wg.Go(func() {
			var resp nodepb.ImagesResponse
			if m.cfg.Call(ctx, node, nodepb.Node_Images_FullMethodName, &nodepb.ImagesRequest{Name: name}, &resp) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, theirs := range resp.GetImages() {
				addUnderWay(out, theirs, node)
			}
		})
	}
	wg.Wait()
}

func addUnderWay(out []*nodepb.Image, theirs *nodepb.Image, node string) {
	n := slices.IndexFunc(out, func(i *nodepb.Image) bool { return i.GetName() == theirs.GetName() })
	if n < 0 {
		return
	}
	for _, r := range theirs.GetReplicas() {
		if r.GetNode() == node && (r.GetState() == underway || r.GetState() == broken) {
			out[n].Replicas = append(out[n].Replicas, r)
		}
	}
}
