package image

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
)

// Resolve returns the image that ref means: the name of a recorded image, the number of a template or VM, or the name of
// templates, of which there may be one on each node, or of one VM. A number of a member of a recorded image means that
// image. NotFound says that nothing is called so, without doubt; Precondition, that ref is ambiguous, or that it cannot be
// looked up now.
func (m *Images) Resolve(ctx context.Context, ref string) (Set, error) {
	l, err := m.look()
	if err != nil {
		return Set{}, fault.New(fault.Precondition, "template %q: cannot be looked up: %w", ref, err)
	}
	if img, ok := l.image(ref); ok {
		return l.recorded(img)
	}
	if l.broken != nil { // records that cannot be read hide their own images, and no others
		if _, _, err := m.cfg.Records.Find(ref); err != nil {
			return Set{}, fault.New(fault.Precondition, "image %q: %w", ref, err)
		}
	}
	if vmid, err := strconv.Atoi(ref); err == nil {
		return l.numbered(ctx, vmid)
	}
	return l.named(ref)
}

// lookup is the world and the records at one moment.
type lookup struct {
	*Images
	world  *pmxcfs.World
	images []record.Image
	broken error // why other records could not be read
}

func (m *Images) look() (*lookup, error) {
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return nil, err
	}
	images, broken, err := m.cfg.Records.List()
	return &lookup{Images: m, world: world, images: images, broken: errors.Join(broken...)}, err
}

func (l *lookup) image(name string) (record.Image, bool) {
	if n := slices.IndexFunc(l.images, func(i record.Image) bool { return i.Name == name }); n >= 0 {
		return l.images[n], true
	}
	return record.Image{}, false
}

// replica returns the record of the image that a template of ours belongs to.
func (l *lookup) replica(vm *pmxcfs.VM) (record.Image, bool) {
	for _, i := range l.images {
		if r, ok := i.Replica(vm.ID); ok && r.UUID == vm.Conf.SMBIOSUUID() {
			return i, true
		}
	}
	return record.Image{}, false
}

// recorded returns the set of an image that is on record.
func (l *lookup) recorded(img record.Image) (Set, error) {
	s := Set{Name: img.Name, Template: true, Recorded: true, Record: img}
	originals, err := l.originals(img)
	if err != nil {
		return s, err
	}
	versions := map[string]bool{}
	for _, vm := range originals {
		s.Members = append(s.Members, l.member(vm))
		versions[Version(vm.Conf)] = true
	}
	for _, r := range img.Replicas {
		s.Members = append(s.Members, l.replicaMember(r, versions))
	}
	s.sort()
	if _, ok := s.Any(); !ok {
		return s, fault.New(fault.NotFound, "image %q: its template %s does not exist in this cluster any more, and no replica of it does", img.Name, img.Template)
	}
	return s, nil
}

func (l *lookup) member(vm *pmxcfs.VM) Member {
	return Member{Node: vm.Node, VMID: vm.ID, VM: vm, Shared: shared(l.world, vm.Conf), State: Ready}
}

// replicaMember says how a replica is. One whose templates are all gone is as good as they were.
func (l *lookup) replicaMember(r record.Replica, versions map[string]bool) Member {
	vm := l.world.VMs[r.VMID]
	if vm == nil || vm.Conf == nil || vm.Conf.SMBIOSUUID() != r.UUID || !vm.Conf.Template() {
		return Member{Node: r.Node, VMID: r.VMID, Replica: true, State: Missing, Reason: fmt.Sprintf("template %d is gone", r.VMID), Record: r}
	}
	out := l.member(vm)
	out.Replica, out.Record = true, r
	if len(versions) > 0 && !versions[r.Of] {
		out.State, out.Reason = Stale, fmt.Sprintf("template %d, which it is a copy of, was rebuilt or has changed", r.From)
	}
	return out
}

// originals returns the administrator's templates of an image, at most one on each node.
func (l *lookup) originals(img record.Image) ([]*pmxcfs.VM, error) {
	var found []*pmxcfs.VM
	if vmid, err := strconv.Atoi(img.Template); err == nil {
		if vm := l.world.VMs[vmid]; vm != nil && vm.Conf != nil && vm.Conf.Template() {
			found = append(found, vm)
		}
		return found, nil
	}
	found = l.templates(img.Template)
	if img.Node != "" {
		found = slices.DeleteFunc(found, func(vm *pmxcfs.VM) bool { return vm.Node != img.Node })
	}
	return onePerNode(img.Template, found, img.Originals)
}

// templates returns the administrator's templates of a name.
func (l *lookup) templates(name string) []*pmxcfs.VM {
	return slices.DeleteFunc(slices.Clone(l.world.ByName(name)), func(vm *pmxcfs.VM) bool {
		if !vm.Conf.Template() {
			return true
		}
		_, ours := l.replica(vm)
		return ours
	})
}

