package guest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/image"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Placing is a VM that is to be made somewhere.
type Placing struct {
	Kind  ops.Kind // ops.Create or ops.Clone
	Key   string   // the same for all requests of an owner for a name
	Owner string
	Want  placement.Want
	// Makers are the nodes whose agents have to make the VM, by the node that it is to be on, where that is another one:
	// PVE clones on the node of the source.
	Makers map[string]string
}

// Maker returns the node whose agent makes the VM that is to be on a node.
func (p Placing) Maker(node string) string {
	if maker, other := p.Makers[node]; other {
		return maker
	}
	return node
}

// Note tells the agent that makes the VM on which node it is to be.
func (p Placing) Note(node string) string { return node + " " + p.Key }

// ReadNote reads what Note has written; node is "" of an empty note.
func ReadNote(note string) (node, key string) {
	node, key, _ = strings.Cut(note, " ")
	return node, key
}

// PlaceCreate tells what a Create needs of the node that is to have the VM. Errors are those that the node would answer.
func (g *Guests) PlaceCreate(ctx context.Context, owner string, wish spec.Create) (Placing, error) {
	return g.placing(ctx, createRequest(owner, wish))
}

// PlaceClone is PlaceCreate for a Clone.
func (g *Guests) PlaceClone(ctx context.Context, owner string, source record.ID, wish spec.Clone) (Placing, error) {
	if err := cloneable(wish); err != nil {
		return Placing{}, err
	}
	return g.placing(ctx, cloneRequest(owner, source, wish))
}

// placing is asked by agents that have nothing to do with the VM or its source, and may not have seen what became of them
// a moment ago, by way of another node: so a refusal counts only after another look.
func (g *Guests) placing(ctx context.Context, r request) (Placing, error) {
	p, err := g.placingKnown(ctx, r)
	if err != nil && !fault.Is(err, fault.Invalid) && g.cfg.Watcher.Refresh(ctx) == nil {
		p, err = g.placingKnown(ctx, r)
	}
	return p, err
}

// placingKnown is placing by what is known of /etc/pve.
func (g *Guests) placingKnown(ctx context.Context, r request) (Placing, error) {
	if err := g.nameIsFree(ctx, r.name); err != nil {
		return Placing{}, err
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return Placing{}, fault.New(fault.Precondition, "%s: %w", r, err)
	}
	p := Placing{Kind: r.kind, Key: r.key(), Owner: r.owner, Makers: map[string]string{}}
	site := g.site(r.dialect, world)
	site.Node, site.CPUs = "", 0
	if plan.BlankVolume(r.image) != "" {
		err = g.wantVolume(&p, r, site)
	} else {
		err = g.wantSource(ctx, &p, r, site)
	}
	if err != nil {
		return Placing{}, err
	}
	p.Want.Name, p.Want.Policy = r.name, r.policy
	if nodes, words := site.Named(r.wish.Placement); nodes != nil {
		p.limit(nodes, words)
	}
	return p, nil
}

// limit allows some nodes only, of those that are allowed.
func (p *Placing) limit(nodes []string, words string) {
	if p.Want.Only == nil {
		p.Want.Only, p.Want.OnlyWhy = nodes, words
		return
	}
	p.Want.Only = slices.DeleteFunc(slices.Clone(p.Want.Only), func(n string) bool { return !slices.Contains(nodes, n) })
	p.Want.OnlyWhy += " and " + words
}

// wantVolume is for a VM that is made from a volume. Which nodes have a volume of a storage that is not shared cannot be
// seen from here: then the node is named, or it is this one.
func (g *Guests) wantVolume(p *Placing, r request, site plan.Site) error {
	volume := plan.BlankVolume(r.image)
	blank, err := plan.MakeBlank(volume, r.image.Format, r.wish, site)
	if err != nil {
		return err
	}
	if err := p.plan(r, blank.Conf, site); err != nil {
		return err
	}
	name, _, _ := strings.Cut(volume, ":")
	storage, _ := site.World.Storages.Get(name)
	if storage.Shared {
		p.Want.Disks = append(p.Want.Disks, placement.Disk{Storage: name})
		return nil
	}
	node, err := g.volumeNode(volume, r.wish.Placement)
	if err == nil {
		p.limit([]string{node}, "the node with "+volume)
	}
	return err
}

