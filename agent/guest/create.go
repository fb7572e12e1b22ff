package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// heldByAnother is how long after its last Describe a VM counts as held by some object of the manager: it describes
// each of its VMs every 10 s. A Create of that name then comes from another object (another namespace).
const heldByAnother = 60 * time.Second

// Created is the answer to Create: the final id, and the operation that makes the VM, nil when it is there already.
type Created struct {
	ID string
	Op *ops.Handle
}

// Create makes the VM that owner wishes, or joins the making of it, or returns the VM that an earlier request of
// owner with that name made. It returns as soon as the id is final, which is before PVE is asked for anything. The VM
// goes to the node target; "": it stays on this one.
func (g *Guests) Create(ctx context.Context, owner string, wish spec.Create, target string) (Created, error) {
	r := createRequest(owner, wish)
	r.target = target
	return g.making(ctx, r)
}

// making makes the VM that a request asks for.
func (g *Guests) making(ctx context.Context, r request) (Created, error) {
	for attempt := 0; ; attempt++ {
		c, err := g.makeOnce(ctx, r)
		// A repeat that arrives while the first request ends can find the name free and then lose it to the first:
		// the second look finds the VM.
		if err == nil || attempt > 0 || !errors.Is(err, errOutrun) {
			return c, err
		}
	}
}

// errOutrun marks a claim lost to another request of the same owner and name.
var errOutrun = errors.New("another request has taken the name meanwhile")

func (g *Guests) makeOnce(ctx context.Context, r request) (Created, error) {
	h := g.cfg.Ops.Find(r.key())
	if _, err := g.cfg.Watcher.World(); err != nil { // or a read of /etc/pve might never come back
		return Created{}, fault.New(fault.Precondition, "%s: %w", r, err)
	}
	if h == nil {
		if id, err := g.made(ctx, r); id != "" || err != nil {
			return Created{ID: id}, err
		}
		var err error
		if h, err = g.begin(ctx, r); err != nil {
			return Created{}, err
		}
	}
	if err := mayJoin(h, r); err != nil {
		return Created{}, err
	}
	op, err := h.Wait(ctx, func(op ops.Op) bool { return claimed(op) })
	if err != nil {
		return Created{}, fault.New(fault.Aborted, "%s: waiting for its id: %w", r, err)
	}
	if !claimed(op) {
		if fault.Is(op.Err(), fault.Exists) {
			return Created{}, fault.New(fault.Exists, "%s: %w", op.Err(), errOutrun)
		}
		return Created{}, op.Err()
	}
	return Created{ID: op.Subject.ID, Op: h}, nil
}

