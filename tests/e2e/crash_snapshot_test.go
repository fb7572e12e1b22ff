package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// snapCrash is a VM that runs, with a snapshot "base" from when it had two cores, and an agent that is killed.
type snapCrash struct {
	*stage
	life *crashLife
	args []string

	mu    sync.Mutex // guards what follows
	kill  *snapKill
	slow  func() // releases the tasks that are held
	calls int    // that change something
}

// snapKill is a request to PVE of which the agent dies: when it arrives, or when it is carried out and not yet answered.
type snapKill struct {
	answered bool
}

// snapRow is one way to die.
type snapRow struct {
	name  string
	point crashPoint // of the journal
	call  *snapKill  // at the call instead
	slow  bool       // the task goes on until the next agent looks for it
	alone bool       // nobody repeats the request
}

// snapRows are moments at which an agent may die of an operation on a snapshot. Its journal has five writes: asked, begin,
// task, end, succeeded; that of a revert has two more.
func snapRows() []snapRow {
	var rows []snapRow
	for write := 1; write <= 5; write++ {
		after := write%2 == 1
		rows = append(rows, snapRow{
			name: fmt.Sprintf("write %d, after it: %v", write, after), point: crashPoint{Write: write, After: after}, alone: write > 1 && write%2 == 1,
			slow: write == 3,
		})
	}
	for _, answered := range []bool{false, true} {
		for _, slow := range []bool{false, true} {
			rows = append(rows, snapRow{
				name: fmt.Sprintf("call, answered: %v, slow: %v", answered, slow), call: &snapKill{answered: answered}, slow: slow, alone: answered == slow,
			})
		}
	}
	return rows
}

// TestCrashWithSnapshots kills the agent in the middle of taking, removing and going back to snapshots. The next one takes
// it up: each is done once, and nothing stays half done.
func TestCrashWithSnapshots(t *testing.T) {
	t.Parallel()
	c := startSnapCrash(t)
	for i, row := range snapRows() {
		taken := fmt.Sprintf("row.%d", i)
		id := fmt.Sprintf("row_%d", i)
		c.die("take at "+row.name, "qmsnapshot", row, func(ctx context.Context, p providerpb.ProviderClient) (*providerpb.TaskRef, error) {
			r, err := p.SnapshotCreate(ctx, &providerpb.SnapshotCreateRequest{VmId: "500", NameHint: taken})
			return r.GetTask(), err
		})
		if s, ok := c.snapshots("500")[id]; !ok || s["snapstate"] != "" {
			t.Errorf("take at %s: snapshots %v", row.name, c.snapshots("500"))
		}
		c.must(c.sim.SetConfig(500, map[string]string{"cores": "3"}))
		c.die("revert at "+row.name, "qmrollback", row, func(ctx context.Context, p providerpb.ProviderClient) (*providerpb.TaskRef, error) {
			r, err := p.SnapshotRevert(ctx, &providerpb.SnapshotRevertRequest{VmId: "500", SnapshotId: "base"})
			return r.GetTask(), err
		})
		if conf := c.config("500"); conf["cores"] != "2" || conf["parent"] != "base" || !c.sim.Running(500) {
			t.Errorf("revert at %s: runs %v, %v", row.name, c.sim.Running(500), conf)
		}
		c.die("remove at "+row.name, "qmdelsnapshot", row, func(ctx context.Context, p providerpb.ProviderClient) (*providerpb.TaskRef, error) {
			r, err := p.SnapshotDelete(ctx, &providerpb.SnapshotDeleteRequest{VmId: "500", SnapshotId: taken})
			return r.GetTask(), err
		})
		if left := c.snapshots("500"); len(left) != 1 {
			t.Errorf("remove at %s: snapshots %v", row.name, left)
		}
	}
	c.must(c.life.stop())
}

func startSnapCrash(t *testing.T) *snapCrash {
	t.Helper()
	c := &snapCrash{stage: raise(t), slow: func() {}}
	c.args = []string{
		"--config=" + c.sim.Node("pve1").AgentYAML, "--listen-grpc=127.0.0.1:0", "--metrics=127.0.0.1:0",
		"--watch=100ms", "--tasks-poll-min=5ms", "--tasks-poll-max=100ms",
	}
	c.sim.BeforeRequest(func(_ string, rq *http.Request) { c.request(rq, false) })
	c.sim.AfterRequest(func(_ string, rq *http.Request) { c.request(rq, true) })
	c.must(c.sim.AddVM(500, "pve1", map[string]string{"cores": "2", "vmgenid": "01234567-89ab-cdef-0123-456789abcdef"}))
	c.must(c.sim.StartVM(500))
	c.live()
	made, err := c.life.provider.SnapshotCreate(c.ctx, &providerpb.SnapshotCreateRequest{VmId: "500", NameHint: "base"})
	if err != nil || made.GetTask().GetId() != "" {
		t.Fatalf("%v, err %v", made, err)
	}
	return c
}

