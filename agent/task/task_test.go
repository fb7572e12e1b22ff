package task

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

const (
	upidA = pve.UPID("UPID:pve1:00000001:00000001:65000000:qmstart:100:root@pam:")
	upidB = pve.UPID("UPID:pve1:00000002:00000002:65000001:qmstart:100:root@pam:")
)

var (
	errLost    = &pve.TransportError{Method: "POST", Path: "/x", Sent: true, Err: errors.New("connection reset")}
	errUnsent  = &pve.TransportError{Method: "POST", Path: "/x", Err: errors.New("connection refused")}
	errRefused = &pve.Error{Method: "POST", Path: "/x", Status: 500, Message: "something odd"}
	errNoTask  = &pve.Error{Method: "GET", Path: "/x", Status: 400, Params: map[string]string{"upid": "no such task"}}
	errLocked  = &pve.TaskError{UPID: upidA, ExitStatus: "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"}
	errFailed  = &pve.TaskError{UPID: upidA, ExitStatus: "something odd"}
)

// answer is what one of the three functions of a task says when it is called.
type answer struct {
	upid pve.UPID
	ok   bool // of find: something is there
	err  error
}

// script plays the answers in their order and notes who was called.
type script struct {
	t                 *testing.T
	start, find, wait []answer
	calls             []string
}

func (s *script) next(what string, from *[]answer) answer {
	s.calls = append(s.calls, what)
	if len(*from) == 0 {
		s.t.Errorf("unexpected %s after %v", what, s.calls)
		return answer{err: errRefused}
	}
	a := (*from)[0]
	*from = (*from)[1:]
	return a
}

// TestTaskIsStartedOnce goes through what can happen between a call and the end of its task, in this life of the agent
// and in an earlier one.
func TestTaskIsStartedOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		again bool     // an earlier life began the step
		upid  pve.UPID // that the earlier life journaled
		blind bool     // there is no find: the call may be repeated

		start, find, wait []answer

		calls   string
		journal []string // UPIDs journaled by this life
		err     error
	}{
		"plain": {
			start: []answer{{upid: upidA}}, wait: []answer{{}},
			calls: "start wait " + string(upidA), journal: []string{string(upidA)},
		},
		"done before the answer, as old versions do": {
			start: []answer{{}}, calls: "start",
		},
		"refused": {
			start: []answer{{err: errRefused}}, calls: "start", err: errRefused,
		},
		"the task fails": {
			start: []answer{{upid: upidA}}, wait: []answer{{err: errFailed}},
			calls: "start wait " + string(upidA), journal: []string{string(upidA)}, err: errFailed,
		},
		"a lock: the task ended without effect, so it is started anew": {
			start: []answer{{upid: upidA}, {upid: upidB}}, wait: []answer{{err: errLocked}, {}},
			calls:   "start wait " + string(upidA) + " start wait " + string(upidB),
			journal: []string{string(upidA), string(upidB)},
		},
		"never sent": {
			start: []answer{{err: errUnsent}, {upid: upidA}}, wait: []answer{{}},
			calls: "start start wait " + string(upidA), journal: []string{string(upidA)},
		},
		"the answer is lost, the task is there": {
			start: []answer{{err: errLost}}, find: []answer{{upid: upidA, ok: true}}, wait: []answer{{}},
			calls: "start find wait " + string(upidA), journal: []string{string(upidA)},
		},
		"the answer is lost, and the request too": {
			start: []answer{{err: errLost}, {upid: upidA}}, find: []answer{{}}, wait: []answer{{}},
			calls: "start find start wait " + string(upidA), journal: []string{string(upidA)},
		},
		"the answer is lost, then PVE cannot be reached: what is there is still unknown": {
			start: []answer{{err: errLost}, {err: errUnsent}}, find: []answer{{}, {upid: upidA, ok: true}}, wait: []answer{{}},
			calls: "start find start find wait " + string(upidA), journal: []string{string(upidA)},
		},
		"the answer is lost, the call may be repeated": {
			blind: true, start: []answer{{err: errLost}, {upid: upidA}}, wait: []answer{{}},
			calls: "start start wait " + string(upidA), journal: []string{string(upidA)},
		},
		"the log of the task is gone, its effect is there": {
			start: []answer{{upid: upidA}}, wait: []answer{{err: errNoTask}}, find: []answer{{ok: true}},
			calls: "start wait " + string(upidA) + " find", journal: []string{string(upidA)},
		},
		"an earlier life knew the task": {
			again: true, upid: upidA, wait: []answer{{}}, calls: "wait " + string(upidA),
		},
		"an earlier life knew the task, and it failed": {
			again: true, upid: upidA, wait: []answer{{err: errFailed}}, calls: "wait " + string(upidA), err: errFailed,
		},
		"an earlier life did not hear of its task": {
			again: true, find: []answer{{upid: upidA, ok: true}}, wait: []answer{{}},
			calls: "find wait " + string(upidA), journal: []string{string(upidA)},
		},
		"an earlier life's call had its effect": {
			again: true, find: []answer{{ok: true}}, calls: "find",
		},
		"an earlier life did not come to its call": {
			again: true, find: []answer{{}}, start: []answer{{upid: upidA}}, wait: []answer{{}},
			calls: "find start wait " + string(upidA), journal: []string{string(upidA)},
		},
		"what is there cannot be found out": {
			again: true, find: []answer{{err: errRefused}}, calls: "find", err: errRefused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, start: tc.start, find: tc.find, wait: tc.wait}
				j := play(t, tc.again, tc.upid, func(ctx context.Context, step *ops.StepRun) error {
					task := s.task(step)
					if tc.blind {
						task.find = nil
					}
					err := ops.Retry(ctx, Passing, task.Attempt)
					if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
						t.Errorf("ended with %v, want %v", err, tc.err)
					}
					return err
				})
				if got := strings.Join(s.calls, " "); got != tc.calls {
					t.Errorf("called %q, want %q", got, tc.calls)
				}
				if d := cmp.Diff(tc.journal, j); d != "" {
					t.Errorf("journaled (-want +got):\n%s", d)
				}
			})
		})
	}
}

