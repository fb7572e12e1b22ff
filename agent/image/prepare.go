package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Prepare finds the templates that an image is to be and puts them on record under its name. Doing that again is no change,
// and many may do so at once. What of the wish is not carried out, with good reason, is logged.
func (m *Images) Prepare(ctx context.Context, wish spec.ImagePrepare) error {
	img, err := m.asked(wish)
	if err != nil {
		return err
	}
	l, err := m.look()
	if err != nil {
		return fault.New(fault.Precondition, "image %q: its template cannot be looked up: %w", wish.Name, err)
	}
	if !l.world.Quorate {
		return fault.New(fault.Precondition, "image %q: node %s has no quorum, nothing can be recorded", wish.Name, m.cfg.Node)
	}
	set, err := l.source(ctx, wish, img)
	if err != nil {
		return err
	}
	for _, o := range set {
		img.Originals = append(img.Originals, record.Original{Node: o.Node, VMID: o.ID, UUID: o.Conf.SMBIOSUUID()})
	}
	img.Source = sourceText(img)
	if about := wish.Metadata.DisplayName; about != "" {
		img.Source += ": " + about
	}
	if notes := notes(wish, l.world, set); len(notes) > 0 {
		m.log.InfoContext(ctx, "an image is found, not imported", "image", wish.Name, "source", img.Source, "notes", notes)
	}
	return m.enterPrepared(ctx, l, img, wish.Prepare != nil && wish.Prepare.Force)
}

// enterPrepared records a prepared image. One of that name with another source is replaced only on request, or when nothing
// is left of that source: VMs would be made from something else without a word.
func (m *Images) enterPrepared(ctx context.Context, l *lookup, img record.Image, force bool) error {
	made, err := m.create(ctx, img)
	if err == nil {
		return nil
	}
	if !errors.Is(err, record.ErrImageExists) {
		return fault.New(fault.Precondition, "record image %q: %w", img.Name, err)
	}
	if made.Template == img.Template && made.Node == img.Node {
		return nil
	}
	left, err := l.originals(made)
	if !force && (err != nil || len(left) > 0) {
		return fault.New(fault.Exists, "target_name: image %q is recorded already, made of %s: choose another name, or replace it with prepare.force", img.Name, made.Source)
	}
	_, err = m.change(ctx, img.Name, func(i *record.Image) bool {
		i.Template, i.Node, i.Originals, i.Source = img.Template, img.Node, img.Originals, img.Source
		return true
	})
	if err != nil {
		return fault.New(fault.Precondition, "record image %q: %w", img.Name, err)
	}
	return nil
}

// asked says which templates a wish names. Sources that have to be fetched from somewhere are refused.
func (m *Images) asked(wish spec.ImagePrepare) (record.Image, error) {
	img := record.Image{Name: wish.Name}
	p := wish.Proxmox
	if p == nil {
		field, value := fetched(wish)
		if field == "" {
			return img, fault.New(fault.Invalid, "image_json: source: names no template of PVE: give source.proxmox.templateName or source.proxmox.templateID")
		}
		return img, fault.New(fault.Precondition, "image_json: %s: %s is not fetched by this version: make a template of it named %q, and give source.proxmox: {templateName: %s}",
			field, value, wish.Name, wish.Name)
	}
	if p.FullClone != nil && !*p.FullClone {
		return img, fault.New(fault.Precondition, "image_json: source.proxmox.fullClone: VMs are full copies unless their class asks for linked ones: leave it away, and give the VMClass extraConfig proxmox.linked-clone")
	}
	img.Template, img.Node = p.TemplateName, p.Node
	if p.TemplateID != nil {
		img.Template = strconv.Itoa(*p.TemplateID)
	}
	if img.Template == "" {
		img.Template = wish.Name
	}
	return img, nil
}

// fetched returns the field of a source that would have to be fetched, and what it names.
func fetched(wish spec.ImagePrepare) (field, value string) {
	switch {
	case wish.Libvirt != nil && wish.Libvirt.URL != "":
		return "source.libvirt.url", wish.Libvirt.URL
	case wish.Libvirt != nil:
		return "source.libvirt.path", wish.Libvirt.Path
	case wish.HTTP != nil:
		return "source.http.url", wish.HTTP.URL
	case wish.Registry != nil:
		return "source.registry.image", wish.Registry.Image
	case len(wish.Foreign) > 0:
		return wish.Foreign[0], "it"
	}
	return "", ""
}

