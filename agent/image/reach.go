package image

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Reach tells on which nodes a VM can be made from what ref means, for placement; see Resolve for ref and the errors.
// storage is where the copies of the disks go; "": where those of the source are. A node is missing in the answer's Nodes
// if it cannot be reached from there; Why says why where it is not just that it has no replica.
func (m *Images) Reach(ctx context.Context, ref, storage string) (placement.Source, Set, error) {
	set, err := m.Resolve(ctx, ref)
	if err != nil {
		return placement.Source{}, set, err
	}
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return placement.Source{}, set, fault.New(fault.Precondition, "template %q: cannot be looked up: %w", ref, err)
	}
	out := placement.Source{Name: "replica of " + quote(set.Name), Nodes: map[string]placement.Reach{}, Why: map[string]string{}}
	if !set.Template {
		out.Name = "source " + quote(set.Name)
	}
	for node := range world.Members.Nodes {
		reach, why := m.reach(world, set, node, storage)
		if why != "" {
			out.Why[node] = why
			continue
		}
		out.Nodes[node] = reach
	}
	return out, set, nil
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

// reach says how a node reaches an image, or why it does not.
func (m *Images) reach(world *pmxcfs.World, set Set, node, storage string) (r placement.Reach, why string) {
	if here, ok := set.On(node); ok {
		return placement.Reach{How: placement.Here, Disks: disksOf(here.VM.Conf, storage)}, ""
	}
	if s, ok := set.Any(); ok && s.Shared && storagesOn(world, s.VM.Conf, node) {
		return placement.Reach{How: placement.Shared, Disks: disksOf(s.VM.Conf, storage)}, ""
	}
	if why := m.mayNot(world, set, node); why != "" {
		return r, why
	}
	source, _ := set.Any()
	t, err := targetOn(world, source.VM.Conf, node)
	if err != nil {
		return r, fmt.Sprintf("can have no replica of %q: %v", set.Name, err)
	}
	need := t.sizes(source.VM.Conf)
	for _, d := range copied(source.VM.Conf) {
		where := t.Storages[d.Key]
		if storage != "" {
			where = storage
		}
		need[where] += uint64(max(d.Size, 0))
	}
	for _, id := range slices.Sorted(maps.Keys(need)) {
		r.Disks = append(r.Disks, placement.Disk{Storage: id, Content: contentOf(world, id), Bytes: need[id]})
	}
	r.How = placement.OnDemand
	return r, ""
}

// contentOf is what a storage has to hold to take a disk, or a file that is staged there.
func contentOf(world *pmxcfs.World, storage string) string {
	if s, ok := world.Storages.Get(storage); ok && !s.Has("images") {
		return "import"
	}
	return "images"
}

// mayNot says why no replica of an image is made on a node; "" if one may be.
func (m *Images) mayNot(world *pmxcfs.World, set Set, node string) string {
	for _, member := range set.Members {
		if member.Node == node && member.State == Stale && m.cfg.Replicas <= 1 && m.cfg.Replicas != EveryNode {
			return "its replica of " + quote(set.Name) + " is out of date: " + member.Reason
		}
	}
	switch {
	case !set.Template:
		return fmt.Sprintf("does not have %s", quote(set.Name))
	case m.cfg.Replicas == 0 || m.cfg.Replicas == 1:
		return "has no replica of " + quote(set.Name)
	case m.cfg.Replicas != EveryNode && len(set.ready(world, m.cfg.Now())) >= m.cfg.Replicas:
		return fmt.Sprintf("has no replica of %q, which is on as many nodes as it is to be (placement.image-replicas is %d)", set.Name, m.cfg.Replicas)
	}
	if why := m.cfg.Cordoned(node); why != "" {
		return fmt.Sprintf("has no replica of %q, and gets none: %s", set.Name, why)
	}
	if source, ok := set.Any(); !ok || !readable(world, source.VM.Conf) {
		return fmt.Sprintf("has no replica of %q, and its disks cannot be read from where they are", set.Name)
	}
	return ""
}

// storagesOn reports whether a node has all storages of a config's disks.
func storagesOn(world *pmxcfs.World, conf *pmxcfs.Conf, node string) bool {
	for _, d := range conf.Drives() {
		if s, ok := world.Storages.Get(d.Storage); d.Storage != "" && (!ok || !s.OnNode(node)) {
			return false
		}
	}
	return true
}

// disksOf are the disks that a copy of a VM needs, on a storage or on those of the VM.
func disksOf(conf *pmxcfs.Conf, storage string) []placement.Disk {
	var out []placement.Disk
	for _, d := range conf.Drives() {
		if d.Storage == "" || d.CDROM && !d.CloudInit {
			continue
		}
		where := d.Storage
		if storage != "" && !d.CloudInit {
			where = storage
		}
		out = append(out, placement.Disk{Storage: where, Content: "images", Bytes: uint64(max(d.Size, 0))})
	}
	return out
}

// Here returns what a VM is made from on this node: the member of the image that ref means which is here. If there is none
// here the error is Moved, to a node that has one.
func (m *Images) Here(ctx context.Context, ref string) (*pmxcfs.VM, error) {
	set, err := m.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if here, ok := set.On(m.cfg.Node); ok {
		return here.VM, nil
	}
	other, ok := set.Any()
	if !ok {
		return nil, fault.New(fault.Precondition, "image %q has no template that can be used", set.Name)
	}
	return nil, fault.MovedTo(other.Node, "its source, VM %d (%s), is on node %s, and this agent is on %s: ask the agent there",
		other.VMID, other.VM.Conf.Name(), other.Node, m.cfg.Node)
}

// Source is Here for who may wait for a replica: where there is none here and one may be made here, it returns the
// template that it would be a copy of, of another node, and onDemand true. Ensure makes it.
func (m *Images) Source(ctx context.Context, ref string) (vm *pmxcfs.VM, onDemand bool, err error) {
	set, err := m.Resolve(ctx, ref)
	if err != nil {
		return nil, false, err
	}
	m.used(ctx, set)
	if here, ok := set.On(m.cfg.Node); ok {
		return here.VM, false, nil
	}
	other, ok := set.Any()
	if !ok {
		return nil, false, fault.New(fault.Precondition, "image %q has no template that can be used", set.Name)
	}
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return nil, false, fault.New(fault.Precondition, "template %q: cannot be looked up: %w", ref, err)
	}
	reach, why := m.reach(world, set, m.cfg.Node, "")
	return other.VM, why == "" && reach.How == placement.OnDemand, nil
}

// Runner returns the member that a VM of a node is made from, and the node whose agent makes it: the member on that node,
// or one on shared storage, made by the node that has it. vmid is 0, and the owner the node itself, where a replica has to
// be made first.
func (s Set) Runner(node string) (vmid int, owner string) {
	if here, ok := s.On(node); ok {
		return here.VMID, node
	}
	if any, ok := s.Any(); ok && any.Shared {
		return any.VMID, any.Node
	}
	return 0, node
}
