package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// SourceNode returns the node that has what a VM is to be made from: PVE clones only there.
func (g *Guests) SourceNode(ctx context.Context, image spec.Image) (string, error) {
	vm, err := g.template(ctx, image.TemplateName)
	if err != nil {
		return "", err
	}
	return vm.Node, nil
}

// source resolves what a VM is to be made from: a template by VMID or by name, or an ordinary VM, on this node.
func (g *Guests) source(ctx context.Context, image spec.Image) (*pmxcfs.VM, error) {
	if image.TemplateName == "" {
		what, where := "image_json: Path: ", image.Path
		if where == "" {
			what, where = "image_json: URL: ", image.URL
		}
		return nil, fault.New(fault.Invalid, "%s%q cannot be a source of a VM yet: name a template (TemplateName)", what, where)
	}
	vm, err := g.template(ctx, image.TemplateName)
	if err != nil {
		return nil, err
	}
	if vm.Node != g.cfg.Node {
		return nil, fault.MovedTo(vm.Node, "template %s (VM %d) is on node %s, and this agent is on %s: ask the agent there",
			image.TemplateName, vm.ID, vm.Node, g.cfg.Node)
	}
	if lock := vm.Conf.Lock(); lock != "" {
		return nil, fault.New(fault.Precondition, "template %s (VM %d) is locked (%s)", image.TemplateName, vm.ID, lock)
	}
	return vm, nil
}

func (g *Guests) template(ctx context.Context, ref string) (*pmxcfs.VM, error) {
	if vmid, err := strconv.Atoi(ref); err == nil {
		vm, err := g.find(ctx, record.ID{VMID: vmid})
		if errors.Is(err, errAbsent) {
			return nil, fault.New(fault.NotFound, "image_json: TemplateName: template %d does not exist in this cluster", vmid)
		}
		return vm, err
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return nil, fault.New(fault.Precondition, "template %q: cannot be looked up: %w", ref, err)
	}
	named := slices.DeleteFunc(slices.Clone(world.ByName(ref)), func(vm *pmxcfs.VM) bool { return vm.Type != pmxcfs.TypeQEMU })
	if templates := onlyTemplates(named); len(templates) > 0 {
		named = templates
	}
	switch len(named) {
	case 0:
		return nil, fault.New(fault.NotFound, "image_json: TemplateName: no template or VM is named %q", ref)
	case 1:
		return named[0], nil
	}
	return nil, fault.New(fault.Precondition, "image_json: TemplateName: %q is the name of several: %s; use the VMID", ref, listIDs(named))
}

func onlyTemplates(vms []*pmxcfs.VM) []*pmxcfs.VM {
	return slices.DeleteFunc(slices.Clone(vms), func(vm *pmxcfs.VM) bool { return !vm.Conf.Template() })
}

func listIDs(vms []*pmxcfs.VM) string {
	texts := make([]string, 0, len(vms))
	for _, vm := range vms {
		texts = append(texts, fmt.Sprintf("%d on %s", vm.ID, vm.Node))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

// bounds returns what the nodes that may ever run a clone of source can carry: this node, and all others too when the
// clone's disks are on shared storage. Storage is where the disks go; "": where the source's are.
func (g *Guests) bounds(source *pmxcfs.VM, storage string) bounds {
	b := bounds{CPUs: g.cfg.CPUs(g.cfg.Node)}
	world, err := g.cfg.Watcher.World()
	if err != nil || !movable(world, source.Conf, storage) {
		return b
	}
	for name := range world.Members.Nodes {
		if n := g.cfg.CPUs(name); n > 0 && (b.CPUs == 0 || n < b.CPUs) {
			b.CPUs = n
		}
	}
	return b
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