// request is called for each request, before and after it is carried out.
func (c *snapCrash) request(rq *http.Request, answered bool) {
	changes := pvesim.Match(http.MethodPost, snapshotPath)(rq) || pvesim.Match(http.MethodDelete, snapshotPath+"/*")(rq) ||
		pvesim.Match(http.MethodPost, snapshotPath+"/*/rollback")(rq)
	looks := pvesim.Match(http.MethodGet, "/nodes/*/tasks")(rq) || pvesim.Match(http.MethodGet, "/nodes/*/tasks/*/status")(rq)
	c.mu.Lock()
	kill := c.kill
	if kill != nil && (!changes || kill.answered != answered) {
		kill = nil
	}
	if kill != nil {
		c.kill = nil
	}
	slow := c.slow
	if looks && answered && c.kill == nil {
		c.slow = func() {}
	} else {
		slow = func() {}
	}
	if changes && !answered {
		c.calls++
	}
	c.mu.Unlock()
	if kill != nil {
		c.life.kill()
	}
	slow()
}

// live starts an agent.
func (c *snapCrash) live() {
	c.Helper()
	life, err := crashBorn(c.ctx, c.args, crashPoint{})
	c.must(err)
	c.life = life
	c.Cleanup(func() { life.kill() })
}

// die sends a request of which the agent dies, and sees the next one bring it to its end.
func (c *snapCrash) die(name, task string, row snapRow, ask func(context.Context, providerpb.ProviderClient) (*providerpb.TaskRef, error)) {
	c.Helper()
	release := func() {}
	if row.slow {
		release = sync.OnceFunc(c.sim.HoldTasks(task))
		defer release()
	}
	c.mu.Lock()
	c.kill = row.call
	before := c.sim.TaskCount(task)
	c.mu.Unlock()
	if row.call == nil {
		c.must(c.life.arm(row.point))
	}
	_, err := ask(c.ctx, c.life.provider)
	if err == nil && row.call == nil && row.point.Write > 4 { // it may be told before its end is written
		err = status.Error(codes.Unavailable, "")
	}
	if status.Code(err) != codes.Unavailable {
		c.Fatalf("%s: the agent did not die of it: %v", name, err)
	}
	select {
	case <-c.life.over:
	case <-time.After(c.patience):
		c.Fatalf("%s: the agent lives", name)
	}
	c.must(c.life.bury())
	c.mu.Lock()
	c.slow = release
	c.mu.Unlock()
	c.live()
	if !row.alone {
		c.again(name, ask)
	}
	c.eventually(name+": the end of all operations", func() bool {
		n, err := c.life.running(c.ctx)
		return err == nil && n == 0
	})
	if slices.Contains(c.life.writes(0), "failed") {
		c.Errorf("%s: it failed", name)
	}
	if lock := c.config("500")["lock"]; lock != "" {
		c.Errorf("%s: the VM is locked (%s); writes %q", name, lock, c.life.writes(0))
		c.Logf("%s", c.life.log.String())
	}
	// Going back may be repeated, as there is no telling one from two.
	if n := c.sim.TaskCount(task) - before; n != 1 && (task != "qmrollback" || row.alone) {
		c.Errorf("%s: %d tasks %s", name, n, task)
	}
}

// again repeats the request and waits for its end.
func (c *snapCrash) again(name string, ask func(context.Context, providerpb.ProviderClient) (*providerpb.TaskRef, error)) {
	c.Helper()
	task, err := ask(c.ctx, c.life.provider)
	if err != nil {
		c.Errorf("%s: asked again: %v", name, err)
		return
	}
	c.eventually(name+": the end of the task", func() bool {
		if task.GetId() == "" {
			return true
		}
		st, err := c.life.provider.TaskStatus(c.ctx, &providerpb.TaskStatusRequest{Task: task})
		if err != nil || st.GetError() != "" {
			c.Errorf("%s: %v, err %v", name, st, err)
		}
		return st.GetDone()
	})
}
