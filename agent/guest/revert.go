package guest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// The steps of going back to a snapshot.
const (
	stepRollback = "rollback" // PVE stops the VM; with memory it runs afterwards
	stepPower    = "power"    // a VM that ran before runs again
)

// reverting is what an operation is asked to do that goes back to a snapshot.
type reverting struct {
	ID         string // of the VM
	Snapshot   string // PVE's name
	Running    bool   `json:",omitempty"` // the VM ran when this was asked
	Generation string `json:",omitempty"` // the VM's vmgenid then, which each rollback changes; "" if it has none
}

func (p reverting) act() string { return fmt.Sprintf("revert VM %s to snapshot %s", p.ID, p.Snapshot) }

// SnapshotRevert takes a VM back to a snapshot, or joins the operation that does it. A VM that ran runs afterwards. One
// that did not stays off, unless the snapshot holds memory: that is the state of a running machine.
//
// What is in the way is not waited for, as it throws away what the VM has done since: it is done now or not at all.
func (g *Guests) SnapshotRevert(ctx context.Context, owner string, id record.ID, name string) (*ops.Handle, error) {
	if name == "" {
		return nil, fault.New(fault.Invalid, "snapshot_id: is empty")
	}
	conf, id, err := g.snapshotted(ctx, id)
	if err != nil {
		return nil, err
	}
	s, there := findSnapshot(conf, name)
	if !there {
		return nil, fault.New(fault.NotFound, "revert VM %s: it has no snapshot %s", id, name)
	}
	p := reverting{ID: id.String(), Snapshot: s.Name}
	if h := g.cfg.Ops.Find(snapshotKey(ops.SnapshotRevert, p.ID, p.Snapshot)); h != nil {
		return h, nil
	}
	if err := mayRevert(p, conf, s); err != nil {
		return nil, err
	}
	if p.Running, err = g.runs(ctx, id.VMID, conf); err != nil {
		return nil, err
	}
	if err := g.mayStart(ctx, p.act(), true); err != nil {
		return nil, err
	}
	p.Generation, _ = conf.Get("vmgenid")
	h, _, err := g.cfg.Ops.Start(ctx, askSnapshot(ops.SnapshotRevert, owner, conf, p.ID, p.Snapshot, p))
	return h, err
}

// mayRevert refuses what PVE would refuse, and what would make the VM another one to its clients.
func mayRevert(p reverting, conf *pmxcfs.Conf, s pmxcfs.Snapshot) error {
	switch {
	case conf.Template():
		return fault.New(fault.Precondition, "%s: it is a template", p.act())
	case conf.Lock() != "":
		return fault.New(fault.Precondition, "%s: %s", p.act(), lockText(conf.Lock(), p.ID))
	case s.State() != "":
		return fault.New(fault.Precondition, "%s: the snapshot is not whole (%s)", p.act(), s.State())
	case s.SMBIOSUUID() != conf.SMBIOSUUID():
		return fault.New(fault.Precondition, "%s: the VM had SMBIOS uuid %q then and has %q now, so that it would become another machine to its clients",
			p.act(), s.SMBIOSUUID(), conf.SMBIOSUUID())
	}
	return nil
}

// revert is the handler of SnapshotRevert operations.
func (g *Guests) revert(ctx context.Context, r *ops.Run) error {
	var p reverting
	if err := r.Params(&p); err != nil {
		return err
	}
	id, err := ParseID(p.ID)
	if err != nil {
		return err
	}
	ctx, cancel := budget(ctx, r.Op(), g.cfg.TaskTimeout)
	defer cancel()
	err = r.Step(ctx, stepRollback, func(ctx context.Context, s *ops.StepRun) error {
		return g.rollBack(ctx, s, r, id, p)
	})
	if err != nil {
		return err
	}
	return r.Step(ctx, stepPower, func(ctx context.Context, _ *ops.StepRun) error {
		defer g.refresh(ctx)
		if !p.Running {
			return nil
		}
		return g.startAgain(ctx, id, p)
	})
}

func (g *Guests) rollBack(ctx context.Context, s *ops.StepRun, r *ops.Run, id record.ID, p reverting) error {
	err := g.runTask(ctx, s,
		func(ctx context.Context) (pve.UPID, bool, error) {
			if err := g.awaitTasks(ctx, id.VMID, "qmrollback", r.Op().Created); err != nil {
				return "", false, err
			}
			conf, _, err := g.snapshotted(ctx, id)
			return "", err == nil && rolledBack(conf, p), err
		},
		func(ctx context.Context) (pve.UPID, error) {
			conf, _, err := g.snapshotted(ctx, id)
			if err != nil {
				return "", err
			}
			if s, there := conf.Snapshot(p.Snapshot); !there {
				return "", fault.New(fault.NotFound, "%s: it is no longer there", p.act())
			} else if err := mayRevert(p, conf, s); err != nil {
				return "", err
			}
			return g.cfg.PVE.Rollback(ctx, g.cfg.Node, id.VMID, p.Snapshot)
		})
	if pve.KindOf(err) == pve.KindNotNewest {
		return g.explainNotNewest(ctx, id, p, err)
	}
	if err != nil {
		return explainSnapshot(p.act(), err)
	}
	_, _, err = g.snapshotted(ctx, id) // it is the VM that was meant, still
	return err
}

// rolledBack reports whether an interrupted rollback was carried out. Without a vmgenid that cannot be told from the
// config: then it is done once more, at the price of what the VM has done in between.
func rolledBack(conf *pmxcfs.Conf, p reverting) bool {
	now, _ := conf.Get("vmgenid")
	parent, _ := conf.Get("parent")
	return conf.Lock() == "" && parent == p.Snapshot && now != p.Generation
}

// explainNotNewest says what has to go first. ZFS cannot go back beyond its newest snapshot, and neither can chains of
// volumes.
func (g *Guests) explainNotNewest(ctx context.Context, id record.ID, p reverting, err error) error {
	newer := ""
	if conf, _, cerr := g.snapshotted(ctx, id); cerr == nil {
		if list := newerThan(conf, p.Snapshot); len(list) > 0 {
			newer = " (" + strings.Join(list, ", ") + ")"
		}
	}
	return fault.New(fault.Precondition, "%s: a disk is on a storage that can go back to its newest snapshot only, and there are newer ones%s; delete them first: %w",
		p.act(), newer, err)
}

// newerThan lists the snapshots that were taken after another one, oldest first.
func newerThan(conf *pmxcfs.Conf, name string) []string {
	base, _ := conf.Snapshot(name)
	var newer []pmxcfs.Snapshot
	for _, s := range conf.Snapshots() {
		if s.Time() >= base.Time() && s.Name != name {
			newer = append(newer, s)
		}
	}
	slices.SortStableFunc(newer, func(a, b pmxcfs.Snapshot) int { return int(a.Time() - b.Time()) })
	names := make([]string, len(newer))
	for i, s := range newer {
		names[i] = s.Name
	}
	return names
}

// startAgain starts a VM that ran before its rollback. After a rollback with memory it runs already. `qm cleanup`, which
// PVE starts when the old process has ended, may hold the VM's lock for 30 s.
func (g *Guests) startAgain(ctx context.Context, id record.ID, p reverting) error {
	err := ops.Retry(ctx, passing, func(ctx context.Context) error {
		vm, err := g.findHere(ctx, id)
		if err != nil {
			return err
		}
		st, err := g.state(ctx, vm)
		if err != nil || st.Power == status.On {
			return err
		}
		return g.powerCall(ctx, id.VMID, PowerOn, 0)
	})
	return explainSnapshot(p.act()+" and start it again", err)
}