// plan adds what the VM needs that is made from a config.
func (p *Placing) plan(r request, conf *pmxcfs.Conf, site plan.Site) error {
	needs, vm, err := needsOf(r, conf, site)
	if err != nil {
		return err
	}
	p.Want = want(needs)
	p.Want.Pool, p.Want.Tags = vm.Pool, vm.Tags
	return nil
}

// needsOf plans a VM as far as it does not depend on the node.
func needsOf(r request, conf *pmxcfs.Conf, site plan.Site) (plan.Needs, plan.VM, error) {
	r.wish.Networks = networksOf(r.wish.Networks, conf)
	vm, err := plan.Create(r.wish, conf, site, plan.MACs(site.World))
	if err != nil {
		return plan.Needs{}, vm, err
	}
	return vm.Needs(conf), vm, nil
}

// want is what a VM takes of a node in the words of placement.
func want(n plan.Needs) placement.Want {
	return placement.Want{Memory: n.Memory, CPUs: n.CPUs, Bridges: n.Bridges, Disks: disks(n.Disks)}
}

func disks(spaces []plan.Space) []placement.Disk {
	out := make([]placement.Disk, 0, len(spaces))
	for _, s := range spaces {
		out = append(out, placement.Disk{Storage: s.Storage, Content: "images", Bytes: s.Bytes})
	}
	return out
}

// WantOf tells what a VM that is made already takes of a node.
func WantOf(vm *pmxcfs.VM) placement.Want {
	w := want(plan.ConfNeeds(vm.Conf))
	w.Name, w.Tags, w.Current = vm.Conf.Name(), vm.Conf.Tags(), vm.Node
	return w
}

// wantSource is for a VM that is made from a template or another VM, of which there may be several that are the same.
func (g *Guests) wantSource(ctx context.Context, p *Placing, r request, site plan.Site) error {
	if r.kind == ops.Clone {
		return g.wantCopy(ctx, p, r, site)
	}
	ref := r.image.Source()
	if ref == "" {
		return notASource(r.image)
	}
	source, set, err := g.cfg.Images.Reach(ctx, ref, r.wish.Placement.Datastore)
	if err != nil {
		return err
	}
	first, ok := set.Any()
	if !ok {
		return fault.New(fault.Precondition, "image_json: TemplateName: image %q has no template that can be used now", set.Name)
	}
	if err := p.plan(r, first.VM.Conf, site); err != nil {
		return err
	}
	p.Want.Disks = nil // they depend on the member
	for node, reach := range source.Nodes {
		p.reach(&source, node, reach, set, r, site)
	}
	p.Want.Source = &source
	return nil
}

// reach adds what the VM needs on a node, of what it is made from there.
func (p *Placing) reach(source *placement.Source, node string, reach placement.Reach, set image.Set, r request, site plan.Site) {
	_, maker := set.Runner(node)
	conf := set.Conf(node)
	needs, _, err := needsOf(r, conf, site)
	if err != nil { // the first member's was fine
		delete(source.Nodes, node)
		source.Why[node] = err.Error()
		return
	}
	if maker != node {
		if why := immovable(needs, site.World); why != "" {
			delete(source.Nodes, node)
			source.Why[node] = "cannot get a copy of " + source.Name + " from node " + maker + ": " + why
			return
		}
		p.Makers[node] = maker
	}
	if reach.How == placement.OnDemand { // the replica's own disks, and those that only the VM has
		reach.Disks = append(reach.Disks, disks(needs.Disks[len(copied(conf)):])...)
	} else {
		reach.Disks = disks(needs.Disks)
	}
	p.offer(source, node, reach, site.World)
}

