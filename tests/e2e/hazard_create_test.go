package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// TestCreateWhileNothingIsMounted: /etc/pve is an empty directory for a moment after the clone.
func TestCreateWhileNothingIsMounted(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	var once sync.Once
	off := make(chan struct{})
	cloned := func() bool {
		tasks := s.sim.Tasks()
		return len(tasks) > 0 && tasks[0].Exit() != ""
	}
	s.sim.AfterRequest(func(_ string, r *http.Request) {
		if strings.Contains(r.URL.Path, ":qmclone:") && cloned() { // the agent learns it now, and reads the config next
			once.Do(func() {
				s.check(s.sim.SetMounted("pve1", false))
				close(off)
			})
		}
	})
	c, err := s.agent.Provider.Create(s.ctx, request("web-01"))
	s.must(err)
	<-off
	s.knowsUnmounted(c.GetId())
	s.must(s.sim.SetMounted("pve1", true))
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Error(failure)
	}
	if got := s.made("web-01"); len(got) != 1 || len(s.records()) != 1 {
		t.Errorf("VMs %v, records %q", got, s.records())
	}
	s.wellFormed(c.GetId())
}

// TestCreateWhileItsEarlierVMIsDeleted: the id of a VM that is about to go must not be told.
func TestCreateWhileItsEarlierVMIsDeleted(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	release := s.sim.HoldTasks("qmdestroy")
	defer release()
	done := make(chan error)
	go func() { done <- s.delete(id) }()
	s.eventually("PVE destroys", func() bool { return s.sim.TaskCount("qmdestroy") > 0 })
	refused(t, s.tryCreate(request("web-01")), codes.Aborted, "web-01", id, "being deleted")
	release()
	s.check(<-done)
	if next := s.create(request("web-01")); next == id {
		t.Errorf("the id %s again", id)
	}
	if got := s.made("web-01"); len(got) != 1 {
		t.Errorf("VMs %v", got)
	}
}

// TestATagDoesNotFreeASnippet: a tag with the name of something in the journal is a tag. The snippet that two VMs share
// stays when the first is deleted while the second is being made.
func TestATagDoesNotFreeASnippet(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	first := s.began(everyStep("web-01"))
	if failure := s.outcome(first.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	release := s.sim.HoldTasks("qmclone")
	defer release()
	rq := everyStep("web-02")
	rq.Tags = []string{"Failure"}
	second := s.began(rq)
	s.eventually("PVE clones", func() bool { return s.sim.TaskCount("qmclone") == 2 })
	s.must(s.delete(first.GetId()))
	release()
	if failure := s.outcome(second.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	_, file, _ := strings.Cut(s.snippet(second.GetId(), "user"), ":")
	if file == "" || !s.exists(filepath.Join(s.rig.Dir, "pve1/vz", file)) {
		t.Errorf("cicustom names %q, which is not there", file)
	}
}

// TestAKilledClone leaves a VM that PVE does not let anybody destroy, with nothing in its config but the lock.
func TestAKilledClone(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	s.sim.FailTask("qmclone", template, "unexpected status")
	refused(t, s.tryCreate(request("web-01")), codes.FailedPrecondition, "web-01", "VM 10000", "unexpected status")
	s.nothingLeft(before)
	s.create(request("web-01"))
	if got := s.made("web-01"); len(got) != 1 || len(s.records()) != 1 {
		t.Errorf("VMs %v, records %q", got, s.records())
	}
}

// TestALostTaskLog ends an undo: PVE keeps the logs of its last tasks only, and one that is gone is never found again.
func TestALostTaskLog(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	var lost atomic.Bool
	s.meanwhile("PUT", configPath, func() { lost.Store(true) })
	s.sim.Fail(pvesim.Match("PUT", configPath), 500, "something odd", 1)
	s.sim.Fail(func(r *http.Request) bool {
		return lost.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, ":qmclone:")
	}, 500, "no such task", -1)
	refused(t, s.soon().tryCreate(request("web-01")), codes.FailedPrecondition, "web-01", "something odd")
	s.nothingLeft(before)
}

// TestALostAnswerOfAQuietClone: before version 9.2 PVE does not say in a clone's log which VM it makes.
func TestALostAnswerOfAQuietClone(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.QuietClones = true }})
	s.sim.FailAfter(pvesim.Match("POST", clonePath), 0, "", 1)
	id := s.create(request("web-01"))
	if got := s.made("web-01"); len(got) != 1 || len(s.records()) != 1 {
		t.Errorf("VMs %v, records %q", got, s.records())
	}
	s.wellFormed(id)
}
