package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
)

// Handler does the work of one kind of operation as a sequence of Run.Step calls. It is called again from its
// beginning after a crash, so everything outside a step must be free of effects. The error it returns ends the
// operation as failed, with the error's fault.Reason; the error of a stopping engine leaves it to be resumed.
type Handler func(ctx context.Context, r *Run) error

// Config configures an Engine.
type Config struct {
	Journal *Journal
	Log     *slog.Logger
	Keep    time.Duration // how long ended operations and events stay; default 30 days
	// Hook, when set, is called right before and right after each write to the journal. Crash tests end the
	// process in it.
	Hook func(moment Moment, ev Event)
}

// Moment says on which side of a journal write a Hook is called.
type Moment string

// The two sides of a journal write.
const (
	BeforeWrite Moment = "before"
	AfterWrite  Moment = "after"
)

// ErrStopping is returned for operations asked for while the engine is not running.
var ErrStopping = errors.New("the agent is stopping or not yet started")

// Engine runs operations. It is a task of the agent: nothing runs before Run.
type Engine struct {
	cfg      Config
	handlers map[Kind]Handler // complete before Run
	ready    chan struct{}
	wg       sync.WaitGroup

	mu   sync.Mutex       // guards the fields below
	stop chan struct{}    // closed when Run is to end; nil outside of it: the life of every operation
	live map[string]*live // by operation id
	keys map[string]*live // by key
}

// New returns an engine over an open journal.
func New(cfg Config) *Engine {
	if cfg.Keep == 0 {
		cfg.Keep = 30 * 24 * time.Hour
	}
	return &Engine{
		cfg: cfg, handlers: map[Kind]Handler{}, ready: make(chan struct{}),
		live: map[string]*live{}, keys: map[string]*live{},
	}
}

// Handle says who does the work of a kind. All handlers are named before Run.
func (e *Engine) Handle(k Kind, h Handler) { e.handlers[k] = h }

func (e *Engine) String() string { return "operations" }

// Ready is closed when all interrupted operations have been taken up again.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Run resumes what was interrupted, accepts operations until ctx ends, and returns when every handler has returned.
// Operations that are under way then stay in the journal as running.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.prune(ctx); err != nil {
		return err
	}
	active, err := e.cfg.Journal.Active()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.stop = make(chan struct{})
	for _, op := range active {
		e.cfg.Log.InfoContext(ctx, "operation resumed", "op", op.ID, "kind", op.Kind, "vm", op.Subject.ID, "name", op.Subject.Name)
		e.lockedLaunch(ctx, op)
	}
	e.mu.Unlock()
	close(e.ready)
	e.pruneDaily(ctx)
	e.mu.Lock()
	close(e.stop)
	e.stop = nil
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