// offer adds a node from which the source is reached, unless storage.cfg keeps one of the disks away from it: what the
// node itself tells of its storages may not be known yet.
func (p *Placing) offer(source *placement.Source, node string, reach placement.Reach, world *pmxcfs.World) {
	for _, d := range reach.Disks {
		if s, ok := world.Storages.Get(d.Storage); ok && !s.OnNode(node) {
			delete(source.Nodes, node)
			source.Why[node] = "has no storage " + d.Storage
			return
		}
	}
	source.Nodes[node] = reach
}

// copied are the drives of a config of which a VM made from it has copies.
func copied(conf *pmxcfs.Conf) []pmxcfs.Drive {
	return slices.DeleteFunc(conf.Drives(), func(d pmxcfs.Drive) bool { return d.Storage == "" || d.CDROM && !d.CloudInit })
}

// immovable says why a VM that was made on one node cannot be moved to another without copying disks; "" if it can.
func immovable(n plan.Needs, world *pmxcfs.World) string {
	for _, d := range n.Disks {
		if s, ok := world.Storages.Get(d.Storage); !ok || !s.Shared {
			return fmt.Sprintf("its disk on %s would stay there", d.Storage)
		}
	}
	return ""
}

// wantCopy is for a copy of a VM: it is made where that is, and moved if nothing of it is on one node only.
func (g *Guests) wantCopy(ctx context.Context, p *Placing, r request, site plan.Site) error {
	vm, err := g.cloned(ctx, r)
	if err != nil {
		return err
	}
	if err := p.plan(r, vm.Conf, site); err != nil {
		return err
	}
	needs := p.Want.Disks
	source := placement.Source{Name: fmt.Sprintf("VM %d (%s)", vm.ID, vm.Conf.Name()), Nodes: map[string]placement.Reach{vm.Node: {Disks: needs}}, Why: map[string]string{}}
	n, _, err := needsOf(r, vm.Conf, site)
	if err != nil {
		return err
	}
	why := immovable(n, site.World)
	for node := range site.World.Members.Nodes {
		switch {
		case node == vm.Node:
		case why != "":
			source.Why[node] = fmt.Sprintf("cannot get a copy of VM %d, which is on node %s: %s", vm.ID, vm.Node, why)
		default:
			p.Makers[node] = vm.Node
			p.offer(&source, node, placement.Reach{How: placement.Shared, Disks: needs}, site.World)
		}
	}
	p.Want.Source, p.Want.Disks = &source, nil
	return nil
}

// Dry is a VM that nobody has asked for yet.
type Dry struct {
	Name, Image        string // Image "": nothing in particular
	CPUs               int
	Memory, Disk       uint64 // bytes; Disk 0: as the image's
	Tags               []string
	Pool, Policy, Node string // Node is a node or a group of nodes
}

// PlaceDry tells what such a VM would need.
func (g *Guests) PlaceDry(ctx context.Context, d Dry) (placement.Want, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return placement.Want{}, fault.New(fault.Precondition, "place: %w", err)
	}
	class := spec.Class{CPU: d.CPUs, MemoryMiB: int(d.Memory >> 20)}
	if d.Disk > 0 {
		class.DiskDefaults = &spec.DiskDefaults{SizeGiB: int((d.Disk + 1<<30 - 1) >> 30)}
	}
	wish := spec.Create{Name: d.Name, Class: class, Image: spec.Image{TemplateName: d.Image}, Placement: spec.Placement{Cluster: d.Node, Folder: d.Pool}, Tags: d.Tags}
	r := createRequest("", wish)
	site := g.site(r.dialect, world)
	site.Node, site.CPUs = "", 0
	p := Placing{Makers: map[string]string{}, Want: placement.Want{Memory: d.Memory, CPUs: d.CPUs, Pool: d.Pool, Tags: plan.Tags(d.Tags, nil, nil)}}
	if d.Image != "" {
		if err := g.wantSource(ctx, &p, r, site); err != nil {
			return placement.Want{}, err
		}
	}
	p.Want.Name, p.Want.Policy = d.Name, d.Policy
	if nodes, words := site.Named(wish.Placement); nodes != nil {
		p.limit(nodes, words)
	}
	return p.Want, nil
}