func (s *script) task(step *ops.StepRun) *Task {
	return &Task{
		step: step, known: pve.UPID(step.UPID), unsure: step.Again,
		wait: func(_ context.Context, u pve.UPID) error { return s.next("wait "+string(u), &s.wait).err },
		find: func(context.Context) (pve.UPID, bool, error) {
			a := s.next("find", &s.find)
			return a.upid, a.ok, a.err
		},
		start: func(context.Context) (pve.UPID, error) {
			a := s.next("start", &s.start)
			return a.upid, a.err
		},
	}
}

// play runs do as a step of an operation, in the second life of its journal if again, and returns the UPIDs that were
// journaled in it.
func play(t *testing.T, again bool, upid pve.UPID, do func(context.Context, *ops.StepRun) error) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if again {
		interrupted := func(ctx context.Context, step *ops.StepRun) error {
			if upid != "" {
				if err := step.Task(string(upid)); err != nil {
					t.Error(err)
				}
			}
			<-ctx.Done()
			return ctx.Err()
		}
		life(t, path, true, interrupted, nil)
	}
	var journaled []string
	life(t, path, !again, do, func(m ops.Moment, ev ops.Event) {
		if m == ops.AfterWrite && ev.What == ops.StepTask {
			journaled = append(journaled, ev.UPID)
		}
	})
	return journaled
}

// life runs an engine until its operation has ended or waits for ever.
func life(t *testing.T, path string, ask bool, do func(context.Context, *ops.StepRun) error, hook func(ops.Moment, ops.Event)) {
	t.Helper()
	e, stop := engine(t, path, map[ops.Kind]ops.Handler{ops.Power: func(ctx context.Context, r *ops.Run) error { return r.Step(ctx, "on", do) }}, hook)
	defer stop()
	if ask {
		if _, _, err := e.Start(t.Context(), ops.Ask{Kind: ops.Power, Key: "power/100"}); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 { // Retry's pauses pass at once in a bubble
		synctest.Wait()
		active := e.Active()
		if len(active) == 0 || slices.ContainsFunc(active, func(op ops.Op) bool { return len(op.Steps) > 0 && ask && hook == nil }) {
			return
		}
		pause()
	}
	t.Fatal("does not end")
}
