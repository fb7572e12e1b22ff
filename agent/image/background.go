package image

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// String names the task.
func (m *Images) String() string { return "images" }

// Ready is closed when the task runs.
func (m *Images) Ready() <-chan struct{} { return m.ready }

// Run makes replicas that are missing on this node, one at a time, and removes those that are out of date, until ctx ends.
func (m *Images) Run(ctx context.Context) error {
	close(m.ready)
	tick := time.NewTicker(m.cfg.Every)
	defer tick.Stop()
	for {
		changed := m.cfg.Watcher.Changed()
		if err := m.pass(ctx); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "replicas of images are not as they should be", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			// Much changes at once when it does; and what failed a moment ago is not tried again at once.
			if !rest(ctx, m.cfg.Every/10) {
				return nil
			}
		case <-tick.C:
		}
	}
}

func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pass looks at each image on record once.
func (m *Images) pass(ctx context.Context) error {
	if m.quorate() != nil {
		return nil
	}
	l, err := m.look()
	if err != nil {
		return err
	}
	errs := []error{l.broken}
	for _, img := range l.images {
		set, err := l.recorded(img)
		if fault.Is(err, fault.NotFound) { // nothing is left of it; should its template come back, it lives again
			continue
		}
		if err == nil && m.wanted(l.world, set) && !m.resting(img.Name) {
			err = m.makeMissing(ctx, set)
		}
		if err == nil {
			err = m.dropStale(ctx, img.Name)
		}
		if ctx.Err() != nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// wanted reports whether this node is the one to make a replica of an image: of the nodes that can have one and have none,
// the first ones in an order that is the same everywhere.
func (m *Images) wanted(world *pmxcfs.World, set Set) bool {
	source, ok := set.Any()
	if !ok || source.Shared || m.cfg.Replicas == 0 || m.cfg.Replicas == 1 {
		return false
	}
	missing := len(world.Members.Nodes)
	if m.cfg.Replicas != EveryNode {
		missing = m.cfg.Replicas - len(set.ready(world, m.cfg.Now()))
	}
	var able []string
	for node := range world.Members.Nodes {
		if _, has := set.On(node); has || !world.Online(node) || m.mayNot(world, set, node) != "" {
			continue
		}
		if _, err := targetOn(world, source.VM.Conf, node); err == nil {
			able = append(able, node)
		}
	}
	slices.SortFunc(able, func(a, b string) int {
		return strings.Compare(rank(set.Name, a), rank(set.Name, b))
	})
	return slices.Contains(able[:max(0, min(missing, len(able)))], m.cfg.Node)
}

// rank orders nodes by image, so that not all replicas go to the same ones.
func rank(image, node string) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s", image, node) // a hash takes everything
	return fmt.Sprintf("%016x", h.Sum64())
}

// makeMissing makes the replica of this node and waits for it.
func (m *Images) makeMissing(ctx context.Context, set Set) error {
	h, err := m.start(ctx, set)
	if err != nil {
		return err
	}
	op, err := h.Wait(ctx, nil)
	if err == nil {
		err = op.Err()
	}
	return err
}

// dropStale removes the replicas of this node that are out of date, when nothing is made of them any more: those whose disks
// VMs share stay for them.
func (m *Images) dropStale(ctx context.Context, name string) error {
	set, err := m.Resolve(ctx, name)
	if err != nil {
		return err
	}
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return err
	}
	var errs []error
	for _, member := range set.Members {
		if !member.Replica || member.Node != m.cfg.Node && member.Record.Node != m.cfg.Node {
			continue
		}
		switch {
		case member.State == Missing && m.gone(ctx, member):
			errs = append(errs, m.strike(ctx, name, member))
		case member.State == Stale && member.Node == m.cfg.Node && len(clones(world, member.VM)) == 0:
			errs = append(errs, m.replace(ctx, name, member))
		}
	}
	return errors.Join(errs...)
}

