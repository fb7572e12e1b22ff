package drain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

const (
	defaultParallel = 2
	maxParallel     = 16
	// rounds is how often a drain looks for VMs that have come, or were started, while it was at it.
	rounds = 3
)

// params is what a drain or a restore is asked to do.
type params struct {
	Parallel int
	Stopped  bool `json:",omitempty"`
	Moves    []Move
	Notes    string `json:",omitempty"`
}

// memo is how far it is. All of it is told to who asks.
type memo struct {
	Moves    []Move
	Stopping bool   `json:",omitempty"` // begin nothing more
	Gone     int    `json:",omitempty"` // VMs that were no longer to be moved when it was their turn
	Message  string `json:",omitempty"`
}

// evacuation is a drain or a restore under way.
type evacuation struct {
	*Drainer
	run   *ops.Run
	asked params

	mu   sync.Mutex // guards memo, and is held while it is journaled
	memo memo
}

// take picks up an operation where it is.
func (d *Drainer) take(r *ops.Run) (*evacuation, error) {
	e := &evacuation{Drainer: d, run: r}
	if err := r.Params(&e.asked); err != nil {
		return nil, err
	}
	e.memo.Moves, e.memo.Message = e.asked.Moves, e.asked.Notes
	if err := r.Recall(&e.memo); err != nil {
		return nil, err
	}
	d.begun(e)
	if d.stopAsked(r.ID()) {
		return e, e.stop()
	}
	return e, nil
}

// update changes the memo and journals it.
func (e *evacuation) update(f func(*memo)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.memo
	next.Moves = slices.Clone(e.memo.Moves)
	f(&next)
	if err := e.run.Note(next, e.run.Op().Subject); err != nil {
		return err
	}
	e.memo = next
	return nil
}

// change is update for one VM.
func (e *evacuation) change(vmid int, f func(*Move)) error {
	return e.update(func(m *memo) {
		if i := slices.IndexFunc(m.Moves, func(m Move) bool { return m.VMID == vmid }); i >= 0 {
			f(&m.Moves[i])
		}
	})
}

// drop takes a VM off the list that nobody needs to move any more.
func (e *evacuation) drop(vmid int) error {
	return e.update(func(m *memo) {
		m.Gone++
		m.Moves = slices.DeleteFunc(m.Moves, func(m Move) bool { return m.VMID == vmid })
	})
}

func (e *evacuation) now() memo {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.memo
	out.Moves = slices.Clone(e.memo.Moves)
	return out
}

func (e *evacuation) stop() error {
	return e.update(func(m *memo) {
		m.Stopping, m.Message = true, "stopped when asked to"
	})
}

// drain is the handler of drains.
func (d *Drainer) drain(ctx context.Context, r *ops.Run) error {
	e, err := d.take(r)
	if err != nil {
		return err
	}
	for round := 1; ; round++ {
		if err := e.moveAll(ctx, e.stillDraining); err != nil {
			return err
		}
		more, err := e.more(ctx)
		if err != nil || more == 0 || round == rounds {
			return errors.Join(err, e.finish())
		}
	}
}

// stillDraining stops a drain whose cordon somebody has lifted.
func (e *evacuation) stillDraining(ctx context.Context) error {
	all, err := e.cfg.Cordons.Cordons(ctx)
	if err != nil || all[e.cfg.Node].Draining {
		return nil //nolint:nilerr // what cannot be read now was not lifted
	}
	return e.update(func(m *memo) { m.Stopping, m.Message = true, "stopped: the cordon of the node was lifted" })
}

