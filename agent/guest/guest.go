// Package guest gives the operations on the VMs of this node their meaning: what a VM's status is, and how it is
// created, started, stopped and deleted so that each of these ends well or leaves nothing behind.
//
// Truth is asked where it lives: who owns a VM and what its config says in /etc/pve (pmxcfs), whether it runs at its
// process (status), who made it in its record (record). Changes go through the PVE API (pve); those that take time
// are operations in the journal (ops).
package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/snippet"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Config configures Guests. All rooms are given; nothing is started.
type Config struct {
	Node    string
	Tree    *pmxcfs.Tree
	Watcher *pmxcfs.Watcher
	Status  *status.Tracker
	Plugger Plugger
	PVE     *pve.Client
	Records *record.Store
	IDs     *record.IDs
	Ops     *ops.Engine
	Log     *slog.Logger

	Snippets *snippet.Store // where cloud-init finds its data
	Images   Images         // what VMs are made from

	// Admission has the last word about whether a VM that is to be made fits its node; nil: all do.
	Admission Admission

	// CPUs returns the host CPUs of a node, 0 when unknown.
	CPUs func(node string) int
	// MHz returns the clock of this node's CPUs, 0 when unknown.
	MHz func() int
	// Policy is what names in requests stand for.
	Policy plan.Policy

	// Now is the clock whose times are written to records; default time.Now.
	Now func() time.Time

	VMIDs         record.Range
	LockDir       string        // of PVE's lock files, /var/lock/qemu-server
	DeleteForeign bool          // Delete VMs that have no record of ours
	ConsoleURL    string        // base of PVE's GUI; "": https://<address of the node>:8006
	ResolvConf    string        // of this node; default /etc/resolv.conf
	TaskTimeout   time.Duration // how long an operation may try before it is undone
}

// Admission keeps room on nodes for VMs that are being made. A key stands for one VM.
type Admission interface {
	// Admit keeps room on a node, this one or another. If there is none the error has reason Moved: another node may do.
	Admit(ctx context.Context, node, key string, w placement.Want) error
	// Hold keeps room without a look, for a VM whose making has begun. VMID is 0 as long as it has no number.
	Hold(key string, vmid int, w placement.Want)
	// Settle says that the VM is made: it counts until it runs, for some minutes.
	Settle(key string)
	// Release gives back the room on a node.
	Release(ctx context.Context, node, key string)
}

// roomy is an Admission that refuses nothing.
type roomy struct{}

func (roomy) Admit(context.Context, string, string, placement.Want) error { return nil }
func (roomy) Hold(string, int, placement.Want)                            {}
func (roomy) Settle(string)                                               {}
func (roomy) Release(context.Context, string, string)                     {}

// Guests are the VMs of this node.
type Guests struct {
	cfg     Config
	log     *slog.Logger
	volumes *volumeSizes

	mu    sync.RWMutex  // guards views
	views map[int]*view // by VMID
}

// New returns the guests of a node and names their handlers to the engine.
func New(cfg Config) *Guests {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Admission == nil {
		cfg.Admission = roomy{}
	}
	g := &Guests{cfg: cfg, log: cfg.Log, views: map[int]*view{}}
	g.volumes = &volumeSizes{seen: map[string]storageContent{}, ask: func(ctx context.Context, storage string) ([]pve.Volume, error) {
		return cfg.PVE.Content(ctx, cfg.Node, storage, pve.ContentQuery{Content: "images"})
	}}
	cfg.Ops.Handle(ops.Create, g.sighted(g.create, g.quorate))
	cfg.Ops.Handle(ops.Clone, g.sighted(g.create, g.quorate))
	cfg.Ops.Handle(ops.Delete, g.sighted(g.remove, g.quorate))
	cfg.Ops.Handle(ops.Reconfigure, g.sighted(g.reconfigure, g.quorate))
	cfg.Ops.Handle(ops.Power, g.sighted(g.power, g.readable)) // PVE stops VMs without quorum
	cfg.Ops.Handle(ops.SnapshotCreate, g.sighted(g.takeSnapshot, g.quorate))
	cfg.Ops.Handle(ops.SnapshotDelete, g.sighted(g.removeSnapshot, g.quorate))
	cfg.Ops.Handle(ops.Migrate, g.sighted(g.migrate, g.quorate))
	cfg.Ops.Handle(ops.SnapshotRevert, g.sighted(g.revert, g.quorate))
	return g
}

