package pmxcfs

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errSlow is why a read was given up that took longer than the limit.
var errSlow = errors.New("timed out")

// reads carries out file reads that may hang for ever: a FUSE file system whose process is stuck. Each runs in its own
// goroutine, and whoever asks waits only as long as its context and the limit allow. There is at most one read per path
// at a time, so a hung tree costs one goroutine per path, not one per request.
type reads struct {
	limit time.Duration

	mu      sync.Mutex       // guards what follows
	seq     uint64           // number of reads started
	running map[string]*read // by path
}

type read struct {
	seq  uint64
	done chan struct{} // closed when value and err are set
	val  any
	err  error
}

// fetch reads path with f. It joins a read of that path under way if join is set, or if that read began after this call.
func fetch[T any](ctx context.Context, r *reads, path string, join bool, f func() (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeoutCause(ctx, r.limit, errSlow)
	defer cancel()
	r.mu.Lock()
	arrived := r.seq
	r.mu.Unlock()
	for {
		run := r.start(path, func() (any, error) { return f() })
		select {
		case <-run.done:
		case <-ctx.Done():
			return zero, &HangError{Path: path, Err: context.Cause(ctx)}
		}
		if join || run.seq > arrived {
			val, _ := run.val.(T)
			return val, run.err
		}
	}
}

// start begins a read of path, or returns the one under way.
func (r *reads) start(path string, f func() (any, error)) *read {
	r.mu.Lock()
	defer r.mu.Unlock()
	if run, ok := r.running[path]; ok {
		return run
	}
	r.seq++
	run := &read{seq: r.seq, done: make(chan struct{})}
	if r.running == nil {
		r.running = make(map[string]*read)
	}
	r.running[path] = run
	go func() {
		run.val, run.err = f()
		r.mu.Lock()
		delete(r.running, path)
		r.mu.Unlock()
		close(run.done)
	}()
	return run
}

// drain waits until no read is under way, at most for the given time: nothing can end a read that hangs.
func (r *reads) drain(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		run := r.any()
		if run == nil {
			return
		}
		select {
		case <-run.done:
		case <-timer.C:
			return
		}
	}
}

func (r *reads) any() *read {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range r.running {
		return run
	}
	return nil
}
