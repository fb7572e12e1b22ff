package pvesim

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Task is one worker of a node.
type Task struct {
	UPID string
	upid upid
	by   principal
	done chan struct{}
	life context.Context //nolint:containedctx // of its node: it outlives the request

	mu       sync.Mutex // guards what follows
	log      []string
	end      time.Time
	exit     string // "" while it runs
	warnings int
}

// Type is the task's type ("qmstart"); ID what it works on ("100").
func (t *Task) Type() string { return t.upid.kind }

// ID is what the task works on: mostly a VM's number.
func (t *Task) ID() string { return t.upid.id }

// Node is where it runs.
func (t *Task) Node() string { return t.upid.node }

// Exit returns the exit status, "" while the task runs.
func (t *Task) Exit() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

// Done is closed when the task has ended.
func (t *Task) Done() <-chan struct{} { return t.done }

func (t *Task) logf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = append(t.log, strings.Split(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n")...)
}

// warnf logs a warning; a task with warnings ends with "WARNINGS: n".
func (t *Task) warnf(format string, args ...any) {
	t.logf("WARN: "+format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.warnings++
}

func (t *Task) finish(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		t.exit = strings.TrimRight(err.Error(), "\n")
		t.log = append(t.log, "TASK ERROR: "+t.exit)
	case t.warnings > 0:
		t.exit = fmt.Sprintf("WARNINGS: %d", t.warnings)
		t.log = append(t.log, "TASK "+t.exit)
	default:
		t.exit = "OK"
		t.log = append(t.log, "TASK OK")
	}
	t.end = time.Now()
	close(t.done)
}

// workers keeps the tasks of all nodes.
type workers struct {
	mu     sync.Mutex // guards what follows
	all    []*Task    // oldest first
	byUPID map[string]*Task
	nextPI int64
	boot   time.Time
	gates  map[string]*gate
	fails  []*taskFault
	before []func(*Task)
	after  []func(*Task)
}

func newWorkers() *workers {
	return &workers{
		byUPID: map[string]*Task{}, nextPI: 4000, boot: time.Now().Add(-time.Hour), gates: map[string]*gate{},
	}
}

func (w *workers) register(n *Node, kind, id string, by principal) *Task {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextPI++
	u := upid{
		node: n.Name, kind: kind, id: id, user: by.authID(), pid: w.nextPI,
		pstart: time.Since(w.boot).Milliseconds() / 10, start: time.Now().Unix(),
	}
	t := &Task{UPID: u.String(), upid: u, by: by, life: n.alive(), done: make(chan struct{})}
	w.all = append(w.all, t)
	w.byUPID[t.UPID] = t
	return t
}

func (w *workers) find(id string) (*Task, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.byUPID[id]
	return t, ok
}

func (w *workers) hooks(after bool) []func(*Task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if after {
		return w.after
	}
	return w.before
}

// slow marks work that calls Cluster.slowPoint itself, in the middle.
type work struct {
	slow bool
	run  func(ctx context.Context, t *Task) error
}

// fork starts a worker and returns its UPID, like PVE's fork_worker.
func (c *Cluster) fork(node, kind, id string, by principal, w work) string {
	t := c.workers.register(c.byName[node], kind, id, by)
	c.log.Debug("task", "upid", t.UPID)
	c.wg.Go(func() {
		defer c.tasksChanged(node)
		t.finish(c.runTask(t.life, t, w))
		for _, hook := range c.workers.hooks(true) {
			hook(t)
		}
	})
	return t.UPID
}

func (c *Cluster) runTask(ctx context.Context, t *Task, w work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.ErrorContext(ctx, "task panicked", "upid", t.UPID, "panic", p)
			err = fmt.Errorf("internal error: %v", p)
		}
		var injected *injectedError
		if errors.As(err, &injected) {
			err = injected
		} else if err != nil && abandoned(ctx, err) {
			err = errors.New(unknownExit)
		} else if err != nil && ctx.Err() != nil {
			err = errors.New("interrupted by signal")
		}
	}()
	for _, hook := range c.workers.hooks(false) {
		hook(t)
	}
	if !w.slow {
		if err := c.slowPoint(ctx, t); err != nil {
			return err
		}
	}
	return w.run(ctx, t)
}

// slowPoint is where a task takes its time, waits at a closed gate and meets
// an injected failure.
func (c *Cluster) slowPoint(ctx context.Context, t *Task) error {
	delay, ok := c.cfg.TaskDelays[t.Type()]
	if !ok {
		delay = c.cfg.TaskDelay
	}
	c.pause(ctx, delay)
	for _, gate := range []string{t.Type(), t.Node() + "/" + t.Type()} {
		if err := c.workers.gate(ctx, gate); err != nil {
			return err
		}
	}
	return c.workers.injected(t)
}

func (w *workers) gate(ctx context.Context, kind string) error {
	w.mu.Lock()
	g := w.gates[kind]
	w.mu.Unlock()
	if g == nil {
		return nil
	}
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("gate of %s: %w", kind, ctx.Err())
	}
}

// unknownExit is the exit status of a worker that was killed: its log has no end.
const unknownExit = "unexpected status"

// abandoned says that a worker ended in the middle and nobody cleans up.
func abandoned(ctx context.Context, err error) bool {
	var injected *injectedError
	return errors.As(err, &injected) && injected.exit == unknownExit || errors.Is(context.Cause(ctx), errPowerLoss)
}

var okStatus = regexp.MustCompile(`^(OK|WARNINGS: \d+)$`)

// kindOf sorts an exit status the way the task list's filter does.
func statusKind(exit string) string {
	switch {
	case exit == "OK":
		return "ok"
	case okStatus.MatchString(exit):
		return "warning"
	case exit == "" || exit == unknownExit:
		return "unknown"
	}
	return "error"
}

// tasksChanged is the node's task list, which every node hears of.
func (c *Cluster) tasksChanged(node string) {
	c.tree.mu.Lock()
	defer c.tree.mu.Unlock()
	c.tree.files["tasklist/"+node]++
}
