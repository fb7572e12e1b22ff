package guest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/image"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Images knows what VMs are made from; *image.Images does.
type Images interface {
	// Resolve returns the image that ref means, a number or a name, and Reach how each node gets at it.
	Resolve(ctx context.Context, ref string) (image.Set, error)
	Reach(ctx context.Context, ref, storage string) (placement.Source, image.Set, error)
	// Source returns the template or VM that ref means: that of this node if there is one. onDemand says that there is
	// none here, and that Ensure makes it: what is returned is then the one that it will be a copy of.
	Source(ctx context.Context, ref string) (vm *pmxcfs.VM, onDemand bool, err error)
	// Ensure makes the template of this node that ref means, if it is not there, and returns its number.
	Ensure(ctx context.Context, ref string) (vmid int, err error)
}

// source resolves what a VM is to be cloned from: a template, or an ordinary VM, on this node. Where a replica of a
// template of another node is to be made here first, it is that template, and ref is the image.
func (g *Guests) source(ctx context.Context, r request) (vm *pmxcfs.VM, ref string, err error) {
	if r.kind == ops.Clone {
		vm, err = g.cloned(ctx, r)
	} else {
		vm, ref, err = g.template(ctx, r)
	}
	if err != nil {
		return nil, "", err
	}
	if vm.Node != g.cfg.Node && ref == "" {
		return nil, "", fault.MovedTo(vm.Node, "%s: its source, VM %d (%s), is on node %s, and this agent is on %s: ask the agent there",
			r, vm.ID, vm.Conf.Name(), vm.Node, g.cfg.Node)
	}
	if lock := vm.Conf.Lock(); lock != "" && !r.patient(lock) {
		return nil, "", fault.New(fault.Precondition, "%s: its source, VM %d (%s), is locked (%s)", r, vm.ID, vm.Conf.Name(), lock)
	}
	return vm, ref, nil
}

// cloned is the source of a Clone.
func (g *Guests) cloned(ctx context.Context, r request) (*pmxcfs.VM, error) {
	vm, err := g.findBy(ctx, r.source, g.cfg.Watcher.LocateNow)
	if errors.Is(err, errAbsent) {
		return nil, fault.New(fault.NotFound, "%s: its source, VM %s, does not exist in this cluster", r, r.source)
	}
	return vm, err
}

// template is the source of a Create: the member of the image that the VM's node is to use. ref is set if there is none
// yet on this node, and one may be made.
func (g *Guests) template(ctx context.Context, r request) (vm *pmxcfs.VM, ref string, err error) {
	if ref = r.image.Source(); ref == "" {
		return nil, "", notASource(r.image)
	}
	if r.target != "" && r.target != g.cfg.Node {
		set, err := g.cfg.Images.Resolve(ctx, ref)
		if err != nil {
			return nil, "", err
		}
		vmid, maker := set.Runner(r.target)
		world, err := g.cfg.Watcher.World()
		if err != nil {
			return nil, "", fault.New(fault.Precondition, "%s: %w", r, err)
		}
		if vm, there := world.VMs[vmid]; there && maker == vm.Node {
			return vm, "", nil
		}
		return nil, "", fault.MovedTo("", "%s: what it is made from is no longer where it was; ask again", r)
	}
	vm, onDemand, err := g.cfg.Images.Source(ctx, ref)
	if !onDemand {
		ref = ""
	}
	return vm, ref, err
}

// notASource is the failure of an image that names something else than a template or a volume of PVE.
func notASource(i spec.Image) error {
	if i.Path != "" {
		return fault.New(fault.Invalid, "image_json: Path: %q is no volume of PVE, such as local:iso/debian.iso or local-lvm:vm-9100-disk-0", i.Path)
	}
	return fault.New(fault.Invalid, "image_json: URL: %q cannot be the source of a VM before it is prepared: give the VMImage a proxmox source beside it", i.URL)
}

// volumeNode returns the node on which a VM is to be made from a volume: the one that the placement names, or this one, or
// one that has the volume's storage.
func (g *Guests) volumeNode(volume string, placement spec.Placement) (string, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return "", fault.New(fault.Precondition, "%s: cannot be looked up: %w", volume, err)
	}
	for _, name := range []string{placement.Host, placement.Cluster} {
		if _, ok := world.Members.Nodes[name]; ok {
			return name, nil
		}
	}
	storage, _, _ := strings.Cut(volume, ":")
	s, ok := world.Storages.Get(storage)
	if !ok || s.OnNode(g.cfg.Node) {
		return g.cfg.Node, nil
	}
	for _, name := range slices.Sorted(maps.Keys(world.Members.Nodes)) {
		if s.OnNode(name) && world.Online(name) {
			return name, nil
		}
	}
	return g.cfg.Node, nil
}

// leastCPUs returns the CPUs of the smallest node that may ever run a clone of source on a node, 0 if unknown: that node,
// and all others too when the clone's disks are on shared storage. Storage is where the disks go; "": where the source's
// are.
func (g *Guests) leastCPUs(node string, source *pmxcfs.VM, storage string) int {
	least := g.cfg.CPUs(node)
	world, err := g.cfg.Watcher.World()
	if err != nil || !movable(world, source.Conf, storage) {
		return least
	}
	for name := range world.Members.Nodes {
		if n := g.cfg.CPUs(name); n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

func movable(world *pmxcfs.World, conf *pmxcfs.Conf, storage string) bool {
	if storage != "" {
		s, ok := world.Storages.Get(storage)
		return ok && s.Shared
	}
	for _, d := range conf.Drives() {
		if s, ok := world.Storages.Get(d.Storage); d.Storage != "" && (!ok || !s.Shared) {
			return false
		}
	}
	return true
}
