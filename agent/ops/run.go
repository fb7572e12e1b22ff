package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
)

// Run is an operation as its handler sees it.
type Run struct {
	e *Engine
	l *live
}

// ID returns the operation's id.
func (r *Run) ID() string { return r.l.op.ID } // never changes, so needs no lock

// Op returns the operation as the journal has it.
func (r *Run) Op() Op { return r.l.snapshot() }

// Params decodes what was asked into v.
func (r *Run) Params(v any) error {
	if err := json.Unmarshal(r.l.snapshot().Params, v); err != nil {
		return fault.New(fault.Internal, "operation %s: decode parameters: %w", r.ID(), err)
	}
	return nil
}

// Recall decodes what the handler noted last into v; v is unchanged when nothing was.
func (r *Run) Recall(v any) error {
	memo := r.l.snapshot().Memo
	if memo == nil {
		return nil
	}
	if err := json.Unmarshal(memo, v); err != nil {
		return fault.New(fault.Internal, "operation %s: decode memo: %w", r.ID(), err)
	}
	return nil
}

// Note journals v as what the handler must remember, with the subject it has now.
func (r *Run) Note(v any, s Subject) error {
	memo, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Internal, "operation %s: encode memo: %w", r.ID(), err)
	}
	return r.l.change(r.e, func(o *Op) Event {
		o.Memo, o.Subject = memo, s
		return Event{What: Noted}
	})
}

// StepRun is one attempt at a step.
type StepRun struct {
	r    *Run
	name string
	// Again says that an earlier life of the agent began this step: its effect may be there already.
	Again bool
	// UPID is the PVE task that an earlier life journaled for this step; "" if none.
	UPID string
}

// Task journals the PVE task that this step waits for.
func (s *StepRun) Task(upid string) error {
	return s.r.l.change(s.r.e, func(o *Op) Event {
		o.step(s.name).UPID = upid
		return Event{What: StepTask, Step: s.name, UPID: upid}
	})
}

// Step carries out do as the step called name, which must be unique in the operation. A step that ended in an
// earlier life is skipped. The intent is on the disk before do is called, and its end before Step returns.
func (r *Run) Step(ctx context.Context, name string, do func(ctx context.Context, s *StepRun) error) error {
	s := StepRun{r: r, name: name}
	if old := r.l.snapshot(); old.step(name) != nil {
		step := old.step(name)
		if !step.Ended.IsZero() {
			return nil
		}
		s.Again, s.UPID = true, step.UPID
	} else if err := r.begin(name); err != nil {
		return err
	}
	if err := do(ctx, &s); err != nil {
		return err
	}
	return r.l.change(r.e, func(o *Op) Event {
		o.step(name).Ended = o.Updated
		return Event{What: StepEnded, Step: name}
	})
}

func (r *Run) begin(name string) error {
	return r.l.change(r.e, func(o *Op) Event {
		o.Steps = append(o.Steps, Step{Name: name, Began: o.Updated})
		return Event{What: StepBegan, Step: name}
	})
}

// Retry calls f until it succeeds, its error is not worth a repeat, or ctx ends; between calls it waits, from
// 100 ms growing to 5 s. The last error is returned when ctx ends.
func Retry(ctx context.Context, worth func(error) bool, f func(context.Context) error) error {
	pause := 100 * time.Millisecond
	for {
		err := f(ctx)
		if err == nil || !worth(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (gave up: %w)", err, context.Cause(ctx))
		}
		pause = min(2*pause, 5*time.Second)
	}
}