// begin starts the making of a VM for which there is room.
func (g *Guests) begin(ctx context.Context, r request) (*ops.Handle, error) {
	order, err := g.order(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := g.mayStart(ctx, r.String(), true); err != nil {
		return nil, err
	}
	if err := g.cfg.Admission.Admit(ctx, order.node(g.cfg.Node), r.key(), order.Want); err != nil {
		return nil, err
	}
	ask := ops.Ask{Kind: r.kind, Key: r.key(), Subject: ops.Subject{Owner: r.owner, Name: r.name}, Params: order}
	h, _, err := g.cfg.Ops.Start(ctx, ask)
	if err != nil {
		g.cfg.Admission.Release(ctx, order.node(g.cfg.Node), r.key())
	}
	return h, err
}

// mayJoin refuses a Clone the making of another VM under its name, as mayAnswer does when that is made.
func mayJoin(h *ops.Handle, r request) error {
	var making struct{ Fingerprint string }
	if r.kind != ops.Clone || json.Unmarshal(h.Op().Params, &making) != nil || making.Fingerprint == r.fingerprint {
		return nil // or it has just ended, and its parameters are gone
	}
	return fault.New(fault.Exists, "%s: a VM of that name is being made by another request; choose another name", r)
}

// claimed reports whether the id of a create operation is final: its record is taken.
func claimed(op ops.Op) bool {
	for _, s := range op.Steps {
		if s.Name == stepClaim {
			return !s.Ended.IsZero()
		}
	}
	return false
}

// made returns the id of the VM that the request's name stands for already, or "" when the name is free or only a dead
// claim holds it.
func (g *Guests) made(ctx context.Context, r request) (string, error) {
	rec, ok, err := g.findRecord(ctx, r.owner, r.name)
	if err != nil {
		return "", refineClaim(fmt.Sprintf("%s: read its record", r), err)
	}
	if !ok {
		return "", nil
	}
	dead, err := g.dead(ctx, rec)
	if err != nil || dead {
		return "", err
	}
	id := rec.ID()
	if g.running(ops.Delete, id) != nil {
		return "", fault.New(fault.Aborted, "%s: its earlier VM %s is being deleted, ask again", r, id)
	}
	return id.String(), g.mayAnswer(r, rec)
}

// mayAnswer reports whether the VM of a record is the answer to a request for its name. The manager repeats a Clone, even
// of a VM that it describes already, and takes any error for the end of it; nobody else asks for the same copy of the
// same VM under the same name.
func (g *Guests) mayAnswer(r request, rec record.Record) error {
	if r.kind == ops.Clone {
		if rec.Fingerprint == r.fingerprint {
			return nil
		}
		return fault.New(fault.Exists, "%s: a VM of that name (%s) exists, made by another request; choose another name", r, rec.ID())
	}
	if at, ok := g.lastDescribed(rec.VMID); ok && time.Since(at) < heldByAnother {
		return fault.New(fault.Exists, "%s: a VM of that name (%s) exists and is in use by another object of this client; choose another name", r, rec.ID())
	}
	return nil
}

// findRecord returns the record of owner's name. One that was cut short by a crash, and is old enough for its writer to
// be dead, is removed: nothing but the claim can have been made by then.
func (g *Guests) findRecord(ctx context.Context, owner, name string) (record.Record, bool, error) {
	var rec record.Record
	var ok bool
	err := g.written(ctx, func(context.Context) (err error) {
		rec, ok, err = g.cfg.Records.Find(owner, name)
		return err
	})
	torn, cut := errors.AsType[*record.IncompleteError](err)
	if !cut || !torn.Dead(g.cfg.Now()) {
		return rec, ok, err
	}
	if _, err := g.cfg.Records.Sweep(g.cfg.Now()); err != nil {
		return record.Record{}, false, err
	}
	return g.cfg.Records.Find(owner, name)
}

// writeTime is how long a claim is waited for that another agent is writing. Agents may choose different nodes for requests
// of one name that come at once, and all but one find it so.
const writeTime = time.Second

// written calls f until the claim that it meets is written, if that takes a moment only.
func (g *Guests) written(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	return ops.Retry(ctx, func(err error) bool {
		torn, cut := errors.AsType[*record.IncompleteError](err)
		return cut && !torn.Dead(g.cfg.Now())
	}, f)
}

// dead reports whether a record stands for no VM and nobody is making one: its VM is gone without doubt, or its
// number belongs to another machine now, or its maker is no longer at it and has left at most a half-made VM.
func (g *Guests) dead(ctx context.Context, rec record.Record) (bool, error) {
	if rec.State == record.Creating {
		return g.abandoned(ctx, rec)
	}
	vm, err := g.cfg.Watcher.Locate(ctx, rec.VMID)
	if err == nil && vm.Type == pmxcfs.TypeQEMU && vm.Conf.SMBIOSUUID() != rec.UUID { // so it looks to another node a moment before it is complete, too
		if err = g.cfg.Watcher.Refresh(ctx); err == nil {
			vm, err = g.cfg.Watcher.Locate(ctx, rec.VMID)
		}
	}
	switch {
	case errors.Is(err, pmxcfs.ErrNotFound):
		err := g.judgeAbsence(ctx, rec.ID())
		return errors.Is(err, errAbsent), keepUnless(err, errAbsent)
	case err != nil:
		return false, fault.New(fault.Precondition, "create %s: look up VM %d: %w", rec.Name, rec.VMID, err)
	}
	return vm.Type != pmxcfs.TypeQEMU || vm.Conf.SMBIOSUUID() != rec.UUID, nil
}

// abandoned reports whether the making of a VM was given up: the journal that knew of it is lost. A VM that has the
// uuid of the record already is past everything that matters, and its id may be in use: it is declared made.
func (g *Guests) abandoned(ctx context.Context, rec record.Record) (bool, error) {
	switch {
	case rec.Node != g.cfg.Node:
		return g.abandonedElsewhere(ctx, rec)
	case g.beingMade(rec.ID()):
		return false, nil
	}
	conf, err := g.confHere(ctx, rec.VMID)
	if err != nil {
		return false, err
	}
	return g.unlessComplete(ctx, rec, conf)
}

// abandonedElsewhere is abandoned for a claim of another node, which is asked as long as it may live: only its own
// agent knows what it is doing. The agent of a node that comes back sees that its claim is lost and removes what it
// has made.
func (g *Guests) abandonedElsewhere(ctx context.Context, rec record.Record) (bool, error) {
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		return false, fault.New(fault.Precondition, "create %s: %w", rec.Name, err)
	}
	world, err := g.cfg.Watcher.World()
	switch {
	case err != nil:
		return false, fault.New(fault.Precondition, "create %s: %w", rec.Name, err)
	case !world.Gone(rec.Node, time.Now()):
		return false, fault.MovedTo(rec.Node, "create %s: is being made on node %s as VM %d", rec.Name, rec.Node, rec.VMID)
	}
	var conf *pmxcfs.Conf
	vm, err := g.cfg.Watcher.Locate(ctx, rec.VMID)
	switch {
	case err == nil:
		conf = vm.Conf
	case !errors.Is(err, pmxcfs.ErrNotFound):
		return false, fault.New(fault.Precondition, "create %s: look up VM %d: %w", rec.Name, rec.VMID, err)
	}
	return g.unlessComplete(ctx, rec, conf)
}

