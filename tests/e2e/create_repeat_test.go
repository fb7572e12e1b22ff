package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// began starts the making of a VM whose clone is held and returns the answer, which has to be a task.
func (s *stage) began(r *providerpb.CreateRequest) *providerpb.CreateResponse {
	s.Helper()
	c, err := s.agent.Provider.Create(s.ctx, r)
	if err != nil {
		s.Fatalf("create %s: %v", r.GetName(), err)
	}
	if c.GetTask().GetId() == "" {
		s.Fatalf("create %s: no task, although its clone is held", r.GetName())
	}
	return c
}

// quick makes RPCs answer with a task almost at once.
var quick = setting{flags: []string{"--sync-wait=20ms"}}

// records lists the record files.
func (s *stage) records() []string {
	s.Helper()
	entries, err := os.ReadDir(filepath.Join(s.rig.Dir, "etc/pve/priv/pve-rigaud/vms"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// made lists the VMs with a name.
func (s *stage) made(name string) []int {
	s.Helper()
	var ids []int
	for _, id := range s.sim.VMIDs() {
		conf, err := s.sim.Config(id)
		if err == nil && conf["name"] == name {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestCreateAnswersWithATaskAndTheFinalID(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	release := s.sim.HoldTasks("qmclone")
	defer release()
	first := s.began(request("web-01"))
	if st := s.poll(first.GetTask()); st.GetDone() || st.GetError() != "" {
		t.Errorf("the task of a VM in creation says %v", st)
	}

	again := s.began(request("web-01"))
	if again.GetId() != first.GetId() || again.GetTask().GetId() != first.GetTask().GetId() {
		t.Errorf("a repeat got %v, the first %v", again, first)
	}
	other := s.began(request("web-01", class(`{"CPU":4,"MemoryMiB":1024}`)))
	if other.GetId() != first.GetId() {
		t.Errorf("a repeat after a change of the class got %v, the first %v", other, first)
	}
	if n := s.sim.TaskCount("qmclone"); n != 1 {
		t.Errorf("%d clones", n)
	}

	release()
	if failure := s.outcome(first.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	s.wellFormed(first.GetId())
	after, err := s.agent.Provider.Create(s.ctx, request("web-01"))
	if err != nil || after.GetId() != first.GetId() || after.GetTask().GetId() != "" {
		t.Errorf("a repeat afterwards got %v, err %v", after, err)
	}
	if got := s.made("web-01"); len(got) != 1 {
		t.Errorf("VMs %v are called web-01", got)
	}
}

// TestCreateOfANameInUse: once a VM was described some object of the manager holds it, so that a Create of its name
// comes from another one, of another namespace.
func TestCreateOfANameInUse(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	if again := s.create(request("web-01")); again != id {
		t.Errorf("a repeat made %s beside %s", again, id)
	}
	s.described(id)
	refused(t, s.tryCreate(request("web-01")), codes.AlreadyExists, "web-01", id)
	s.must(s.delete(id))
	if next := s.create(request("web-01")); next == id {
		t.Errorf("the name of a deleted VM gave its id %s again", id)
	}
}

func TestCreateOfANameThatSomebodyElseUses(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, map[string]string{"name": "web-01"})
	before := s.inventory()
	s.silent("a name in use", func() {
		refused(t, s.tryCreate(request("web-01")), codes.AlreadyExists, "web-01", "VM 500", "pve1")
	})
	s.nothingLeft(before)

	s.set(template, map[string]string{"name": "web-02"}) // a template's name is no VM's
	s.create(request("web-02", from("9000")))
}

// TestCreateAfterTheVMWasRemovedInPVE: the manager creates a VM anew when Describe says that it is gone.
func TestCreateAfterTheVMWasRemovedInPVE(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	s.described(id)
	s.must(s.sim.VanishVM(vmid(t, id)))
	s.eventually("gone", func() bool { d, err := s.describe(id); return err == nil && !d.GetExists() })
	next := s.create(request("web-01"))
	if next == id {
		t.Errorf("the new VM has the old id %s", id)
	}
	s.wellFormed(next)
	if got := s.records(); len(got) != 1 {
		t.Errorf("records %v, want that of the new VM alone", got)
	}
}

func TestManyIdenticalCreatesMakeOneVM(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	release := s.sim.HoldTasks("qmclone")
	defer release()
	const callers = 20
	answers, errs := s.together(callers, func(int) *providerpb.CreateRequest { return request("web-01") })
	release()
	ids, tasks := map[string]bool{}, map[string]bool{}
	for i, c := range answers {
		if errs[i] != nil {
			t.Errorf("caller %d: %v", i, errs[i])
			continue
		}
		ids[c.GetId()], tasks[c.GetTask().GetId()] = true, true
		s.outcome(c.GetTask())
	}
	if len(ids) != 1 || len(tasks) != 1 {
		t.Errorf("ids %v, tasks %v", slices.Collect(maps.Keys(ids)), slices.Collect(maps.Keys(tasks)))
	}
	if n := s.sim.TaskCount("qmclone"); n != 1 {
		t.Errorf("%d clones", n)
	}
	if got := s.records(); len(got) != 1 {
		t.Errorf("records %v", got)
	}
}

// TestManyCreatesAtOnce: different names get different numbers.
func TestManyCreatesAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	const callers = 8
	answers, errs := s.together(callers, func(i int) *providerpb.CreateRequest { return request(fmt.Sprintf("web-%d", i)) })
	numbers := map[int]bool{}
	for i, c := range answers {
		if errs[i] != nil {
			t.Fatalf("caller %d: %v", i, errs[i])
		}
		if failure := s.outcome(c.GetTask()); failure != "" {
			t.Errorf("caller %d: %s", i, failure)
		}
		s.wellFormed(c.GetId())
		numbers[vmid(t, c.GetId())] = true
	}
	if len(numbers) != callers {
		t.Errorf("%d numbers for %d VMs", len(numbers), callers)
	}
	for _, c := range answers {
		s.must(s.delete(c.GetId()))
	}
	s.nothingLeft(before)
}

// together sends n creates at the same time.
func (s *stage) together(n int, rq func(i int) *providerpb.CreateRequest) ([]*providerpb.CreateResponse, []error) {
	answers, errs := make([]*providerpb.CreateResponse, n), make([]error, n)
	done := make(chan struct{})
	for i := range n {
		go func() {
			answers[i], errs[i] = s.agent.Provider.Create(s.ctx, rq(i))
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	return answers, errs
}

// TestFewCallsOfAClientWait: the manager has ten workers in all, and more than a few that wait here would leave its
// other VMs without attention.
func TestFewCallsOfAClientWait(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=1m"}})
	release := s.sim.HoldTasks("qmclone")
	defer release()
	type answer struct {
		task string
		err  error
	}
	answers := make(chan answer)
	const callers = 5
	for i := range callers {
		go func() {
			c, err := s.agent.Provider.Create(s.ctx, request(fmt.Sprintf("web-%d", i)))
			answers <- answer{c.GetTask().GetId(), err}
		}()
	}
	tasks := 0
	take := func() {
		a := <-answers
		if a.err != nil {
			t.Error(a.err)
		}
		if a.task != "" {
			tasks++
		}
	}
	take() // three wait, so two are answered while nothing is done
	take()
	if tasks != 2 {
		t.Errorf("%d of two early answers are tasks", tasks)
	}
	release()
	for range callers - 2 {
		take()
	}
	if tasks != 2 {
		t.Errorf("%d calls were answered with a task, want 2 of %d", tasks, callers)
	}
}

// TestTheNameOfAnotherClient: two clients are two managers, and each has its own names.
func TestTheNameOfAnotherClient(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.TLS = true }})
	ca := newAuthority(t)
	s.startAgent(setting{flags: append([]string{"--plaintext=false"}, ca.serverFlags(t, s.rig.Dir)...)})
	var ids []string
	for _, client := range []string{"manager-a.example", "manager-b.example"} {
		p := ca.dial(t, s.agent.Conn.Target(), client)
		c, err := p.Create(s.ctx, request("web-01"))
		if err != nil {
			t.Fatalf("%s: %v", client, err)
		}
		again, err := p.Create(s.ctx, request("web-01"))
		if err != nil || again.GetId() != c.GetId() {
			t.Errorf("%s: a repeat got %s, err %v, the first %s", client, again.GetId(), err, c.GetId())
		}
		ids = append(ids, c.GetId())
	}
	if ids[0] == ids[1] {
		t.Errorf("both clients have VM %s", ids[0])
	}
	if got := s.made("web-01"); len(got) != 2 {
		t.Errorf("VMs %v are called web-01, want two", got)
	}
	if got := s.records(); len(got) != 2 || strings.EqualFold(got[0], got[1]) {
		t.Errorf("records %v", got)
	}
}
