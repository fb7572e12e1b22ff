package e2e

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// accepted calls f once, when an operation of a kind is in the journal and not begun yet.
func accepted(kind ops.Kind, f func()) setting {
	var once sync.Once
	return setting{options: []agent.Option{agent.WithJournalHook(func(m ops.Moment, ev ops.Event) {
		if m == ops.AfterWrite && ev.Kind == kind && ev.What == ops.Asked {
			once.Do(f)
		}
	})}}
}

// check is must for hooks, which run in other goroutines than the test.
func (s *stage) check(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

// soon is the stage with calls that end soon: what hangs fails.
func (s *stage) soon() *stage {
	c := *s
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithTimeout(s.ctx, 10*time.Second)
	s.Cleanup(cancel)
	return &c
}

// image is the path of an image on storage local.
func (s *stage) image(name string) string {
	return filepath.Join(s.rig.Dir, "pve1/vz/images", name)
}

func (s *stage) exists(path string) bool {
	s.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Fatal(err)
	}
	return err == nil
}

// stranger is a machine of somebody else under the number of a VM of ours.
var stranger = map[string]string{"name": "precious", "smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"}

// strangerIsWell checks that the stranger has number 10000, and its disk.
func (s *stage) strangerIsWell() {
	s.Helper()
	conf, err := s.sim.Config(10000)
	if err != nil || conf["name"] != stranger["name"] {
		s.Errorf("VM 10000 is %v, err %v", conf, err)
	}
	if !s.exists(s.image("10000/vm-10000-disk-0.qcow2")) {
		s.Error("its disk is gone")
	}
}

// TestDeleteOfAVMThatIsProtectedMeanwhile: between the request and its operation.
func TestDeleteOfAVMThatIsProtectedMeanwhile(t *testing.T) {
	t.Parallel()
	for what, option := range map[string]string{"protected": "protection", "template": "template"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := raise(t)
			s.startAgent(accepted(ops.Delete, func() { s.check(s.sim.SetConfig(500, map[string]string{option: "1"})) }))
			s.add(500, nil)
			s.must(s.sim.StartVM(500))
			destroys := s.watch("DELETE", vmPath)
			refused(t, s.delete("500"), codes.FailedPrecondition, "VM 500", what)
			if _, there := s.sim.Owner(500); !there || !s.sim.Running(500) || len(destroys()) > 0 {
				t.Errorf("there %v, running %v, asked for %q", there, s.sim.Running(500), destroys())
			}
		})
	}
}

// TestDeleteOfAVMThatMovesMeanwhile: its config is gone from here, and it lives on.
func TestDeleteOfAVMThatMovesMeanwhile(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before the operation", "before it is destroyed"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
			move := func() { s.check(s.sim.MoveVM(10000, "pve2")) }
			if when == "before the operation" {
				s.startAgent(accepted(ops.Delete, move))
			} else {
				s.startAgent()
				s.meanwhile("DELETE", vmPath, move)
			}
			id := s.create(everyStep("web-01"))
			records, disk := s.records(), s.image("10000/vm-10000-disk-0.qcow2")
			refused(t, s.soon().delete(id), codes.Aborted, id, "pve2")
			if owner, _ := s.sim.Owner(10000); owner != "pve2" || !s.exists(disk) {
				t.Errorf("the VM is on %q, its disk there: %v", owner, s.exists(disk))
			}
			if got := s.records(); !slices.Equal(got, records) {
				t.Errorf("records %q, want %q", got, records)
			}
			_, file, _ := strings.Cut(s.snippet(id, "user"), ":")
			if !s.exists(filepath.Join(s.rig.Dir, "pve1/vz", file)) {
				t.Errorf("its snippet %s is gone", file)
			}
		})
	}
}

// knowsUnmounted waits until the agent has found that /etc/pve is not mounted.
func (s *stage) knowsUnmounted(id string) {
	s.Helper()
	s.eventually("the agent misses /etc/pve", func() bool {
		_, err := s.describe(id)
		return err != nil && strings.Contains(err.Error(), "not mounted")
	})
}

