package guest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// begin has PVE make the VM: a copy of its source, or a new one.
func (m *making) begin(ctx context.Context, s *ops.StepRun) error {
	began := m.stepBegan(stepClone)
	t := m.pveTask(s,
		func(ctx context.Context) (pve.UPID, bool, error) {
			return m.findOwnClone(ctx, began)
		},
		m.held(m.beginCall))
	err := ops.Retry(ctx, m.worthWaiting, t.Attempt)
	if pve.KindOf(err) == pve.KindExists {
		err = m.joinClone(ctx, s, began, err)
	}
	if pve.KindOf(err) == pve.KindExists {
		return m.taken(err)
	}
	if err != nil {
		return explain(m.act(m.beginText()), err)
	}
	if err := m.nameIsOurs(ctx); err != nil {
		return err
	}
	return m.noteVolumes(ctx)
}

// worthWaiting is passing, and for a Clone a lock of its source, too: see request.patient.
func (m *making) worthWaiting(err error) bool {
	return passing(err) || m.run.Op().Kind == ops.Clone && pve.KindOf(err) == pve.KindLocked
}

// taken is the failure that somebody else's VM has our number.
func (m *making) taken(why error) error {
	m.memo.Taken = true // noted with the failure
	return fault.New(fault.Aborted, "%s: VMID %d was taken by somebody else meanwhile; a repeat gets another: %w", m.act(m.beginText()), m.vmid(), why)
}

// nameIsOurs makes sure that what stands under our number is what we have asked for: a task that was found by the number
// may be somebody else's, who has made a VM of that number at the same moment.
func (m *making) nameIsOurs(ctx context.Context) error {
	conf, err := m.confHere(ctx, m.vmid())
	if err != nil || conf == nil || conf.Name() == m.order.Name {
		return err
	}
	return m.taken(fmt.Errorf("it is called %q", conf.Name()))
}

func (m *making) beginText() string {
	if m.order.New != nil {
		return fmt.Sprintf("make VM %d", m.vmid())
	}
	return fmt.Sprintf("clone VM %d to VM %d", m.source(), m.vmid())
}

func (m *making) beginCall(ctx context.Context) (pve.UPID, error) {
	if m.order.New == nil {
		return m.cfg.PVE.Clone(ctx, m.cfg.Node, m.source(), pve.CloneParams{
			NewID: m.vmid(), Name: m.order.Name, Full: !m.order.VM.Linked, Storage: m.order.VM.Storage, Pool: m.order.VM.Pool,
		})
	}
	params := url.Values{"name": {m.order.Name}}
	for k, v := range m.order.New {
		params.Set(k, v)
	}
	return m.cfg.PVE.Create(ctx, m.cfg.Node, pve.CreateParams{VMID: m.vmid(), Pool: m.order.VM.Pool, Config: params})
}

// joinClone waits for the clone that has taken the number, if it is ours: a request whose answer was lost may be carried
// out later than we looked for what it did. If it is not ours, the result is taken, the error that told so.
func (m *making) joinClone(ctx context.Context, s *ops.StepRun, began time.Time, taken error) error {
	return ops.Retry(ctx, underWay, func(ctx context.Context) error {
		u, ok, err := m.findOwnClone(ctx, began)
		switch {
		case err != nil:
			return err
		case !ok:
			return taken
		case u == "":
			return nil
		}
		if err := s.Task(string(u)); err != nil {
			return err
		}
		return m.cfg.PVE.Wait(ctx, u)
	})
}

func (m *making) stepBegan(name string) time.Time {
	op := m.run.Op()
	for _, s := range op.Steps {
		if s.Name == name {
			return s.Began
		}
	}
	return op.Created
}

// clockSlack covers the difference between our clock and the second in which PVE says a task began.
const clockSlack = 5 * time.Second

// errUnsaid is the finding that a clone has begun and waits for the lock of its source: it says only then what it makes.
var errUnsaid = errors.New("a clone has begun that does not say yet which VM it makes")

// findMaking looks for the task that makes vmid, by cloning any VM or anew, of which nobody told us the UPID.
func (g *Guests) findMaking(ctx context.Context, vmid int, began time.Time) (pve.UPID, bool, error) {
	u, ok, err := g.findNew(ctx, vmid, began)
	if ok || err != nil {
		return u, ok, err
	}
	return g.findClone(ctx, 0, vmid, began)
}

// findNew is findMaking for VMs that are no clones.
func (g *Guests) findNew(ctx context.Context, vmid int, began time.Time) (pve.UPID, bool, error) {
	tasks, err := g.cfg.PVE.Tasks(ctx, g.cfg.Node, pve.TaskQuery{VMID: vmid, Type: "qmcreate", Since: began.Add(-clockSlack), Source: "all", Limit: 1})
	if err != nil || len(tasks) == 0 {
		return "", false, err
	}
	return tasks[0].UPID, true, nil
}

