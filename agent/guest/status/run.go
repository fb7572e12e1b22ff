package status

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Run watches the processes and reads in the background until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	processes, err := t.open()
	if err != nil {
		return fmt.Errorf("watch processes: %w", err)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	t.runstates.start(inner, &work)
	t.agents.start(inner, &work)
	work.Go(func() { t.tellExits(inner) })
	work.Go(func() { t.revisit(inner) })
	work.Go(func() {
		<-inner.Done()
		t.end(processes)
	})
	close(t.ready)
	select {
	case <-t.met:
		err = t.watch(processes)
	case <-ctx.Done():
	}
	cancel()
	work.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch processes: %w", err)
}

// open makes the epoll descriptor and puts all known processes into it. Made
// non-blocking, it can itself wait in the runtime's poller, and no thread is
// spent on it.
func (t *Tracker) open() (*os.File, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(epoll, true); err != nil {
		return nil, errors.Join(err, unix.Close(epoll))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoll = epoll
	for _, v := range t.vms {
		t.lockedWatch(v)
	}
	return os.NewFile(uintptr(epoll), "processes"), nil
}

// end lets go of all processes and makes watch return.
func (t *Tracker) end(processes *os.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoll, t.stopped = -1, true
	_ = processes.Close() // its error would be of no use
	for id, v := range t.vms {
		v.close()
		delete(t.vms, id)
	}
}

// watch buries processes when they end.
func (t *Tracker) watch(processes *os.File) error {
	conn, err := processes.SyscallConn()
	if err != nil {
		return err
	}
	events := make([]unix.EpollEvent, 64)
	for {
		var n int
		var fault error
		err := conn.Read(func(fd uintptr) (done bool) {
			n, fault = unix.EpollWait(int(fd), events, 0)
			return n > 0 || fault != nil
		})
		if err == nil && !errors.Is(fault, unix.EINTR) {
			err = fault
		}
		if err != nil {
			return err
		}
		for _, ev := range events[:max(n, 0)] {
			t.look(int(ev.Fd))
		}
	}
}

// look buries the process of a VM if it has ended.
func (t *Tracker) look(vmid int) {
	t.mu.RLock()
	v := t.vms[vmid]
	t.mu.RUnlock()
	if v == nil {
		return
	}
	if _, alive := v.state(t.now()); !alive {
		t.bury(v)
	}
}

// tellExits calls OnExit.
func (t *Tracker) tellExits(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		}
		t.mu.Lock()
		exits := t.exits
		t.exits = nil
		t.mu.Unlock()
		for _, vmid := range exits {
			t.cfg.OnExit(vmid)
		}
	}
}

// pool is a number of goroutines for tasks that nobody waits for.
type pool struct {
	workers int
	tasks   chan func(context.Context)
}

func newPool(workers, queue int) *pool {
	return &pool{workers: workers, tasks: make(chan func(context.Context), queue)}
}

// offer hands a task over, unless too many wait already.
func (p *pool) offer(task func(context.Context)) bool {
	select {
	case p.tasks <- task:
		return true
	default:
		return false
	}
}

// start starts the goroutines; they end with ctx.
func (p *pool) start(ctx context.Context, work *sync.WaitGroup) {
	for range p.workers {
		work.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case task := <-p.tasks:
					task(ctx)
				}
			}
		})
	}
}