// TestDeleteWhileNothingIsMounted: /etc/pve is an empty directory for a moment, as when pve-cluster is upgraded.
func TestDeleteWhileNothingIsMounted(t *testing.T) {
	t.Parallel()
	s := raise(t)
	off := make(chan struct{})
	s.startAgent(accepted(ops.Delete, func() {
		s.check(s.sim.SetMounted("pve1", false))
		close(off)
	}))
	before := s.inventory()
	id := s.create(everyStep("web-01"))
	done := make(chan error)
	go func() { done <- s.delete(id) }()
	<-off
	s.knowsUnmounted(id)
	if _, there := s.sim.Owner(10000); !there || len(s.records()) != 1 {
		t.Errorf("there %v, records %q", there, s.records())
	}
	s.must(s.sim.SetMounted("pve1", true))
	s.check(<-done)
	s.nothingLeft(before)
}

// TestDeleteOfAVMWhoseNumberIsReused as soon as it is free. Whether we know that ours is gone or not, the next VM under
// that number is left alone, and Delete does not wait for its end.
func TestDeleteOfAVMWhoseNumberIsReused(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"told", "lost"} {
		t.Run(answer, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			id := s.create(request("web-01"))
			reused := make(chan struct{})
			var destroyed, held sync.Once
			s.sim.AfterTask(func(task *pvesim.Task) {
				if task.Type() != "qmdestroy" {
					return
				}
				destroyed.Do(func() {
					s.check(s.sim.AddVM(10000, "pve1", stranger))
					s.check(s.sim.StartVM(10000))
					close(reused)
				})
			})
			match := pvesim.Match("DELETE", vmPath)
			s.sim.AfterRequest(func(_ string, r *http.Request) {
				if match(r) {
					held.Do(func() { <-reused })
				}
			})
			if answer == "lost" {
				s.sim.FailAfter(match, 0, "", 1)
			}
			s.check(s.soon().delete(id))
			s.strangerIsWell()
			if !s.sim.Running(10000) {
				t.Error("the stranger was stopped")
			}
			if got := s.records(); len(got) > 0 {
				t.Errorf("records %q", got)
			}
		})
	}
}

// restoring puts what a restore begins with in the place of VM 10000: a config that names no disk yet, and the disk.
func (s *stage) restoring() error {
	return errors.Join(
		s.sim.VanishVM(10000),
		os.RemoveAll(s.image("10000")),
		s.sim.AddVM(10000, "pve1", map[string]string{"lock": "create"}),
		s.sim.SetConfig(10000, map[string]string{"scsi0": "", "smbios1": "", "name": ""}),
	)
}

// TestARestoreUnderWay to the number of a VM of ours that is gone: the disk has the name of ours.
func TestARestoreUnderWay(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before the agent starts", "before the operation"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := raise(t)
			if when == "before the operation" {
				s.startAgent(accepted(ops.Delete, func() { s.check(s.restoring()) }))
				s.check(s.delete(s.create(request("web-01"))))
			} else {
				s.startAgent()
				s.create(request("web-01"))
				s.stop()
				s.must(s.restoring())
				s.startAgent()
				s.eventually("the record is gone", func() bool { return len(s.records()) == 0 })
			}
			if conf, err := s.sim.Config(10000); err != nil || conf["lock"] != "create" || !s.exists(s.image("10000/vm-10000-disk-0.qcow2")) {
				t.Errorf("what is restored: %v, err %v; its disk is there: %v", conf, err, s.exists(s.image("10000/vm-10000-disk-0.qcow2")))
			}
		})
	}
}

// TestDeleteOfTheNextVMOfANumber does not join what still is to be done for the one before.
func TestDeleteOfTheNextVMOfANumber(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	seen, hold := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	s.meanwhile("GET", "/nodes/*/storage/*/content", func() { close(seen); <-hold })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer release()
	wg.Go(func() { s.check(s.delete(id)) })
	<-seen
	s.must(s.sim.AddVM(10000, "pve1", stranger))
	s.eventually("the agent knows the next VM", func() bool {
		d, err := s.describe("10000-01234567")
		return err == nil && d.GetExists()
	})
	ended := make(chan error)
	go func() { ended <- s.soon().delete("10000") }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(3 * time.Second):
		release()
		err = <-ended
	}
	if _, there := s.sim.Owner(10000); there || err != nil {
		t.Errorf("err %v, the VM is there: %v", err, there)
	}
}