// sighted makes a handler wait until can returns no error, that is until /etc/pve can be read, or is that of the whole
// cluster: an operation that is resumed at the start would fail, and be undone, for seeing nothing, or go on with a name
// that another node has taken meanwhile. That another node has to be asked is an answer for who asks; an operation has
// failed then.
func (g *Guests) sighted(h ops.Handler, can func() error) ops.Handler {
	return func(ctx context.Context, r *ops.Run) error {
		err := ops.Retry(ctx, func(error) bool { return true }, func(context.Context) error { return can() })
		if err != nil {
			return err
		}
		err = h(ctx, r)
		if fault.Is(err, fault.Moved) {
			return fault.New(fault.Aborted, "%w", err)
		}
		return err
	}
}

// readable fails while /etc/pve cannot be read.
func (g *Guests) readable() error {
	_, err := g.cfg.Watcher.World()
	return err
}

// quorate fails without quorum: /etc/pve shows then what was, and others may have changed it.
func (g *Guests) quorate() error {
	world, err := g.cfg.Watcher.World()
	if err == nil && !world.Quorate {
		err = fmt.Errorf("node %s: %w", g.cfg.Node, pmxcfs.ErrNoQuorum)
	}
	return err
}

// errAbsent is the finding that a VM does not exist anywhere in the cluster, without doubt.
var errAbsent = errors.New("does not exist in this cluster")

// errBeingMade is the finding that an operation of this node is making the VM, and PVE has no config file of it yet.
var errBeingMade = errors.New("is being created")

// find returns the VM that id means. It fails with errAbsent (NotFound) only when the VM certainly does not exist;
// with Precondition for a container, for another VM that has the number now, and when the world cannot be read.
func (g *Guests) find(ctx context.Context, id record.ID) (*pmxcfs.VM, error) {
	return g.findBy(ctx, id, g.cfg.Watcher.Locate)
}

// findBy is find with one of the Watcher's ways to locate a guest.
func (g *Guests) findBy(ctx context.Context, id record.ID, locate func(context.Context, int) (*pmxcfs.VM, error)) (*pmxcfs.VM, error) {
	vm, err := locate(ctx, id.VMID)
	if errors.Is(err, pmxcfs.ErrNotFound) {
		return nil, g.judgeAbsence(ctx, id)
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "%s: cannot be looked up: %w", vmText(id.VMID), err)
	}
	if vm.Type != pmxcfs.TypeQEMU {
		return nil, fault.New(fault.Precondition, "id %s: %d is a container on node %s, not a VM", id, id.VMID, vm.Node)
	}
	if !g.same(id, vm) {
		return nil, fault.New(fault.Precondition, "id %s: VM %d is another machine now (SMBIOS uuid %s, name %q); nothing was done",
			id, id.VMID, vm.Conf.SMBIOSUUID(), vm.Conf.Name())
	}
	return vm, nil
}

// findHere is find for what only the node that owns the VM can do; its error names that node. It looks anew: the VM may
// have moved a moment ago.
func (g *Guests) findHere(ctx context.Context, id record.ID) (*pmxcfs.VM, error) {
	vm, err := g.findBy(ctx, id, g.cfg.Watcher.LocateNow)
	if err != nil {
		return nil, err
	}
	return vm, g.here(id, vm)
}

func (g *Guests) here(id record.ID, vm *pmxcfs.VM) error {
	if vm.Node != g.cfg.Node {
		return fault.MovedTo(vm.Node, "VM %s is on node %s, this agent is on %s: ask the agent there", id, vm.Node, g.cfg.Node)
	}
	return nil
}

func (g *Guests) judgeAbsence(ctx context.Context, id record.ID) error {
	if g.beingMade(id) {
		return fault.New(fault.Aborted, "%s: %w", vmText(id.VMID), errBeingMade)
	}
	if err := g.madeElsewhere(id); err != nil {
		return err
	}
	absent, err := g.cfg.Watcher.Absent(ctx, id.VMID)
	switch {
	case err != nil:
		return fault.New(fault.Precondition, "%s: not found, but whether it exists cannot be decided now: %w", vmText(id.VMID), err)
	case !absent:
		return fault.New(fault.Aborted, "%s: moved while it was looked up, ask again", vmText(id.VMID))
	}
	return fault.New(fault.NotFound, "VM %s: %w", id, errAbsent)
}