// more plans the VMs that a drain finds when it is done with the others, and returns how many.
func (e *evacuation) more(ctx context.Context) (int, error) {
	now := e.now()
	if now.Stopping {
		return 0, nil
	}
	world, err := e.refresh(ctx)
	if err != nil {
		return 0, fault.New(fault.Aborted, "see what is left on node %s: %w", e.cfg.Node, err)
	}
	done := map[int]bool{}
	for _, m := range now.Moves {
		done[m.VMID] = m.State != moved // one that has come back is moved once more
	}
	p, err := e.propose(ctx, world, e.asked.Stopped, done)
	if err != nil || len(p.moves) == 0 {
		return 0, err
	}
	e.decided(ctx, ops.Drain, p)
	return len(p.moves), e.update(func(m *memo) {
		for _, n := range p.moves {
			m.Moves = slices.DeleteFunc(m.Moves, func(o Move) bool { return o.VMID == n.VMID })
		}
		m.Moves = append(m.Moves, p.moves...)
	})
}

// restore is the handler of restores.
func (d *Drainer) restore(ctx context.Context, r *ops.Run) error {
	e, err := d.take(r)
	if err != nil {
		return err
	}
	if err := e.moveAll(ctx, func(context.Context) error { return nil }); err != nil {
		return err
	}
	return e.finish()
}

// finish says how it ended: as failed if a VM is not where it should be.
func (e *evacuation) finish() error {
	now := e.now()
	if now.Stopping {
		return nil
	}
	n := 0
	for _, m := range now.Moves {
		if m.State != moved && m.ID != "" {
			n++
		}
	}
	if n > 0 {
		return fault.New(fault.Precondition, "%s: %d of %d VMs were not moved", e.cfg.Node, n, len(now.Moves))
	}
	return nil
}

// moveAll moves what is to be moved, the largest first, a few at a time. An error is that of the journal, or of a
// context that ended: what becomes of a VM is in the memo.
func (e *evacuation) moveAll(ctx context.Context, check func(context.Context) error) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(min(cmp.Or(e.asked.Parallel, defaultParallel), maxParallel))
	todo := e.now().Moves
	slices.SortStableFunc(todo, func(a, b Move) int { // what an earlier agent has begun comes first
		return cmp.Or(btoi(a.State != moving)-btoi(b.State != moving), order(a, b))
	})
	for _, m := range todo {
		if !m.open() {
			continue
		}
		group.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if m.State == planned {
				if err := check(gctx); err != nil {
					return err
				}
			}
			return e.moveOne(gctx, m.VMID)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// arrived notes that a VM is on another node, and what restore needs to know. What cannot be written now, for want of
// quorum, is written later: the VM has moved.
func (e *evacuation) arrived(ctx context.Context, m Move, vm *pmxcfs.VM, began time.Time) error {
	err := ops.Retry(ctx, func(error) bool { return true }, func(context.Context) error {
		if e.run.Op().Kind == ops.Restore {
			return e.forget(m.VMID)
		}
		return e.remember(m, vm.Node)
	})
	if err != nil {
		return err
	}
	return e.change(m.VMID, func(x *Move) {
		x.State, x.To, x.Reason, x.Took = moved, vm.Node, "", time.Since(began).Milliseconds()
	})
}

// remember writes down that a VM was moved away. Only this agent writes that file, one VM at a time.
func (e *evacuation) remember(m Move, to string) error {
	return e.rewrite(func(list []cordon.Moved) []cordon.Moved {
		list = slices.DeleteFunc(list, func(o cordon.Moved) bool { return o.VMID == m.VMID })
		return append(list, cordon.Moved{VMID: m.VMID, ID: m.ID, Name: m.Name, From: m.From, To: to, Running: m.Running, At: e.cfg.Now().UTC()})
	})
}

// forget crosses out a VM that is back.
func (e *evacuation) forget(vmid int) error {
	return e.rewrite(func(list []cordon.Moved) []cordon.Moved {
		return slices.DeleteFunc(list, func(o cordon.Moved) bool { return o.VMID == vmid })
	})
}

func (e *evacuation) rewrite(f func([]cordon.Moved) []cordon.Moved) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	list, err := e.cfg.Cordons.Moved(e.cfg.Node)
	if err == nil {
		err = e.cfg.Cordons.SetMoved(e.cfg.Node, f(list))
	}
	if err != nil {
		return fault.New(fault.Aborted, "%w", fmt.Errorf("remember what was moved: %w", err))
	}
	return nil
}
