package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/snapname"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// maxSnapshotText is how long a snapshot's description may be, in bytes. It is part of the VM's config, which /etc/pve
// holds in memory on every node.
const maxSnapshotText = 8 << 10

// SnapshotWish is what a snapshot is to be.
type SnapshotWish struct {
	Name        string // as the client calls it
	Description string
	Memory      bool // with the memory of the guest, if the VM runs when the snapshot is taken
}

// Snapshot is a snapshot that is there, or being taken.
type Snapshot struct {
	ID string      // PVE's name for it
	Op *ops.Handle // nil: it was there already
}

// snapshotting is what an operation on a snapshot is asked to do.
type snapshotting struct {
	ID          string // of the VM
	Snapshot    string // PVE's name
	Name        string `json:",omitempty"` // as the client calls it
	Description string `json:",omitempty"`
	Memory      bool   `json:",omitempty"`
}

func (p snapshotting) act(verb string) string {
	return fmt.Sprintf("%s snapshot %s of VM %s", verb, p.Snapshot, p.ID)
}

// snapshotKey is the key of an operation on a snapshot: the whole id, because the number may be another VM's by now.
func snapshotKey(kind ops.Kind, id, snapshot string) string {
	return fmt.Sprintf("%s/%s/%s", kind, id, snapshot)
}

// askSnapshot is the request for an operation on a snapshot.
func askSnapshot(kind ops.Kind, owner string, conf *pmxcfs.Conf, id, snapshot string, params any) ops.Ask {
	return ops.Ask{
		Kind: kind, Key: snapshotKey(kind, id, snapshot), Params: params,
		Subject: ops.Subject{Owner: owner, Name: conf.Name(), ID: id, Snapshot: snapshot},
	}
}

// SnapshotCreate takes a snapshot, or joins the taking of it. A snapshot of that name is success: the manager asks
// twice for most of its snapshots.
func (g *Guests) SnapshotCreate(ctx context.Context, owner string, id record.ID, wish SnapshotWish) (Snapshot, error) {
	if err := wish.check(); err != nil {
		return Snapshot{}, err
	}
	conf, id, err := g.snapshotted(ctx, id)
	if err != nil {
		return Snapshot{}, err
	}
	p := snapshotting{ID: id.String(), Snapshot: snapname.Encode(wish.Name), Name: wish.Name, Description: wish.Description, Memory: wish.Memory}
	made := Snapshot{ID: p.Snapshot, Op: g.cfg.Ops.Find(snapshotKey(ops.SnapshotCreate, p.ID, p.Snapshot))}
	if made.Op != nil {
		return made, nil
	}
	if there, err := g.snapshotThere(conf, p); there || err != nil {
		return made, err
	}
	if err := g.maySnapshot(ctx, id, conf, p); err != nil {
		return Snapshot{}, err
	}
	made.Op, _, err = g.cfg.Ops.Start(ctx, askSnapshot(ops.SnapshotCreate, owner, conf, p.ID, p.Snapshot, p))
	return made, err
}

func (w SnapshotWish) check() error {
	if err := snapname.Check(w.Name); err != nil {
		return fault.New(fault.Invalid, "name_hint: %w", err)
	}
	if len(w.Description) > maxSnapshotText {
		return fault.New(fault.Invalid, "description: is %d bytes long, more than %d", len(w.Description), maxSnapshotText)
	}
	if strings.ContainsRune(w.Description, 0) {
		return fault.New(fault.Invalid, "description: holds a zero byte")
	}
	return nil
}

// snapshotted finds a VM of this node whose snapshots are the matter, with its config as it is at this moment and its
// whole id.
func (g *Guests) snapshotted(ctx context.Context, id record.ID) (*pmxcfs.Conf, record.ID, error) {
	if _, err := g.findHere(ctx, id); err != nil {
		return nil, id, err
	}
	conf, err := g.confHere(ctx, id.VMID)
	if err != nil {
		return nil, id, err
	}
	switch {
	case conf == nil:
		return nil, id, fault.New(fault.Aborted, "%s: moved while it was looked up, ask again", vmText(id.VMID))
	case !id.Fits(id.VMID, conf.SMBIOSUUID()):
		return nil, id, fault.New(fault.Precondition, "id %s: VM %d is another machine now (SMBIOS uuid %s, name %q)", id, id.VMID, conf.SMBIOSUUID(), conf.Name())
	}
	return conf, record.NewID(id.VMID, conf.SMBIOSUUID()), nil
}