// madeElsewhere fails when another node makes the VM with this id, whose config may not be there yet. A node that is
// gone makes nothing.
func (g *Guests) madeElsewhere(id record.ID) error {
	rec, ok, err := g.cfg.Records.ByVMID(id.VMID)
	if err != nil {
		return fault.New(fault.Precondition, "%s: not found, but whether it is being made cannot be decided now: %w", vmText(id.VMID), err)
	}
	if !ok || rec.State != record.Creating || rec.Node == g.cfg.Node || id.UUID8 != "" && rec.ID() != id {
		return nil
	}
	world, err := g.cfg.Watcher.World()
	if err == nil && world.Gone(rec.Node, time.Now()) {
		return nil
	}
	return fault.MovedTo(rec.Node, "%s: %w on node %s", vmText(id.VMID), errBeingMade, rec.Node)
}

// same reports whether vm is the machine that id was handed out for. A plain number means whatever VM has it. A VM
// that we are making has the uuid of its id only at the end; until then its running operation vouches for it.
func (g *Guests) same(id record.ID, vm *pmxcfs.VM) bool {
	return id.UUID8 == "" || record.NewID(vm.ID, vm.Conf.SMBIOSUUID()) == id || g.beingMade(id)
}

func (g *Guests) beingMade(id record.ID) bool { return g.makingOf(id) != nil }

// makingOf returns the operation that is making the VM with this id, or nil.
func (g *Guests) makingOf(id record.ID) *ops.Handle {
	if h := g.running(ops.Create, id); h != nil {
		return h
	}
	return g.running(ops.Clone, id)
}

// makes reports whether operations of a kind make a VM.
func makes(kind ops.Kind) bool { return kind == ops.Create || kind == ops.Clone }

// running returns the running operation of that kind on the VM with this id, or nil.
func (g *Guests) running(kind ops.Kind, id record.ID) *ops.Handle {
	for _, op := range g.cfg.Ops.Active() {
		if op.Kind == kind && means(id, op.Subject) {
			return g.cfg.Ops.Find(op.Key)
		}
	}
	return nil
}

// means reports whether id stands for the VM that an operation is about. A plain number stands for any.
func means(id record.ID, s ops.Subject) bool {
	other, err := record.ParseID(s.ID)
	return err == nil && other.VMID == id.VMID && (id.UUID8 == "" || other.UUID8 == id.UUID8)
}

// mayStart refuses a change that cannot be made now because of this endpoint, not because of the VM: once an operation
// is begun it waits for PVE to come back, and a wish that waited for hours is nobody's wish any more. Most changes are
// written to /etc/pve, which needs quorum; stopping a VM does not.
func (g *Guests) mayStart(ctx context.Context, act string, needQuorum bool) error {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	if needQuorum && !world.Quorate {
		return fault.New(fault.Precondition, "%s: node %s has no quorum, nothing can be changed", act, g.cfg.Node)
	}
	if _, trouble := g.cfg.PVE.Health(); trouble == nil {
		return nil
	}
	if _, err := g.cfg.PVE.Version(ctx); err != nil { // what the last call met may be over
		return explain(act, err)
	}
	return nil
}

// ParseID is record.ParseID with a failure that says it is the request that is wrong.
func ParseID(s string) (record.ID, error) {
	id, err := record.ParseID(s)
	if err != nil {
		return record.ID{}, fault.New(fault.Invalid, "%w", err)
	}
	return id, nil
}

// Task returns the reference under which clients poll an operation.
func (g *Guests) Task(op ops.Op) string {
	subject := op.Subject.ID
	if subject == "" {
		subject = op.Subject.Name
	}
	if op.Subject.Snapshot != "" {
		subject += "/" + op.Subject.Snapshot
	}
	return ops.Ref{Kind: op.Kind, Node: g.cfg.Node, Subject: subject, Op: op.ID}.String()
}

// budget returns the context in which an operation may try: until its time is over, but at least a minute from now,
// so that one resumed late gets its chance.
func budget(ctx context.Context, op ops.Op, limit time.Duration) (context.Context, context.CancelFunc) {
	end := op.Created.Add(limit)
	if soon := time.Now().Add(time.Minute); end.Before(soon) {
		end = soon
	}
	return context.WithDeadlineCause(ctx, end, fmt.Errorf("not done within %s", limit))
}
