package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// The requests of which an agent dies.
const (
	crashCreate = "create"
	crashDelete = "delete" // of a running VM
	crashOn     = "on"
	crashOff    = "off"
)

// crashCase is one row of the table: when the agent dies, and what is hard about it.
type crashCase struct {
	name  string
	op    string
	kills []crashPoint // of the first life, of the second, ...; one more life follows
	call  *crashCall   // kills the first life instead
	every crashPoint   // kills each life after the first until one reaches the end

	hold     string // tasks of this type do nothing before the last life has asked PVE for something
	lost     bool   // the journal is deleted at each death
	alone    bool   // nobody repeats the request
	broken   bool   // PVE refuses to configure the VM, so that everything is to be undone
	withdraw bool   // the request for a VM is not repeated: its Delete follows
	mute     bool   // a clone does not say what it makes before the last life has looked for that
	late     bool   // the call is carried out only when the last life makes it again
	dark     int32  // so many requests of the last life find PVE's API closed
	blind    bool   // /etc/pve cannot be read before the last life has asked PVE for something
	aged     bool   // long enough ago for an agent that comes back to settle it unasked
	torn     bool   // the record is cut short, as by a crash while it is written

	timers []time.Duration // kill the lives instead, this long after the request or the start
}

// crashCall is a request to PVE at which the agent dies.
type crashCall struct {
	method, path string // as pvesim.Match has them
	answered     bool   // when it is carried out, else when it arrives
	told         bool   // not before the client has its first answer
}

// crashRow is a row that is under way on a node.
type crashRow struct {
	*crashWorld
	crashCase
	node string
	vm   string // name
	life *crashLife

	before  map[string]bool // what there was on the node
	firstID string          // from the first answer, "" if there was none
	told    chan struct{}   // closed when the first answer is there, if any
	refuse  atomic.Bool     // PVE refuses to configure VMs
	dropped atomic.Int32    // requests that still find the API closed
	release func()          // of the tasks held
	muted   chan struct{}   // closed when clones may say what they make
	made    chan struct{}   // closed when the late call is carried out
	remade  chan struct{}   // closed when it is made again
	lives   int

	tornFile string // the record that was cut short

	mu     sync.Mutex // guards all below
	armed  bool       // call is waited for
	clones map[string]int
	waits  []crashWait
}

// crashWait is a request that somebody waits for.
type crashWait struct {
	path string // how it ends; "" for any that concerns this node
	seen chan struct{}
}

// when returns a channel that is closed at the next request whose path ends so.
func (r *crashRow) when(path string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := crashWait{path: path, seen: make(chan struct{})}
	r.waits = append(r.waits, w)
	return w.seen
}

// asked is called for each request before PVE carries it out.
func (r *crashRow) asked(rq *http.Request) {
	path := strings.TrimPrefix(rq.URL.Path, "/api2/json")
	form, err := crashForm(rq)
	if err != nil {
		return // the client died while it asked
	}
	r.mu.Lock()
	r.waits = slices.DeleteFunc(r.waits, func(w crashWait) bool {
		if w.path == "" && path == "/nodes" || !strings.HasSuffix(path, w.path) {
			return false
		}
		close(w.seen)
		return true
	})
	if rq.Method == http.MethodPost && strings.HasSuffix(path, "/clone") {
		r.clones[form.Get("newid")]++
	}
	r.mu.Unlock()
	r.perhapsKill(rq, false)
}

// crashForm reads what a request carries and puts it back.
func crashForm(rq *http.Request) (url.Values, error) {
	b, err := io.ReadAll(rq.Body)
	if err != nil {
		return nil, err
	}
	rq.Body = io.NopCloser(bytes.NewReader(b))
	return url.ParseQuery(string(b))
}

// answered is called when PVE has carried out a request and not yet said so.
func (r *crashRow) answered(rq *http.Request) {
	r.perhapsKill(rq, true)
	if r.late && r.call.matches(rq) {
		r.once(r.made)
	}
}

func (c *crashCall) matches(rq *http.Request) bool { return pvesim.Match(c.method, c.path)(rq) }

