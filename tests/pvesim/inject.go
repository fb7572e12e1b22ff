package pvesim

import (
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// faults are answers that somebody asked the API to give.
type faults struct {
	mu    sync.Mutex // guards list and disks
	list  []*fault
	disks []*diskFault

	hooks requestHooks
}

type fault struct {
	match  func(*http.Request) bool
	err    *apiError
	drop   bool // close the connection without an answer
	times  int  // left; negative = for ever
	before bool // before the call is carried out, else after it
}

// matcher says which requests are meant.
type matcher = func(*http.Request) bool

// Match makes a matcher of a method ("" = any) and a path pattern with "*"
// for one element: Match("POST", "/nodes/*/qemu/*/clone"). The path is without
// /api2/json.
func Match(method, pattern string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if method != "" && method != r.Method {
			return false
		}
		ok, err := path.Match(pattern, strings.TrimPrefix(r.URL.Path, "/api2/json"))
		return err == nil && ok
	}
}

// Fail makes the API answer matching requests with a status and message
// instead of carrying them out, the given number of times (negative: always).
// Status 0 closes the connection without an answer.
func (c *Cluster) Fail(match func(*http.Request) bool, status int, message string, times int) {
	c.addFault(&fault{match: match, times: times, before: true, drop: status == 0, err: faultError(status, message)})
}

// FailAfter carries the request out and then answers with the status and
// message, or with 0 closes the connection: the answer is lost on its way.
func (c *Cluster) FailAfter(match func(*http.Request) bool, status int, message string, times int) {
	c.addFault(&fault{match: match, times: times, drop: status == 0, err: faultError(status, message)})
}

func faultError(status int, message string) *apiError {
	return &apiError{status: status, message: message, noBody: status == http.StatusUnauthorized || status >= 595}
}

func (c *Cluster) addFault(f *fault) {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.faults.list = append(c.faults.list, f)
}

// ClearFaults forgets what Fail, FailAfter, FailTask and FailAllocation asked for and did not get yet.
func (c *Cluster) ClearFaults() {
	c.faults.mu.Lock()
	c.faults.list, c.faults.disks = nil, nil
	c.faults.mu.Unlock()
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	c.workers.fails = nil
}

func (f *faults) take(r *http.Request, before bool) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.list {
		if x.before != before || !x.match(r) {
			continue
		}
		if x.times--; x.times == 0 {
			f.list = slices.Delete(f.list, i, i+1)
		}
		return x
	}
	return nil
}

// diskFault is a volume that will find no room.
type diskFault struct {
	storage string // "" for all
	left    int    // volumes until then, it included
}

// FailAllocation lets the n-th volume that is made from now on on a storage
// ("" for any) find no room, 1 being the next; those before and after it do.
// Copies and linked clones count too.
func (c *Cluster) FailAllocation(storage string, n int) {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.faults.disks = append(c.faults.disks, &diskFault{storage, n})
}

// takeAllocation counts a volume, and says whether it is the one to fail.
func (f *faults) takeAllocation(volid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	failed := false
	f.disks = slices.DeleteFunc(f.disks, func(d *diskFault) bool {
		if d.storage == "" || strings.HasPrefix(volid, d.storage+":") {
			d.left--
		}
		failed = failed || d.left == 0
		return d.left == 0
	})
	return failed
}

// injectedError ends a task with exactly this exit status.
type injectedError struct{ exit string }

func (e *injectedError) Error() string { return e.exit }

type taskFault struct {
	kind string
	vmid int
	exit string
}

// FailTask lets the next task of a type fail with an exit status ("no space
// left on device") instead of doing its work; a clone fails half-way, and with
// "unexpected status" it is killed there: nobody cleans up. An empty type and a
// vmid of 0 match every task.
func (c *Cluster) FailTask(kind string, vmid int, exit string) {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	c.workers.fails = append(c.workers.fails, &taskFault{kind: kind, vmid: vmid, exit: exit})
}

func (w *workers) injected(t *Task) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range w.fails {
		if (f.kind == "" || f.kind == t.Type()) && (f.vmid == 0 || strconv.Itoa(f.vmid) == t.ID()) {
			w.fails = slices.Delete(w.fails, i, i+1)
			return &injectedError{f.exit}
		}
	}
	return nil
}

// gate is what tasks wait at.
type gate struct {
	opened chan struct{}
	open   func() // may be called again
}

// HoldTasks lets tasks of a type start but not work until the returned
// function is called (calling it again does nothing).
func (c *Cluster) HoldTasks(kind string) (release func()) {
	w := c.workers
	ch := make(chan struct{})
	g := &gate{opened: ch, open: sync.OnceFunc(func() { close(ch) })}
	w.mu.Lock()
	w.gates[kind] = g
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.gates[kind] == g {
			delete(w.gates, kind)
		}
		g.open()
	}
}

// HoldTasksOn is HoldTasks for the tasks of one node.
func (c *Cluster) HoldTasksOn(node, kind string) (release func()) {
	return c.HoldTasks(node + "/" + kind)
}

// requestHooks are called around each request.
type requestHooks struct {
	mu            sync.Mutex // guards before and after
	before, after []RequestHook
}

// RequestHook sees a request to the API of a node. It may hold it up, and may read the body if it puts it back.
type RequestHook func(node string, r *http.Request)

// BeforeRequest adds a hook that runs before a request is carried out.
func (c *Cluster) BeforeRequest(hook RequestHook) {
	c.faults.hooks.mu.Lock()
	defer c.faults.hooks.mu.Unlock()
	c.faults.hooks.before = append(c.faults.hooks.before, hook)
}

// AfterRequest adds a hook that runs when a request is carried out and not answered yet.
func (c *Cluster) AfterRequest(hook RequestHook) {
	c.faults.hooks.mu.Lock()
	defer c.faults.hooks.mu.Unlock()
	c.faults.hooks.after = append(c.faults.hooks.after, hook)
}

func (h *requestHooks) run(node string, r *http.Request, after bool) {
	h.mu.Lock()
	hooks := h.before
	if after {
		hooks = h.after
	}
	h.mu.Unlock()
	for _, hook := range hooks {
		hook(node, r)
	}
}

// BeforeTask adds a hook that runs in the worker before a task's work.
func (c *Cluster) BeforeTask(hook func(*Task)) {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	c.workers.before = append(c.workers.before, hook)
}

// AfterTask adds a hook that runs when a task has ended.
func (c *Cluster) AfterTask(hook func(*Task)) {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	c.workers.after = append(c.workers.after, hook)
}

// TaskCount returns how many tasks of a type were started ("" = all).
func (c *Cluster) TaskCount(kind string) int {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	n := 0
	for _, t := range c.workers.all {
		if kind == "" || t.Type() == kind {
			n++
		}
	}
	return n
}

// Tasks returns all tasks, the oldest first.
func (c *Cluster) Tasks() []*Task {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	return slices.Clone(c.workers.all)
}