// unlessComplete reports that a claim without an operation is dead, unless conf is the VM of it, complete: then the
// record says so from now on.
func (g *Guests) unlessComplete(ctx context.Context, rec record.Record, conf *pmxcfs.Conf) (dead bool, err error) {
	if conf == nil || conf.SMBIOSUUID() != rec.UUID {
		return true, nil
	}
	err = g.cfg.Records.Hold(rec).Update(func(r *record.Record) {
		r.State, r.Volumes, r.Snippets = record.Ready, volumes(conf), ownSnippets(conf)
	})
	if err != nil {
		return false, fault.New(fault.Aborted, "create %s: declare VM %d made: %w", rec.Name, rec.VMID, err)
	}
	g.log.WarnContext(ctx, "VM found complete although the operation that made it is unknown", "vm", rec.VMID, "name", rec.Name)
	return false, nil
}

func keepUnless(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// nameIsFree fails with Exists when a VM that we did not make has the name. Templates and the VMs with the numbers
// except do not count, nor do VMs made for another owner.
func (g *Guests) nameIsFree(ctx context.Context, name string, except ...int) error {
	err := g.nameSeemsFree(ctx, name, except)
	if fault.Is(err, fault.Exists) { // unless it was deleted a moment ago, by way of another node
		if g.cfg.Watcher.Refresh(ctx) == nil {
			err = g.nameSeemsFree(ctx, name, except)
		}
	}
	return err
}

// nameSeemsFree is nameIsFree by what is known of /etc/pve.
func (g *Guests) nameSeemsFree(ctx context.Context, name string, except []int) error {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "look for VMs with the name %s: %w", name, err)
	}
	for _, vm := range world.ByName(name) {
		if slices.Contains(except, vm.ID) || vm.Type != pmxcfs.TypeQEMU || vm.Conf.Template() {
			continue
		}
		_, ours, err := g.recordOf(ctx, vm)
		if err != nil {
			return err
		}
		if !ours {
			return fault.New(fault.Exists, "VM %d on node %s has the name %s and was not made by pve-rigaud; adopt it or choose another name", vm.ID, vm.Node, name)
		}
	}
	return nil
}

// recordOf returns the record of a VM that we made.
func (g *Guests) recordOf(_ context.Context, vm *pmxcfs.VM) (record.Record, bool, error) {
	rec, ok, err := g.cfg.Records.ByVMID(vm.ID)
	if err != nil {
		return record.Record{}, false, fault.New(fault.Precondition, "read the record of VM %d: %w", vm.ID, err)
	}
	if !ok || rec.State == record.Ready && rec.UUID != vm.Conf.SMBIOSUUID() {
		return record.Record{}, false, nil // none, or one of an earlier VM with that number
	}
	return rec, true, nil
}