// findClone is findMaking for clones of source, 0: of any VM. A clone's task carries the number of its source; the new
// number stands in its log, after what it says of waiting for a lock.
func (g *Guests) findClone(ctx context.Context, source, vmid int, began time.Time) (pve.UPID, bool, error) {
	tasks, err := g.cfg.PVE.Tasks(ctx, g.cfg.Node, pve.TaskQuery{
		VMID: source, Type: "qmclone", Since: began.Add(-clockSlack), Source: "all", Limit: 500,
	})
	if err != nil {
		return "", false, err
	}
	ours, unsaid := fmt.Sprintf(" with ID %d", vmid), false
	for _, t := range tasks {
		log, err := g.cfg.PVE.TaskLog(ctx, t.UPID)
		if err != nil {
			return "", false, err
		}
		said := slices.IndexFunc(log, func(line string) bool { return strings.HasPrefix(line, "creating a clone of VM ") })
		switch {
		case said >= 0 && strings.HasSuffix(log[said], ours):
			return t.UPID, true, nil
		case said < 0 && t.Running():
			unsaid = true
		}
	}
	if unsaid {
		return "", false, errUnsaid
	}
	return "", false, nil
}

// findTask looks for the task that makes our VM. Those of other kinds do not matter: a clone that does not say yet which
// VM it makes would have to be waited for.
func (m *making) findTask(ctx context.Context, began time.Time) (pve.UPID, bool, error) {
	if m.order.New != nil {
		return m.findNew(ctx, m.vmid(), began)
	}
	return m.findClone(ctx, m.source(), m.vmid(), began)
}

// findOwnClone looks for what a clone whose answer was lost has done. Before version 9.2, PVE does not say in a clone's
// log which VM it makes: then the finished VM under our number, with our name, is it.
func (m *making) findOwnClone(ctx context.Context, began time.Time) (pve.UPID, bool, error) {
	u, ok, err := m.findTask(ctx, began)
	if ok || err != nil {
		return u, ok, err
	}
	conf, err := m.confHere(ctx, m.vmid())
	if err != nil || conf == nil {
		return "", false, err
	}
	return "", conf.Lock() == "" && conf.Name() == m.order.Name, nil
}

// fail removes everything the operation has made and returns why it failed.
func (m *making) fail(ctx context.Context) error {
	failure := fault.New(m.memo.Failure.Reason, "%s", m.memo.Failure.Message)
	if m.claim == nil {
		return failure // nothing was ever made
	}
	left := m.run.Step(ctx, stepUndo, m.undo)
	switch {
	case left == nil:
		return failure
	case ctx.Err() != nil:
		return left
	}
	return fault.New(failure.Reason, "%s; and what was made could not be removed again: %w", failure.Msg, left)
}

func (m *making) undo(ctx context.Context, _ *ops.StepRun) error {
	conf, err := m.leftovers(ctx)
	if err != nil {
		return err
	}
	vols := slices.Clone(m.memo.Volumes)
	if conf != nil {
		vols = append(vols, volumes(conf)...)
		if err := m.destroy(ctx, target{id: m.memo.Record.ID(), is: m.isOurs, made: true}); err != nil {
			return err
		}
	}
	if err := m.removeVolumes(ctx, m.vmid(), vols); err != nil {
		return err
	}
	if err := released(m.claim.Release()); err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("give its record back"), err)
	}
	m.cfg.Snippets.Drop(ctx, append(m.snippetVolumes(), m.memo.Left...))
	return nil
}

// leftovers returns the config of what our clone has made, nil when there is nothing. It waits for a clone that is
// still under way: PVE removes what a failed one has made.
func (m *making) leftovers(ctx context.Context) (*pmxcfs.Conf, error) {
	op := m.run.Op()
	var clone *ops.Step
	for i := range op.Steps {
		if op.Steps[i].Name == stepClone {
			clone = &op.Steps[i]
		}
	}
	if clone == nil {
		return nil, nil
	}
	upid, err := m.awaitOwnClone(ctx, *clone)
	if ctx.Err() != nil {
		return nil, err
	}
	conf, rerr := m.confHere(ctx, m.vmid())
	if rerr == nil && conf == nil && err == nil && upid != "" { // it was made well, and is not here
		rerr = m.goneFromCluster(ctx, target{id: m.memo.Record.ID(), is: m.isOurs, made: true})
	}
	if rerr != nil || conf == nil {
		return nil, rerr
	}
	if !m.isOurs(conf) || pve.KindOf(err) == pve.KindExists {
		return nil, nil
	}
	return conf, nil
}

// awaitOwnClone waits for the end of our clone and returns its task, "" if there was none.
func (m *making) awaitOwnClone(ctx context.Context, clone ops.Step) (pve.UPID, error) {
	upid := pve.UPID(clone.UPID)
	err := ops.Retry(ctx, underWay, func(ctx context.Context) (err error) {
		if upid == "" {
			if upid, _, err = m.findTask(ctx, clone.Began); err != nil || upid == "" {
				return err
			}
		}
		return m.cfg.PVE.Wait(ctx, upid)
	})
	return upid, err
}

// isOurs reports whether the config under our number is of what we make: it has our uuid, or it is a clone that has not
// got it yet. A number that was taken when we came is not ours, whatever stands there.
func (m *making) isOurs(conf *pmxcfs.Conf) bool {
	return conf.SMBIOSUUID() == m.memo.Record.UUID || !m.memo.Taken && halfMade(&m.memo.Record, conf)
}