// gone reports whether a replica certainly does not exist any more: another machine has its number, or none has. It looks
// anew: one that was recorded a moment ago may not be known yet, or as something that is being made.
func (m *Images) gone(ctx context.Context, r Member) bool {
	if m.cfg.Watcher.Refresh(ctx) != nil {
		return false
	}
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return false
	}
	if vm := world.VMs[r.VMID]; vm != nil {
		return vm.Conf == nil || vm.Conf.SMBIOSUUID() != r.Record.UUID && vm.Conf.Lock() == ""
	}
	absent, err := m.cfg.Watcher.Absent(ctx, r.VMID)
	return err == nil && absent
}

// replace removes a replica that is out of date.
func (m *Images) replace(ctx context.Context, name string, old Member) error {
	if err := m.cfg.Watcher.Refresh(ctx); err != nil { // a VM may have been made of it a moment ago
		return err
	}
	if world, err := m.cfg.Watcher.World(); err != nil || len(clones(world, old.VM)) > 0 {
		return err
	}
	if err := m.destroy(ctx, old.VMID, old.Record.UUID); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "a replica that was out of date is removed", "image", name, "vm", old.VMID, "reason", old.Reason)
	if err := m.cfg.Watcher.Refresh(ctx); err != nil {
		return err
	}
	return m.strike(ctx, name, old)
}

// strike takes a replica that is gone off the record.
func (m *Images) strike(ctx context.Context, name string, gone Member) error {
	_, err := m.change(ctx, name, func(i *record.Image) bool {
		before := len(i.Replicas)
		i.Replicas = slices.DeleteFunc(i.Replicas, func(r record.Replica) bool { return r.VMID == gone.VMID && r.UUID == gone.Record.UUID })
		return len(i.Replicas) < before
	})
	return err
}

// used notes that a VM is made of an image: from then on it has replicas, if it is to have any.
func (m *Images) used(ctx context.Context, set Set) {
	if set.Recorded || !set.Template || m.cfg.Replicas == 0 || m.cfg.Replicas == 1 {
		return
	}
	if any, ok := set.Any(); !ok || any.Shared {
		return
	}
	if _, err := m.record(ctx, set); err != nil {
		m.log.WarnContext(ctx, "an image could not be recorded, it gets no replicas", "image", set.Name, "err", err)
	}
}

// record puts an image on record. One of a template whose name others have too is recorded under name and number.
func (m *Images) record(ctx context.Context, set Set) (record.Image, error) {
	img := record.Image{Name: set.Name, Template: set.Name}
	for _, o := range set.Members {
		img.Originals = append(img.Originals, record.Original{Node: o.Node, VMID: o.VMID, UUID: o.VM.Conf.SMBIOSUUID()})
	}
	if l, err := m.look(); err == nil && len(l.templates(set.Name)) != len(set.Members) {
		img.Template = strconv.Itoa(set.Members[0].VMID)
		img.Name = set.Name + "-" + img.Template
	}
	img.Source = sourceText(img)
	made, err := m.create(ctx, img)
	if errors.Is(err, record.ErrImageExists) {
		if made.Template == img.Template && made.Node == img.Node {
			return made, nil
		}
		return made, fault.New(fault.Exists, "image %q is recorded already, for template %s", img.Name, made.Template)
	}
	if err != nil {
		return made, fault.New(fault.Precondition, "record image %q: %w", img.Name, err)
	}
	return made, nil
}

// create records an image, and waits while somebody else does.
func (m *Images) create(ctx context.Context, img record.Image) (record.Image, error) {
	var made record.Image
	err := ops.Retry(ctx, underChange, func(context.Context) (err error) {
		made, err = m.cfg.Records.Create(img)
		return err
	})
	return made, err
}

// sourceText says in words where an image comes from.
func sourceText(img record.Image) string {
	text := "template " + img.Template
	if _, err := strconv.Atoi(img.Template); err != nil {
		text = fmt.Sprintf("templates named %q", img.Template)
	}
	if img.Node != "" {
		text += " on node " + img.Node
	}
	return text
}