// once closes a channel that may be closed.
func (r *crashRow) once(c chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

func (r *crashRow) await(c <-chan struct{}) {
	select {
	case <-c:
	case <-r.ctx.Done():
	}
}

func (r *crashRow) perhapsKill(rq *http.Request, answered bool) {
	if r.call == nil || r.call.answered != answered || !r.call.matches(rq) {
		return
	}
	r.mu.Lock()
	armed := r.armed
	r.armed = false
	r.mu.Unlock()
	if !armed {
		if r.late {
			r.once(r.remade)
			r.await(r.made)
		}
		return
	}
	if r.call.told {
		r.await(r.told)
	}
	r.life.kill()
	if r.late {
		r.await(r.remade)
	}
}

// task is called for each task before it does anything.
func (r *crashRow) task(kind string) {
	if r.mute && kind == "qmclone" {
		r.await(r.muted)
	}
}

// crashClass is as small as PVE's tests allow, and lets the disk grow.
const crashClass = `{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":1}}`

func (r *crashRow) userData() string { return "#cloud-config\nhostname: " + r.vm + "\n" }

func (r *crashRow) create(ctx context.Context, l *crashLife) (*providerpb.CreateResponse, error) {
	return l.provider.Create(ctx, &providerpb.CreateRequest{
		Name: r.vm, ClassJson: crashClass, ImageJson: `{"TemplateName":"` + crashTemplate(r.node) + `"}`,
		NetworksJson: payloads.NoNetworks, DisksJson: `[{"Name":"data","SizeGiB":1}]`, UserData: []byte(r.userData()),
	})
}

// run carries the row through: prepare, die, come back, be asked again, look at what there is, tidy up.
func (r *crashRow) run() (err error) {
	if r.before, err = r.inventory(r.node); err != nil {
		return err
	}
	defer func() { r.release() }()
	if err := r.prepare(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := r.die(); err != nil {
		return fmt.Errorf("die: %w", err)
	}
	if err := r.comeBack(); err != nil {
		return fmt.Errorf("come back: %w", err)
	}
	if err := r.check(); err != nil {
		return err
	}
	if err := r.tidyUp(); err != nil {
		return fmt.Errorf("tidy up: %w", err)
	}
	return nil
}

// prepare makes the VM that a row about another request than create needs.
func (r *crashRow) prepare() error {
	if r.op == crashCreate {
		return nil
	}
	id, err := r.settleCreate(r.life)
	if err != nil {
		return err
	}
	r.firstID = id
	if r.op == crashOn {
		return r.idle(r.life)
	}
	if err := r.settlePower(r.life, providerpb.PowerOp_POWER_OP_ON); err != nil {
		return err
	}
	return r.idle(r.life)
}

// die sends the request and sees the agent die of it, perhaps several times.
func (r *crashRow) die() error {
	r.refuse.Store(r.broken)
	if r.hold != "" {
		r.release = r.Sim.HoldTasksOn(r.node, r.hold)
	}
	if r.mute {
		r.release = func() { r.once(r.muted) }
	}
	if len(r.timers) > 0 {
		return r.dieInTime()
	}
	r.mu.Lock()
	r.armed = r.call != nil
	r.mu.Unlock()
	if len(r.kills) > 0 {
		if err := r.life.arm(r.kills[0]); err != nil {
			return err
		}
	}
	err := r.first()
	if err := r.awaitDeath(); err != nil {
		return err
	}
	if err != nil && status.Code(err) != codes.Unavailable {
		return fmt.Errorf("first answer: %w", err) // what the client hears of a death is Unavailable
	}
	for i := 1; i < len(r.kills); i++ {
		if err := r.dieAgain(r.kills[i]); err != nil {
			return err
		}
	}
	return nil
}

// dieInTime is die at moments that nobody has chosen.
func (r *crashRow) dieInTime() error {
	timer := time.AfterFunc(r.timers[0], r.life.kill)
	defer timer.Stop()
	if err := r.first(); err != nil && status.Code(err) != codes.Unavailable {
		return fmt.Errorf("first answer: %w", err)
	}
	if err := r.awaitDeath(); err != nil {
		return err
	}
	for _, d := range r.timers[1:] {
		life, end := context.WithTimeout(r.ctx, d)
		err := r.liveIn(life, crashPoint{})
		if err == nil {
			_ = r.again(r.life) // dies with the agent, or does not
		}
		if err == nil || errors.Is(err, errCrashed) {
			err = r.awaitDeath()
		}
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// first sends the request for the first time.
func (r *crashRow) first() error {
	defer close(r.told)
	switch r.op {
	case crashCreate:
		resp, err := r.create(r.ctx, r.life)
		r.firstID = resp.GetId()
		return err
	case crashDelete:
		_, err := r.life.provider.Delete(r.ctx, &providerpb.DeleteRequest{Id: r.firstID})
		return err
	default:
		_, err := r.life.provider.Power(r.ctx, &providerpb.PowerRequest{Id: r.firstID, Op: crashPower[r.op]})
		return err
	}
}

var crashPower = map[string]providerpb.PowerOp{
	crashOn: providerpb.PowerOp_POWER_OP_ON, crashOff: providerpb.PowerOp_POWER_OP_OFF,
}

func (r *crashRow) awaitDeath() error {
	err := r.until("the death of the agent", func() (bool, error) {
		select {
		case <-r.life.over:
			return true, nil
		default:
			return false, nil
		}
	})
	if err != nil {
		return err
	}
	return r.bury()
}

// bury makes sure that the agent was killed, and takes its journal if the row says so.
func (r *crashRow) bury() error {
	if err := r.life.bury(); err != nil {
		return err
	}
	if !r.life.killed() {
		return fmt.Errorf("the agent was not killed, it ended: %w\n%s", r.life.ended, r.life.log.String())
	}
	if r.lost {
		if err := os.Remove(filepath.Join(r.Sim.Node(r.node).State, "journal.db")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.spoilRecord()
}

// dieAgain lets another life begin, which dies at p, or reaches the end of the operation if that is before p.
func (r *crashRow) dieAgain(p crashPoint) error {
	err := r.live(p)
	if errors.Is(err, errCrashed) {
		return r.bury()
	}
	if err != nil {
		return err
	}
	if !r.alone {
		err = r.again(r.life)
	}
	idle := r.idle(r.life)
	if errors.Is(idle, errCrashed) {
		return r.bury()
	}
	return errors.Join(err, idle, r.life.stop())
}

// live begins another life of the agent.
func (r *crashRow) live(p crashPoint) error { return r.liveIn(r.ctx, p) }

// liveIn is live for a life that ends, killed, with ctx.
func (r *crashRow) liveIn(ctx context.Context, p crashPoint) error {
	r.lives++
	l, err := crashBorn(ctx, r.flags(r.node), p)
	if l != nil {
		r.life = l
	}
	return err
}

// comeBack begins the last life and waits until the operation is at its end.
func (r *crashRow) comeBack() error {
	for r.every.Write > 0 {
		if r.lives > 40 {
			return errors.New("the operation does not end")
		}
		if err := r.dieAgain(r.every); err != nil {
			return err
		}
		if r.life.ended == nil {
			break
		}
	}
	var called <-chan struct{}
	switch {
	case r.mute:
		called = r.when("/log")
	case r.hold != "":
		called = r.when("")
	}
	r.dropped.Store(r.dark)
	if err := r.wake(); err != nil {
		return err
	}
	if r.torn {
		if err := r.tearLonger(); err != nil {
			return err
		}
	}
	var again error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !r.alone {
			again = r.again(r.life)
		}
	}()
	var err error
	if called != nil {
		err = r.until("a call of the agent that came back", func() (bool, error) {
			select {
			case <-called:
				return true, nil
			default:
				return false, nil
			}
		})
		r.release()
	}
	<-done
	if r.aged {
		err = errors.Join(err, r.settled())
	}
	return errors.Join(err, again, r.idle(r.life))
}

// wake begins the last life.
func (r *crashRow) wake() error {
	if !r.blind {
		return r.live(crashPoint{})
	}
	list := filepath.Join(r.Sim.Node(r.node).PMXCFS, ".vmlist")
	if err := os.Rename(list, list+".away"); err != nil {
		return err
	}
	asked, seeing := r.when("/nodes"), make(chan error)
	born := make(chan struct{})
	go func() {
		select {
		case <-asked:
		case <-born: // dead
		}
		seeing <- os.Rename(list+".away", list)
	}()
	err := r.live(crashPoint{})
	close(born)
	return errors.Join(err, <-seeing)
}

// again repeats the request as the manager does, until it is carried out.
func (r *crashRow) again(l *crashLife) error {
	switch {
	case r.op == crashDelete, r.withdraw && r.firstID != "":
		return r.settleDelete(l)
	case r.op == crashCreate:
		id, err := r.settleCreate(l)
		if err == nil && r.firstID != "" && id != r.firstID && !r.lost {
			return fmt.Errorf("id %s, the first answer was %s", id, r.firstID)
		}
		if id != "" {
			r.firstID = id
		}
		if r.broken && err != nil && strings.Contains(err.Error(), crashRefusal) {
			return nil
		}
		return err
	default:
		return r.settlePower(l, crashPower[r.op])
	}
}

func (r *crashRow) settleCreate(l *crashLife) (id string, err error) {
	var task *providerpb.TaskRef
	err = r.patiently(func() error {
		resp, err := r.create(r.ctx, l)
		id, task = resp.GetId(), resp.GetTask()
		return err
	})
	if err == nil {
		err = r.settle(l, task)
	}
	return id, err
}

func (r *crashRow) settleDelete(l *crashLife) error {
	return r.patiently(func() error {
		_, err := l.provider.Delete(r.ctx, &providerpb.DeleteRequest{Id: r.firstID})
		return err
	})
}

func (r *crashRow) settlePower(l *crashLife, op providerpb.PowerOp) error {
	var task *providerpb.TaskRef
	err := r.patiently(func() error {
		resp, err := l.provider.Power(r.ctx, &providerpb.PowerRequest{Id: r.firstID, Op: op})
		task = resp.GetTask()
		return err
	})
	if err != nil {
		return err
	}
	return r.settle(l, task)
}

// patiently repeats what is aborted, which only says that it is too early.
func (r *crashRow) patiently(ask func() error) error {
	return r.until("an answer", func() (bool, error) {
		err := ask()
		if status.Code(err) == codes.Aborted {
			return false, nil
		}
		return true, err
	})
}

// settle polls a task to its end.
func (r *crashRow) settle(l *crashLife, task *providerpb.TaskRef) error {
	if task.GetId() == "" {
		return nil
	}
	return r.until("the end of "+task.GetId(), func() (bool, error) {
		st, err := l.provider.TaskStatus(r.ctx, &providerpb.TaskStatusRequest{Task: task})
		if err == nil && st.GetError() != "" {
			err = errors.New(st.GetError())
		}
		return st.GetDone(), err
	})
}

// idle waits until the agent has no operation under way; errCrashed if it dies before.
func (r *crashRow) idle(l *crashLife) error {
	return r.until("the end of all operations", func() (bool, error) {
		n, err := l.running(r.ctx)
		select {
		case <-l.over:
			return false, errCrashed
		default:
			return err == nil && n == 0, err
		}
	})
}

// running asks the agent how many operations are under way; -1 if it does not answer.
func (l *crashLife) running(ctx context.Context) (int, error) {
	const unknown = -1
	rq, err := http.NewRequestWithContext(ctx, http.MethodGet, l.metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	rq.Close = true
	resp, err := http.DefaultClient.Do(rq)
	if err != nil {
		return unknown, nil //nolint:nilerr // it is dead, which the caller sees
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return unknown, nil //nolint:nilerr // it died while it answered
	}
	sum := 0
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "pve_rigaud_operations_running{"); ok {
			var n int
			_, value, _ := strings.Cut(rest, "} ")
			if _, err := fmt.Sscan(value, &n); err != nil {
				return 0, fmt.Errorf("metrics: %q: %w", line, err)
			}
			sum += n
		}
	}
	return sum, nil
}
