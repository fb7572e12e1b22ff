package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Plugger changes what a running VM has, through its monitor.
type Plugger interface {
	CPUs(ctx context.Context, t hotplug.Target, want int) (hotplug.CPUs, error)
	Mend(ctx context.Context, t hotplug.Target) (hotplug.CPUs, error)
	Balloon(ctx context.Context, t hotplug.Target, mib int) (actual int, err error)
}

// monitorTime is how long a reconfigure operation bears a QEMU that does not answer: longer than PVE is at it with a
// monitor of its own.
const monitorTime = 10 * time.Minute

// changing is what a reconfigure operation is asked to do.
type changing struct {
	ID          string
	Fingerprint string
	Wish        spec.Reconfigure
}

// Reconfigure makes a VM what a wish says, or joins the operation that does it. A nil handle means that it is so already,
// as far as it can be before the next start: nothing was called.
func (g *Guests) Reconfigure(ctx context.Context, owner string, id record.ID, wish spec.Reconfigure) (*ops.Handle, error) {
	act := fmt.Sprintf("reconfigure %s", id)
	if _, err := g.cfg.Watcher.World(); err != nil { // or a read of /etc/pve might never come back
		return nil, fault.New(fault.Precondition, "%s: %w", act, err)
	}
	vm, err := g.findHere(ctx, id)
	if err != nil {
		return nil, err
	}
	order := newChanging(vm, wish)
	if h, err := g.joinChange(act, id, order, g.cfg.Ops.Find(changeKey(vm.ID))); h != nil || err != nil {
		return h, err
	}
	changes, err := g.previewChange(ctx, vm, wish)
	if err != nil {
		return nil, err
	}
	if changes != nil {
		g.noteIgnored(ctx, vm, wish, *changes)
		if len(changes.Steps) == 0 {
			return nil, summary(vm.ID, nil, changes.Refused)
		}
	}
	if err := g.mayStart(ctx, act, true); err != nil {
		return nil, err
	}
	h, joined, err := g.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Reconfigure, Key: changeKey(vm.ID), Params: order,
		Subject: ops.Subject{Owner: owner, Name: vm.Conf.Name(), ID: order.ID},
	})
	if err != nil || !joined {
		return h, err
	}
	if h, err = g.joinChange(act, id, order, h); h == nil && err == nil {
		err = fault.New(fault.Aborted, "%s: another change of it has ended this moment, ask again", act)
	}
	return h, err
}

func changeKey(vmid int) string { return fmt.Sprintf("%s/%d", ops.Reconfigure, vmid) }

// newChanging keeps of a wish what a change has to know. User data may hold secrets, and is not applied here.
func newChanging(vm *pmxcfs.VM, wish spec.Reconfigure) changing {
	c := changing{ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String()}
	c.Wish = spec.Reconfigure{Class: wish.Class, Disks: wish.Disks, Placement: wish.Placement, Tags: wish.Tags}
	raw, _ := json.Marshal(c.Wish) // of plain values: it always encodes
	c.Fingerprint = fingerprint(raw)
	return c
}

// joinChange returns the operation that makes the same change already. Another one is not joined: the caller would take
// its end for the end of its own.
func (g *Guests) joinChange(act string, id record.ID, order changing, h *ops.Handle) (*ops.Handle, error) {
	if g.beingMade(id) {
		return nil, fault.New(fault.Aborted, "%s: it is still being made, ask again", act)
	}
	if g.running(ops.Delete, id) != nil {
		return nil, fault.New(fault.Aborted, "%s: it is being deleted", act)
	}
	if h == nil {
		return nil, nil
	}
	var other changing
	op := h.Op()
	if op.State != ops.Running { // its end is not that of this change
		return nil, nil
	}
	if json.Unmarshal(op.Params, &other) != nil || other.Fingerprint != order.Fingerprint || other.ID != order.ID {
		return nil, fault.New(fault.Aborted, "%s: another change of it is under way since %s, ask again", act, op.Created.Format(time.RFC3339))
	}
	return h, nil
}