// snapshotThere reports whether what is asked for is there, and will stay.
func (g *Guests) snapshotThere(conf *pmxcfs.Conf, p snapshotting) (bool, error) {
	s, ok := conf.Snapshot(p.Snapshot)
	if !ok {
		return false, nil
	}
	if was := snapname.Decode(s.Name, s.Description()); p.Name != was && was != s.Name {
		return false, fault.New(fault.Exists, "%s for %q: there is one of that name for %q", p.act("take"), p.Name, was)
	}
	return s.State() == "" && g.cfg.Ops.Find(snapshotKey(ops.SnapshotDelete, p.ID, p.Snapshot)) == nil, nil
}

// maySnapshot refuses what cannot be, before anything is started.
func (g *Guests) maySnapshot(ctx context.Context, id record.ID, conf *pmxcfs.Conf, p snapshotting) error {
	act := p.act("take")
	if conf.Template() {
		return fault.New(fault.Precondition, "%s: VM %d (%s) is a template; templates have no snapshots", act, id.VMID, conf.Name())
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	if no := snapshotBlockers(id.VMID, conf, world.Storages); len(no) > 0 {
		return fault.New(fault.Precondition, "%s: %s", act, strings.Join(no, "; "))
	}
	if err := g.mayStart(ctx, act, true); err != nil {
		return err
	}
	able, err := g.cfg.PVE.HasFeature(ctx, g.cfg.Node, id.VMID, pve.FeatureSnapshot)
	if err != nil {
		return explain(act, err)
	}
	if !able {
		return fault.New(fault.Precondition, "%s: PVE says that not all of its disks can be snapshot: %s", act, diskText(conf))
	}
	return nil
}

// errHeld is the finding that something else is at work on the VM, which will end.
var errHeld = errors.New("waits for its turn")

// waitable reports whether an operation on a snapshot waits for the end of what stands in its way.
func waitable(err error) bool {
	return passing(err) || errors.Is(err, errHeld) || pve.KindOf(err) == pve.KindLocked
}

// held says what stands in the way of an operation on a snapshot: a lock in the VM's config, or an earlier operation on
// the same snapshot. Of two operations the later one waits.
func (g *Guests) held(r *ops.Run, conf *pmxcfs.Conf, p snapshotting, other ops.Kind) error {
	if h := g.cfg.Ops.Find(snapshotKey(other, p.ID, p.Snapshot)); h != nil && h.Op().ID < r.ID() {
		return fmt.Errorf("operation %s: %w", h.Op().Kind, errHeld)
	}
	if conf.Lock() == "" {
		return nil
	}
	return fmt.Errorf("%s: %w", lockText(conf.Lock(), p.ID), errHeld)
}

// lockText says what a lock in a VM's config means. Those that snapshots take stay when PVE is interrupted.
func lockText(lock, id string) string {
	switch lock {
	case "snapshot", "snapshot-delete", "rollback":
		return fmt.Sprintf("it is locked (%s; if no task of PVE is at work on it one was interrupted: look with qm listsnapshot %[2]s, then qm unlock %[2]s)",
			lock, vmNumber(id))
	}
	return fmt.Sprintf("it is locked (%s)", lock)
}

func vmNumber(id string) string {
	n, _, _ := strings.Cut(id, "-")
	return n
}

const stepTake = "take" // the only step of taking a snapshot

// takeSnapshot is the handler of SnapshotCreate operations.
func (g *Guests) takeSnapshot(ctx context.Context, r *ops.Run) error {
	var p snapshotting
	if err := r.Params(&p); err != nil {
		return err
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	return r.Step(ctx, stepTake, func(ctx context.Context, s *ops.StepRun) error {
		ctx, cancel := budget(ctx, r.Op(), g.cfg.TaskTimeout)
		defer cancel()
		t := g.pveTask(s,
			func(ctx context.Context) (pve.UPID, bool, error) {
				if err := g.awaitTasks(ctx, id.VMID, "qmsnapshot", r.Op().Created); err != nil {
					return "", false, err
				}
				conf, _, err := g.snapshotted(ctx, id)
				return "", err == nil && complete(conf, p.Snapshot), err
			},
			func(ctx context.Context) (pve.UPID, error) { return g.startSnapshot(ctx, r, id, p) })
		err := ops.Retry(ctx, waitable, t.Attempt)
		if pve.KindOf(err) == pve.KindExists { // somebody was faster, or a lost request was carried out after all
			err = ops.Retry(ctx, waitable, t.Attempt)
		}
		if err == nil {
			err = g.confirmSnapshot(ctx, id, p)
		}
		return explainSnapshot(p.act("take"), err)
	})
}

// explainSnapshot is explain for errors some of which explain themselves.
func explainSnapshot(act string, err error) error {
	if err == nil {
		return nil
	}
	if _, said := errors.AsType[*fault.Error](err); said {
		return err
	}
	return explain(act, err)
}

// complete reports whether a snapshot is there and PVE is done with it.
func complete(conf *pmxcfs.Conf, snapshot string) bool {
	s, ok := conf.Snapshot(snapshot)
	return ok && s.State() == ""
}

// startSnapshot makes the call, unless the snapshot is there or something is in its way.
func (g *Guests) startSnapshot(ctx context.Context, r *ops.Run, id record.ID, p snapshotting) (pve.UPID, error) {
	conf, _, err := g.snapshotted(ctx, id)
	if err != nil {
		return "", err
	}
	if err := g.held(r, conf, p, ops.SnapshotDelete); err != nil {
		return "", err
	}
	if s, ok := conf.Snapshot(p.Snapshot); ok {
		if s.State() == "" {
			return "", nil
		}
		return "", fault.New(fault.Exists, "%s: there is one, half made or half removed (%s); remove it with: qm delsnapshot %d %s --force",
			p.act("take"), s.State(), id.VMID, p.Snapshot)
	}
	memory := p.Memory
	if memory { // a VM that does not run has none, whatever was asked
		if memory, err = g.runs(ctx, id.VMID, conf); err != nil {
			return "", err
		}
	}
	return g.cfg.PVE.CreateSnapshot(ctx, g.cfg.Node, id.VMID, pve.SnapshotParams{
		Name: p.Snapshot, Description: snapname.Describe(p.Name, p.Snapshot, p.Description), Memory: memory,
	})
}

// runs reports whether a VM of this node is on.
func (g *Guests) runs(ctx context.Context, vmid int, conf *pmxcfs.Conf) (bool, error) {
	st, err := g.cfg.Status.State(ctx, vmid, status.Want{Lock: conf.Lock(), User: true})
	if err != nil {
		return false, fault.New(fault.Precondition, "%s: its state cannot be read: %w", vmText(vmid), err)
	}
	return st.Power == status.On, nil
}

// awaitTasks waits for the end of each task of a kind that works on the VM: one that a call of an earlier life,
// or one whose answer was lost, has started. How it ended is told by the config.
func (g *Guests) awaitTasks(ctx context.Context, vmid int, kind string, since time.Time) error {
	tasks, err := g.cfg.PVE.Tasks(ctx, g.cfg.Node, pve.TaskQuery{
		VMID: vmid, Type: kind, Since: since.Add(-clockSlack), Source: "all", Limit: 500,
	})
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if !t.Running() {
			continue
		}
		if err := g.cfg.PVE.Wait(ctx, t.UPID); err != nil && underWay(err) {
			return err
		}
	}
	return nil
}

// confirmSnapshot reads the snapshot back: only what is there counts, not what PVE answered.
func (g *Guests) confirmSnapshot(ctx context.Context, id record.ID, p snapshotting) error {
	conf, _, err := g.snapshotted(ctx, id)
	if err != nil {
		return err
	}
	if !complete(conf, p.Snapshot) {
		return fault.New(fault.Aborted, "%s: PVE says it is done, but it is not there", p.act("take"))
	}
	g.refresh(ctx)
	return nil
}

// refresh makes what is watched as new as what was just done.
func (g *Guests) refresh(ctx context.Context) {
	if err := g.cfg.Watcher.Refresh(ctx); err != nil {
		g.log.WarnContext(ctx, "done, but /etc/pve could not be read again at once", "err", err)
	}
}

// findSnapshot returns the snapshot that a client means: by PVE's name for it, or by the name it has asked for.
func findSnapshot(conf *pmxcfs.Conf, name string) (pmxcfs.Snapshot, bool) {
	if s, ok := conf.Snapshot(name); ok || name == "" {
		return s, ok
	}
	return conf.Snapshot(snapname.Encode(name))
}
