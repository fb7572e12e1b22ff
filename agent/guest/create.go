package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
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
// owner with that name made. It returns as soon as the id is final, which is before PVE is asked for anything.
func (g *Guests) Create(ctx context.Context, owner string, wish spec.Create) (Created, error) {
	for attempt := 0; ; attempt++ {
		c, err := g.createOnce(ctx, owner, wish)
		// A repeat that arrives while the first request ends can find the name free and then lose it to the first:
		// the second look finds the VM.
		if err == nil || attempt > 0 || !errors.Is(err, errOutrun) {
			return c, err
		}
	}
}

// errOutrun marks a claim lost to another request of the same owner and name.
var errOutrun = errors.New("another request has taken the name meanwhile")

func (g *Guests) createOnce(ctx context.Context, owner string, wish spec.Create) (Created, error) {
	key := string(ops.Create) + "/" + owner + "/" + wish.Name
	h := g.cfg.Ops.Find(key)
	if _, err := g.cfg.Watcher.World(); err != nil { // or a read of /etc/pve might never come back
		return Created{}, fault.New(fault.Precondition, "create %s: %w", wish.Name, err)
	}
	if h == nil {
		if id, err := g.made(ctx, owner, wish.Name); id != "" || err != nil {
			return Created{ID: id}, err
		}
		order, err := g.order(ctx, owner, wish)
		if err != nil {
			return Created{}, err
		}
		if err := g.mayStart(ctx, "create "+wish.Name, true); err != nil {
			return Created{}, err
		}
		ask := ops.Ask{Kind: ops.Create, Key: key, Subject: ops.Subject{Owner: owner, Name: wish.Name}, Params: order}
		if h, _, err = g.cfg.Ops.Start(ctx, ask); err != nil {
			return Created{}, err
		}
	}
	op, err := h.Wait(ctx, func(op ops.Op) bool { return claimed(op) })
	if err != nil {
		return Created{}, fault.New(fault.Aborted, "create %s: waiting for its id: %w", wish.Name, err)
	}
	if !claimed(op) {
		if fault.Is(op.Err(), fault.Exists) {
			return Created{}, fault.New(fault.Exists, "%s: %w", op.Err(), errOutrun)
		}
		return Created{}, op.Err()
	}
	return Created{ID: op.Subject.ID, Op: h}, nil
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

// made returns the id of the VM that owner's name stands for already, or "" when the name is free or only a dead
// claim holds it.
func (g *Guests) made(ctx context.Context, owner, name string) (string, error) {
	rec, ok, err := g.findRecord(owner, name)
	if err != nil {
		return "", refineClaim(fmt.Sprintf("create %s: read its record", name), err)
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
		return "", fault.New(fault.Aborted, "create %s: its earlier VM %s is being deleted, ask again", name, id)
	}
	if at, ok := g.lastDescribed(rec.VMID); ok && time.Since(at) < heldByAnother {
		return "", fault.New(fault.Exists, "create %s: a VM of that name (%s) exists and is in use by another object of this client; choose another name", name, id)
	}
	return id.String(), nil
}

// findRecord returns the record of owner's name. One that was cut short by a crash, and is old enough for its writer to
// be dead, is removed: nothing but the claim can have been made by then.
func (g *Guests) findRecord(owner, name string) (record.Record, bool, error) {
	rec, ok, err := g.cfg.Records.Find(owner, name)
	torn, cut := errors.AsType[*record.IncompleteError](err)
	if !cut || !torn.Dead(g.cfg.Now()) {
		return rec, ok, err
	}
	if _, err := g.cfg.Records.Sweep(g.cfg.Now()); err != nil {
		return record.Record{}, false, err
	}
	return g.cfg.Records.Find(owner, name)
}

// dead reports whether a record stands for no VM and nobody is making one: its VM is gone without doubt, or its
// number belongs to another machine now, or its maker is no longer at it and has left at most a half-made VM.
func (g *Guests) dead(ctx context.Context, rec record.Record) (bool, error) {
	if rec.State == record.Creating {
		return g.abandoned(ctx, rec)
	}
	vm, err := g.cfg.Watcher.Locate(ctx, rec.VMID)
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

// order is what a create operation is asked to do: everything it needs, decided once, so that a resumed operation
// does the same as the first attempt would have.
type order struct {
	Owner, Name string
	Fingerprint string
	Tags        []string `json:",omitempty"`

	Source   int    // VMID of the template or VM to clone
	Storage  string `json:",omitempty"` // for the disks; "" keeps them where the source's are
	Hardware hardware
	SMBIOS   string // the source's smbios1, whose uuid is replaced
	Grow     growth

	// CloudInit is what the cloud-init drive has to say, nil when nothing is asked of it. Its InstanceID is the VM's uuid.
	CloudInit      *cloudinit.Wish `json:",omitempty"`
	Snippets       string          `json:",omitempty"` // storage for its parts; "": PVE's own keys carry it
	CICustom       string          `json:",omitempty"` // the source's cicustom
	CloudInitKey   string          `json:",omitempty"` // where a cloud-init drive is to be added
	CloudInitStore string          `json:",omitempty"`
}

// order checks a wish against the world and plans what is to be done. It changes nothing.
func (g *Guests) order(ctx context.Context, owner string, wish spec.Create) (order, error) {
	if err := g.nameIsFree(ctx, wish.Name); err != nil {
		return order{}, err
	}
	source, err := g.source(ctx, wish.Image)
	if err != nil {
		return order{}, err
	}
	if len(wish.Unknown) > 0 {
		g.log.InfoContext(ctx, "keys of a request that this version does not know", "name", wish.Name, "keys", wish.Unknown)
	}
	sum := sha256.Sum256(wish.Canonical())
	o := order{
		Owner: owner, Name: wish.Name, Fingerprint: hex.EncodeToString(sum[:]), Tags: wish.Tags,
		Source: source.ID, Storage: wish.Placement.Datastore,
	}
	o.SMBIOS, _ = source.Conf.Get("smbios1")
	if o.Hardware, err = planHardware(wish.Class, source.Conf, g.bounds(source, o.Storage)); err != nil {
		return order{}, err
	}
	if source.Conf.Protection() {
		o.Hardware["protection"] = "0" // PVE copies it, and then nobody could delete what we make
	}
	if o.Grow, err = planGrowth(wish.Class, source.Conf); err != nil {
		return order{}, err
	}
	if err := g.checkStorage(o.Storage); err != nil {
		return order{}, err
	}
	return o, g.orderCloudInit(ctx, &o, wish, source.Conf)
}

// checkStorage finds out early what PVE would say late: a full clone copies for minutes before it fails.
func (g *Guests) checkStorage(name string) error {
	if name == "" {
		return nil
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "placement_json: Datastore: %q: cannot be looked up: %w", name, err)
	}
	s, ok := world.Storages.Get(name)
	switch {
	case !ok:
		return fault.New(fault.Precondition, "placement_json: Datastore: storage %q does not exist", name)
	case !s.OnNode(g.cfg.Node):
		return fault.New(fault.Precondition, "placement_json: Datastore: storage %q is not available on node %s", name, g.cfg.Node)
	case !s.Has("images"):
		return fault.New(fault.Precondition, "placement_json: Datastore: storage %q holds no VM disks (its content lacks images)", name)
	}
	return nil
}

// nameIsFree fails with Exists when a VM that we did not make has the name. Templates and the VMs with the numbers
// except do not count, nor do VMs made for another owner.
func (g *Guests) nameIsFree(ctx context.Context, name string, except ...int) error {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "create %s: look for VMs of that name: %w", name, err)
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
			return fault.New(fault.Exists, "create %s: VM %d on node %s has that name and was not made by pve-rigaud; adopt it or choose another name", name, vm.ID, vm.Node)
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