// source returns the templates that an image is to be made of, at most one on each node.
func (l *lookup) source(ctx context.Context, wish spec.ImagePrepare, img record.Image) ([]*pmxcfs.VM, error) {
	p := wish.Proxmox
	if _, known := l.world.Members.Nodes[p.Node]; p.Node != "" && !known {
		return nil, fault.New(fault.NotFound, "image_json: source.proxmox.node: the cluster has no node %q", p.Node)
	}
	if _, known := l.world.Storages.Get(p.Storage); p.Storage != "" && !known {
		return nil, fault.New(fault.NotFound, "image_json: source.proxmox.storage: there is no storage %q", p.Storage)
	}
	if p.TemplateID != nil {
		return l.numberedSource(ctx, p)
	}
	if p.TemplateName != "" && p.TemplateName != wish.Name && len(l.templates(wish.Name)) > 0 {
		return nil, fault.New(fault.Exists, "target_name: a template is named %q too, and VMs that name it would be made of image %s: name the VMImage otherwise", wish.Name, p.TemplateName)
	}
	found := l.templates(img.Template)
	if p.Node != "" {
		found = slices.DeleteFunc(found, func(vm *pmxcfs.VM) bool { return vm.Node != p.Node })
	}
	if len(found) == 0 {
		return nil, l.noSource(wish, img)
	}
	set, err := onePerNode(img.Template, found, nil)
	if err != nil {
		return nil, fault.New(fault.Precondition, "%w (source.proxmox.templateID)", err)
	}
	return set, nil
}

func (l *lookup) numberedSource(ctx context.Context, p *spec.ProxmoxSource) ([]*pmxcfs.VM, error) {
	vm, err := l.find(ctx, *p.TemplateID)
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "image_json: source.proxmox.templateID: template %d does not exist in this cluster", *p.TemplateID)
	}
	switch {
	case err != nil:
		return nil, err
	case !vm.Conf.Template():
		return nil, fault.New(fault.Precondition, "image_json: source.proxmox.templateID: VM %d is no template (qm template %d makes one of it)", vm.ID, vm.ID)
	case p.TemplateName != "" && p.TemplateName != vm.Conf.Name():
		return nil, fault.New(fault.Precondition, "image_json: source.proxmox.templateName: template %d is named %q, not %q", vm.ID, vm.Conf.Name(), p.TemplateName)
	case p.Node != "" && p.Node != vm.Node:
		return nil, fault.New(fault.Precondition, "image_json: source.proxmox.node: template %d is on node %s, not on %s", vm.ID, vm.Node, p.Node)
	}
	return []*pmxcfs.VM{vm}, nil
}

// noSource is the failure of an image whose template is not there.
func (l *lookup) noSource(wish spec.ImagePrepare, img record.Image) error {
	where := "in this cluster"
	if img.Node != "" {
		where = "on node " + img.Node
	}
	if wish.Proxmox.TemplateName != "" {
		return fault.New(fault.NotFound, "image_json: source.proxmox.templateName: no template is named %q %s", img.Template, where)
	}
	if field, value := fetched(wish); field != "" {
		return fault.New(fault.Precondition, "image_json: %s: %s is not fetched by this version, and no template is named %q %s: make one", field, value, img.Template, where)
	}
	return fault.New(fault.NotFound, "image_json: source.proxmox: names no template, and none is named %q %s as the image is: give templateName or templateID", img.Template, where)
}

// notes tells what of a wish is not carried out for a template that is in PVE already.
func notes(wish spec.ImagePrepare, world *pmxcfs.World, set []*pmxcfs.VM) []string {
	var out []string
	add := func(set bool, format string, args ...any) {
		if set {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	p := wish.Proxmox
	for _, vm := range set {
		boot, ok := vm.Conf.BootDisk()
		if !ok {
			continue
		}
		add(p.Storage != "" && boot.Storage != p.Storage, "source.proxmox.storage: template %d stays on %s", vm.ID, boot.Storage)
		s, _ := world.Storages.Get(boot.Storage)
		format := s.Format(boot.Volume)
		add(p.Format != "" && p.Format != format, "source.proxmox.format: template %d stays %s", vm.ID, format)
	}
	field, _ := fetched(wish)
	add(field != "", "%s: the template is there already", field)
	add(wish.StorageHint != "", "storage_hint: the template stays where it is")
	if q := wish.Prepare; q != nil {
		add(q.ValidateChecksum, "prepare.validateChecksum: what is in PVE already is not checked again")
		add(q.PreferredFormat != "" || q.ConvertFormat != "", "prepare.storage.preferredFormat, prepare.optimization.convertFormat: templates stay as they are")
		add(q.Compression || q.EnableCompression || q.RemoveUnusedSpace || q.EnableDeltaSync, "prepare.storage.compression, prepare.optimization: nothing is imported")
		add(q.Timeout > 0 || q.Retries != nil, "prepare.timeout, prepare.retries: nothing is imported, so that nothing takes long")
	}
	return out
}