// pruneDaily keeps the journal from growing until ctx ends.
func (e *Engine) pruneDaily(ctx context.Context) {
	ticker := time.NewTicker(24 * time.Hour)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := e.prune(ctx); err != nil {
				e.cfg.Log.WarnContext(ctx, "journal not pruned", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) prune(ctx context.Context) error {
	n, err := e.cfg.Journal.Prune(ctx, time.Now().Add(-e.cfg.Keep))
	if n > 0 {
		e.cfg.Log.InfoContext(ctx, "journal pruned", "operations", n)
	}
	return err
}

// Ask is a request for an operation.
type Ask struct {
	Kind    Kind
	Key     string
	Subject Subject
	Params  any // encoded as JSON
}

// Start begins an operation, or joins the one that runs under the same key. The operation goes on when ctx ends.
func (e *Engine) Start(ctx context.Context, ask Ask) (h *Handle, joined bool, err error) {
	params, err := json.Marshal(ask.Params)
	if err != nil {
		return nil, false, fault.New(fault.Internal, "%s %s: encode parameters: %w", ask.Kind, ask.Subject.Name, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stop == nil {
		return nil, false, fault.New(fault.Unavailable, "%s: %w", ask.Kind, ErrStopping)
	}
	if l := e.lockedRunning(ask.Key); l != nil {
		return &Handle{l: l}, true, nil
	}
	now := time.Now().UTC()
	op := Op{
		ID: uuid.Must(uuid.NewV7()).String(), Kind: ask.Kind, Key: ask.Key, Subject: ask.Subject,
		Params: params, State: Running, Created: now, Updated: now,
	}
	if err := e.write(op, Event{What: Asked}); err != nil {
		return nil, false, fault.New(fault.Unavailable, "%s: %w", ask.Kind, err)
	}
	e.cfg.Log.InfoContext(ctx, "operation started", "op", op.ID, "kind", op.Kind, "vm", op.Subject.ID, "name", op.Subject.Name)
	return &Handle{l: e.lockedLaunch(ctx, op)}, false, nil
}

// Find returns the running operation with the given key, or nil.
func (e *Engine) Find(key string) *Handle {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.lockedRunning(key); l != nil {
		return &Handle{l: l}
	}
	return nil
}

// lockedRunning returns the operation with the given key unless it is at its end; e.mu is held. An operation stays
// in the maps for a moment after its end, until its goroutine has gone.
func (e *Engine) lockedRunning(key string) *live {
	if l := e.keys[key]; l != nil && l.snapshot().State == Running {
		return l
	}
	return nil
}

// Op returns an operation by id, running or ended.
func (e *Engine) Op(id string) (Op, bool, error) {
	e.mu.Lock()
	l := e.live[id]
	e.mu.Unlock()
	if l != nil {
		return l.snapshot(), true, nil
	}
	return e.cfg.Journal.Op(id)
}

// Active returns the running operations, in no particular order.
func (e *Engine) Active() []Op {
	e.mu.Lock()
	defer e.mu.Unlock()
	active := make([]Op, 0, len(e.live))
	for _, l := range e.live {
		if op := l.snapshot(); op.State == Running {
			active = append(active, op)
		}
	}
	return active
}

// Report notes that a poll carried the failure of an ended operation to a client, and returns when that first
// happened.
func (e *Engine) Report(id string) (first time.Time, err error) {
	now := time.Now().UTC()
	err = e.cfg.Journal.amend(id, func(op *Op) {
		if op.Reported.IsZero() {
			op.Reported = now
		}
		first = op.Reported
	})
	return first, err
}

// write puts op and an event into the journal, with the hooks around it.
func (e *Engine) write(op Op, ev Event) error {
	ev.At, ev.Op, ev.Kind, ev.Subject = op.Updated, op.ID, op.Kind, op.Subject
	if e.cfg.Hook != nil {
		e.cfg.Hook(BeforeWrite, ev)
		defer e.cfg.Hook(AfterWrite, ev)
	}
	return e.cfg.Journal.write(op, ev)
}

// lockedLaunch starts the goroutine of an operation; e.mu is held. It keeps the values of ctx, but outlives it: its end
// is that of the engine.
func (e *Engine) lockedLaunch(ctx context.Context, op Op) *live {
	l := &live{op: op, changed: make(chan struct{}), done: make(chan struct{})}
	e.live[op.ID], e.keys[op.Key] = l, l
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := e.stop
	e.wg.Go(func() {
		defer cancel()
		select {
		case <-stop:
		case <-l.done:
		}
	})
	e.wg.Go(func() {
		defer close(l.done)
		e.work(ctx, l)
		e.mu.Lock()
		delete(e.live, op.ID)
		if e.keys[op.Key] == l { // a later operation may have taken the key already
			delete(e.keys, op.Key)
		}
		e.mu.Unlock()
	})
	return l
}

// work calls the handler and journals the end, unless the engine is stopping.
func (e *Engine) work(ctx context.Context, l *live) {
	op := l.snapshot()
	log := e.cfg.Log.With("op", op.ID, "kind", op.Kind)
	err := e.handle(ctx, &Run{e: e, l: l})
	if err != nil && ctx.Err() != nil {
		log.InfoContext(ctx, "operation interrupted, it is resumed at the next start")
		return
	}
	// Until its end is journaled the operation counts as running: a disk that is full now may have room later.
	werr := Retry(ctx, func(error) bool { return true }, func(context.Context) error { return l.end(e, err) })
	op = l.snapshot()
	attrs := []any{"vm", op.Subject.ID, "name", op.Subject.Name, "took", op.Updated.Sub(op.Created)}
	switch {
	case werr != nil:
		log.ErrorContext(ctx, "operation ended but the journal refused its end", append(attrs, "err", werr)...)
	case err != nil:
		log.WarnContext(ctx, "operation failed", append(attrs, "err", err)...)
	default:
		log.InfoContext(ctx, "operation done", attrs...)
	}
}

// end journals the end of an operation.
func (l *live) end(e *Engine, failed error) error {
	return l.change(e, func(o *Op) Event {
		o.Params = nil // may hold secrets, such as user-data, and nobody needs them any more
		if failed == nil {
			o.State = Done
			return Event{What: Succeeded}
		}
		o.State = Failed
		o.Failure = &Failure{Reason: fault.Of(failed), Message: failed.Error()}
		return Event{What: Broke, Message: failed.Error()}
	})
}

// handle calls the handler of the operation's kind; a panic in it is that operation's failure, not the agent's.
func (e *Engine) handle(ctx context.Context, r *Run) (err error) {
	defer func() {
		if p := recover(); p != nil {
			e.cfg.Log.ErrorContext(ctx, "handler panicked", "op", r.ID(), "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s: panic: %v", r.l.op.Kind, p)
		}
	}()
	h := e.handlers[r.l.op.Kind]
	if h == nil {
		return fault.New(fault.Internal, "no handler for operations of kind %q: written by another version?", r.l.op.Kind)
	}
	return h(ctx, r)
}

// live is an operation that runs in this process.
type live struct {
	done chan struct{} // closed when the goroutine is at its end

	mu      sync.Mutex // guards op and changed
	op      Op
	changed chan struct{} // closed and replaced at each change
}

func (l *live) snapshot() Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.op.clone()
}

// change applies f, journals the result, and only then lets others see it.
func (l *live) change(e *Engine, f func(*Op) Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.op.clone()
	next.Updated = time.Now().UTC()
	ev := f(&next)
	if err := e.write(next, ev); err != nil {
		return err
	}
	l.op = next
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Handle is a running operation as its callers see it.
type Handle struct{ l *live }

// Op returns the operation as it is now.
func (h *Handle) Op() Op { return h.l.snapshot() }

// Wait returns when the operation has ended or cond holds for it; a nil cond waits for the end. The error is that of
// ctx, or ErrStopping when the engine stopped before the end.
func (h *Handle) Wait(ctx context.Context, cond func(Op) bool) (Op, error) {
	for {
		h.l.mu.Lock()
		op, changed := h.l.op.clone(), h.l.changed
		h.l.mu.Unlock()
		if op.State != Running || (cond != nil && cond(op)) {
			return op, nil
		}
		select {
		case <-changed:
		case <-h.l.done:
			if op = h.l.snapshot(); op.State != Running {
				return op, nil
			}
			return op, fmt.Errorf("%s %s: %w", op.Kind, op.Subject.Name, ErrStopping)
		case <-ctx.Done():
			return op, ctx.Err()
		}
	}
}
