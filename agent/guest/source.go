package guest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Images knows what VMs are made from; *image.Images does.
type Images interface {
	// Source returns the template or VM that ref means, a number or a name: that of this node if there is one. onDemand says
	// that there is none here, and that Ensure makes it: what is returned is then the one that it will be a copy of.
	Source(ctx context.Context, ref string) (vm *pmxcfs.VM, onDemand bool, err error)
	// Ensure makes the template of this node that ref means, if it is not there, and returns its number.
	Ensure(ctx context.Context, ref string) (vmid int, err error)
}

// SourceNode returns the node that has what a VM is to be made from: PVE clones only there.
func (g *Guests) SourceNode(ctx context.Context, image spec.Image, placement spec.Placement) (string, error) {
	if volume := plan.BlankVolume(image); volume != "" {
		return g.volumeNode(volume, placement)
	}
	if image.Source() == "" {
		return g.cfg.Node, nil
	}
	vm, _, err := g.cfg.Images.Source(ctx, image.Source())
	if err != nil {
		return "", err
	}
	return vm.Node, nil
}

// source resolves what a VM is to be cloned from: a template by VMID or by name, or an ordinary VM, on this node. onDemand
// says that it is a template of another node, of which this one gets a replica first.
func (g *Guests) source(ctx context.Context, r request) (vm *pmxcfs.VM, onDemand bool, err error) {
	vm, onDemand, err = g.sourceAnywhere(ctx, r)
	if err != nil {
		return nil, false, err
	}
	if vm.Node != g.cfg.Node && !onDemand {
		return nil, false, fault.MovedTo(vm.Node, "%s: its source, VM %d (%s), is on node %s, and this agent is on %s: ask the agent there",
			r, vm.ID, vm.Conf.Name(), vm.Node, g.cfg.Node)
	}
	if lock := vm.Conf.Lock(); lock != "" && !r.patient(lock) {
		return nil, false, fault.New(fault.Precondition, "%s: its source, VM %d (%s), is locked (%s)", r, vm.ID, vm.Conf.Name(), lock)
	}
	return vm, onDemand, nil
}

func (g *Guests) sourceAnywhere(ctx context.Context, r request) (vm *pmxcfs.VM, onDemand bool, err error) {
	if r.kind == ops.Clone {
		vm, err := g.findBy(ctx, r.source, g.cfg.Watcher.LocateNow)
		if errors.Is(err, errAbsent) {
			return nil, false, fault.New(fault.NotFound, "%s: its source, VM %s, does not exist in this cluster", r, r.source)
		}
		return vm, false, err
	}
	if r.image.Source() == "" {
		return nil, false, notASource(r.image)
	}
	return g.cfg.Images.Source(ctx, r.image.Source())
}

// notASource is the failure of an image that names something else than a template or a volume of PVE.
func notASource(image spec.Image) error {
	if image.Path != "" {
		return fault.New(fault.Invalid, "image_json: Path: %q is no volume of PVE, such as local:iso/debian.iso or local-lvm:vm-9100-disk-0", image.Path)
	}
	return fault.New(fault.Invalid, "image_json: URL: %q cannot be the source of a VM before it is prepared: give the VMImage a proxmox source beside it", image.URL)
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

// leastCPUs returns the CPUs of the smallest node that may ever run a clone of source, 0 if unknown: this node, and all
// others too when the clone's disks are on shared storage. Storage is where the disks go; "": where the source's are.
func (g *Guests) leastCPUs(source *pmxcfs.VM, storage string) int {
	least := g.cfg.CPUs(g.cfg.Node)
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