// previewChange plans a change, so that what is wrong with it is said at once and what is there already needs no operation.
// Nil without an error means that only an operation can find out, because something is in the way now.
func (g *Guests) previewChange(ctx context.Context, vm *pmxcfs.VM, wish spec.Reconfigure) (*plan.Changes, error) {
	switch {
	case vm.Conf.Template():
		return nil, fault.New(fault.Precondition, "reconfigure VM %d (%s): it is a template: what is made from it relies on what it is", vm.ID, vm.Conf.Name())
	case lasting[vm.Conf.Lock()]:
		return nil, fault.New(fault.Precondition, "reconfigure VM %d: it is locked (%s) until somebody resumes or unlocks it: qm unlock %d", vm.ID, vm.Conf.Lock(), vm.ID)
	case vm.Conf.Lock() != "":
		return nil, nil
	}
	now, err := g.now(ctx, vm)
	if errors.Is(err, errSilent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	changes, err := g.planChange(vm, wish, now)
	return &changes, err
}

// lasting are the locks that PVE does not take away by itself.
var lasting = map[string]bool{"suspended": true, "suspending": true, "create": true}

// errSilent marks a QEMU that runs and cannot be asked what it has.
var errSilent = errors.New("its QEMU does not answer")

// now looks at a VM of this node as it is at this moment.
func (g *Guests) now(ctx context.Context, vm *pmxcfs.VM) (plan.Now, error) {
	now := plan.Now{Conf: vm.Conf}
	rec, ours, err := g.recordOf(ctx, vm)
	if err != nil {
		return now, err
	}
	now.Ours, now.Tags = ours, rec.Tags
	st, err := g.state(ctx, vm)
	if err != nil || !st.Running {
		return now, err
	}
	now.Running = true
	var has status.Hardware
	if has, err = g.cfg.Status.Hardware(ctx, vm.ID); err != nil {
		if st, again := g.state(ctx, vm); again == nil && !st.Running { // it has ended this moment
			now.Running = false
			return now, nil
		}
		return now, fault.New(fault.Aborted, "VM %d: %w: %w", vm.ID, errSilent, err)
	}
	now.CPUs, now.MemoryMiB = has.CPUs, has.MemoryMiB
	return now, nil
}

func (g *Guests) planChange(vm *pmxcfs.VM, wish spec.Reconfigure, now plan.Now) (plan.Changes, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return plan.Changes{}, fault.New(fault.Precondition, "reconfigure VM %d: %w", vm.ID, err)
	}
	site := g.site(spec.DesiredDialect, world)
	site.CPUs = g.leastCPUs(g.cfg.Node, vm, "")
	return plan.Reconfigure(wish, now, site)
}

// noteIgnored says once which parts of a wish are decided when a VM is made.
func (g *Guests) noteIgnored(ctx context.Context, vm *pmxcfs.VM, wish spec.Reconfigure, c plan.Changes) {
	rec, _, _ := g.recordOf(ctx, vm) // without one there is nothing to compare with
	parts := slices.Concat(unlikeMade(rec, wish), c.Ignored)
	if len(parts) == 0 {
		return
	}
	text := strings.Join(parts, ", ")
	if last := g.viewOf(vm.ID).ignored.Swap(&text); last == nil || *last != text {
		g.log.InfoContext(ctx, "a VM differs from what is wished in what is decided when it is made; that stays", "vm", vm.ID, "name", vm.Conf.Name(), "parts", text)
	}
}

// InTheWay says what of PVE's a change of a VM has to wait for; "" if there is nothing of that kind.
func (g *Guests) InTheWay(id record.ID) string {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return err.Error()
	}
	if vm := world.VMs[id.VMID]; vm != nil && vm.Conf != nil && vm.Conf.Lock() != "" {
		return fmt.Sprintf("PVE is at work on it (lock: %s)", vm.Conf.Lock())
	}
	return ""
}

// summary is the error of a change of which parts have failed; nil if none has.
func summary(vmid int, done []string, failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	reason := fault.Of(failed[0])
	var texts []string
	for _, err := range failed {
		texts = append(texts, err.Error())
		if fault.Of(err) != reason {
			reason = fault.Precondition
		}
	}
	text := "nothing was changed"
	if len(done) > 0 {
		text = "done: " + strings.Join(done, "; ")
	}
	return fault.New(reason, "reconfigure VM %d: %s; %s", vmid, strings.Join(texts, "; "), text)
}

// settleRecord keeps in the record what only a Reconfigure changes: the words of its tags, and the volumes.
func (g *Guests) settleRecord(ctx context.Context, vm *pmxcfs.VM, tags []string) {
	rec, ours, err := g.recordOf(ctx, vm)
	if err != nil || !ours || rec.State != record.Ready {
		return
	}
	vols := volumes(vm.Conf)
	if slices.Equal(rec.Tags, tags) && slices.Equal(rec.Volumes, vols) {
		return
	}
	err = g.cfg.Records.Hold(rec).Update(func(r *record.Record) { r.Tags, r.Volumes = tags, vols })
	if err != nil {
		g.log.WarnContext(ctx, "the record of a VM was not brought up to date", "vm", vm.ID, "err", err)
	}
}