// onePerNode fails when a node has several templates of a name, unless one of them alone was meant when the image was
// recorded.
func onePerNode(name string, vms []*pmxcfs.VM, meant []record.Original) ([]*pmxcfs.VM, error) {
	var out []*pmxcfs.VM
	byNode := map[string][]*pmxcfs.VM{}
	for _, vm := range vms {
		byNode[vm.Node] = append(byNode[vm.Node], vm)
	}
	for _, group := range byNode {
		if len(group) > 1 {
			known := slices.DeleteFunc(slices.Clone(group), func(vm *pmxcfs.VM) bool {
				return !slices.ContainsFunc(meant, func(o record.Original) bool { return o.VMID == vm.ID && o.UUID == vm.Conf.SMBIOSUUID() })
			})
			if len(known) != 1 {
				return nil, ambiguous(name, vms)
			}
			group = known
		}
		out = append(out, group[0])
	}
	return out, nil
}

func ambiguous(name string, vms []*pmxcfs.VM) error {
	texts := make([]string, 0, len(vms))
	for _, vm := range vms {
		texts = append(texts, fmt.Sprintf("%d on %s", vm.ID, vm.Node))
	}
	slices.Sort(texts)
	return fault.New(fault.Precondition, "image_json: TemplateName: %q is the name of several: %s; use the VMID", name, strings.Join(texts, ", "))
}

// find returns the VM with a number. Its NotFound is without doubt.
func (l *lookup) find(ctx context.Context, vmid int) (*pmxcfs.VM, error) {
	vm, err := l.cfg.Watcher.Locate(ctx, vmid)
	switch {
	case errors.Is(err, pmxcfs.ErrNotFound):
		absent, err := l.cfg.Watcher.Absent(ctx, vmid)
		switch {
		case err != nil:
			return nil, fault.New(fault.Precondition, "template %d: not found, but whether it exists cannot be decided now: %w", vmid, err)
		case !absent:
			return nil, fault.New(fault.Aborted, "template %d: moved while it was looked up, ask again", vmid)
		}
		return nil, fault.New(fault.NotFound, "image_json: TemplateName: template %d does not exist in this cluster", vmid)
	case err != nil:
		return nil, fault.New(fault.Precondition, "template %d: cannot be looked up: %w", vmid, err)
	case vm.Type != pmxcfs.TypeQEMU:
		return nil, fault.New(fault.Precondition, "image_json: TemplateName: %d is a container on node %s, not a VM", vmid, vm.Node)
	}
	return vm, nil
}

// numbered returns the set that a template or VM with a number belongs to.
func (l *lookup) numbered(ctx context.Context, vmid int) (Set, error) {
	vm, err := l.find(ctx, vmid)
	if err != nil {
		return Set{}, err
	}
	if img, ours := l.replica(vm); ours { // also one that is out of date, or that is a template only since the world was read
		return l.recorded(img)
	}
	if !vm.Conf.Template() {
		return l.alone(vm), nil
	}
	for _, img := range l.images {
		s, err := l.recorded(img)
		if err == nil && slices.ContainsFunc(s.Members, func(m Member) bool { return m.VMID == vmid && m.State == Ready }) {
			return s, nil
		}
	}
	return l.alone(vm), nil
}

// alone is the set of one template or VM.
func (l *lookup) alone(vm *pmxcfs.VM) Set {
	name := vm.Conf.Name()
	if name == "" {
		name = strconv.Itoa(vm.ID)
	}
	return Set{Name: name, Template: vm.Conf.Template(), Members: []Member{l.member(vm)}}
}

// named returns the set of the templates of a name that no record has; without templates, that of the VM of that name.
func (l *lookup) named(name string) (Set, error) {
	vms := l.templates(name)
	if len(vms) > 0 {
		vms, err := onePerNode(name, vms, nil)
		s := Set{Name: name, Template: true}
		for _, vm := range vms {
			s.Members = append(s.Members, l.member(vm))
		}
		s.sort()
		return s, err
	}
	for _, vm := range l.world.ByName(name) {
		if img, ours := l.replica(vm); ours { // all that is left of an image of another name
			return l.recorded(img)
		}
	}
	vms = slices.DeleteFunc(slices.Clone(l.world.ByName(name)), func(vm *pmxcfs.VM) bool { return vm.Type != pmxcfs.TypeQEMU })
	switch len(vms) {
	case 0:
		return Set{}, fault.New(fault.NotFound, "image_json: TemplateName: no template or VM is named %q", name)
	case 1:
		return l.alone(vms[0]), nil
	}
	return Set{}, ambiguous(name, vms)
}
