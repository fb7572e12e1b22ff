package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const vmPath = "/nodes/*/qemu/*"

func TestDeleteOfWhatDoesNotExist(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.silent("deleting nothing", func() {
		for _, id := range []string{"12345", "12345-0123abcd"} {
			if err := s.delete(id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	})
}

func TestDeleteStopsAndTakesWhatBelongsToTheVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(everyStep("web-01"))
	s.on(id)
	requests := s.watch("", "/nodes/*/qemu/10000*")
	stops := s.watch("POST", "/nodes/*/qemu/*/status/*")
	s.must(s.delete(id))
	s.nothingLeft(before)
	if got := stops(); len(got) != 1 || !strings.Contains(got[0], "/status/stop") {
		t.Errorf("stopped by %q", got)
	}
	destroys := slices.DeleteFunc(requests(), func(r string) bool { return !strings.HasPrefix(r, "DELETE ") })
	if len(destroys) != 1 || !strings.Contains(destroys[0], "purge=1") || !strings.Contains(destroys[0], "destroy-unreferenced-disks=0") {
		t.Errorf("destroyed by %q: without purge=1 jobs keep naming the VM, and without destroy-unreferenced-disks=0 "+
			"PVE takes disks of that number from every storage", destroys)
	}
	if d, err := s.describe(id); err != nil || d.GetExists() {
		t.Errorf("afterwards: %v, err %v", d, err)
	}
	s.must(s.delete(id))
}

// TestDeleteOfAStrangersDisks: a storage may be shared with another cluster that has a VM of that number.
func TestDeleteOfAStrangersDisks(t *testing.T) {
	t.Parallel()
	s := start(t)
	stranger := filepath.Join(s.rig.Dir, "st", "shared", "images", "10000", "vm-10000-disk-0.qcow2")
	s.must(os.MkdirAll(filepath.Dir(stranger), 0o755))
	s.must(os.WriteFile(stranger, []byte("somebody's data"), 0o600))
	before := s.inventory()
	id := s.create(request("web-01"))
	// The disk is no longer in the config, but the record knows it.
	s.set(10000, map[string]string{"scsi0": ""})
	s.must(s.delete(id))
	s.nothingLeft(before)
}

func TestDeleteTakesADiskThatPVELeaves(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01"))
	s.stubborn("10000/vm-10000-disk-0.qcow2")
	s.must(s.delete(id))
	s.nothingLeft(before)
}

func TestDeleteRefuses(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	for id, options := range map[int]map[string]string{
		500: {"protection": "1"}, 501: {"lock": "backup"}, 502: {"lock": "backup"}, 503: {"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"},
	} {
		s.must(s.sim.AddVM(id, "pve1", options))
	}
	s.must(s.sim.AddVM(505, "pve2", nil))
	s.must(s.sim.AddContainer(506, "pve1"))
	s.must(s.sim.StartVM(502))
	s.startAgent()
	before := s.inventory()
	for name, tc := range map[string]struct {
		id    string
		code  codes.Code
		names []string
		calls bool // PVE is asked, and refuses
	}{
		"a template":            {"9000", codes.FailedPrecondition, []string{"VM 9000", "linux-template", "template"}, false},
		"a protected VM":        {"500", codes.FailedPrecondition, []string{"VM 500", "protected", "qm set 500 --protection 0"}, false},
		"a locked VM":           {"501", codes.FailedPrecondition, []string{"VM 501", "locked (backup)"}, true},
		"a locked running VM":   {"502", codes.FailedPrecondition, []string{"VM 502", "locked (backup)"}, true},
		"another machine":       {"503-76543210", codes.FailedPrecondition, []string{"503-76543210", "01234567-89ab-cdef-0123-456789abcdef", "vm-503"}, false},
		"a VM on another node":  {"505", codes.FailedPrecondition, []string{"505", "pve2", "agent"}, false},
		"a container":           {"506", codes.FailedPrecondition, []string{"506", "container", "pve1"}, false},
		"another template's id": {"9000-76543210", codes.FailedPrecondition, []string{"9000-76543210"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.within(t)
			ask := func() { refused(t, s.delete(tc.id), tc.code, tc.names...) }
			if tc.calls {
				ask()
			} else {
				s.silent("a delete that is refused", ask)
			}
			s.nothingLeft(before)
		})
	}
	if !s.sim.Running(502) {
		t.Error("the locked VM was stopped")
	}
}

func TestDeleteWithoutPrivileges(t *testing.T) {
	t.Parallel()
	for lacks, path := range map[string]string{"VM.Allocate": "/vms/500", "VM.PowerMgmt": "/vms/500"} {
		t.Run(lacks, func(t *testing.T) {
			t.Parallel()
			s := raise(t)
			s.startAgent(s.limited(lacks))
			s.add(500, nil)
			s.must(s.sim.StartVM(500))
			refused(t, s.delete("500"), codes.PermissionDenied, "delete VM 500", lacks, path, "pveum")
			if _, err := s.sim.Config(500); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDeleteOfForeignVMs(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	s.add(500, nil)
	s.must(s.delete("500"))
	s.nothingLeft(before)

	s = start(t, setting{flags: []string{"--delete-foreign=false"}})
	empty := s.inventory()
	id := s.create(request("web-01"))
	s.must(s.delete(id))
	s.nothingLeft(empty)
	s.add(500, nil)
	before = s.inventory()
	s.silent("a delete that is forbidden", func() {
		refused(t, s.delete("500"), codes.FailedPrecondition, "VM 500", "vm-500", "delete-foreign")
	})
	s.nothingLeft(before)
}

// TestDeleteOfAVMThatVanishes: what was asked for has come about.
func TestDeleteOfAVMThatVanishes(t *testing.T) {
	t.Parallel()
	for name, when := range map[string][2]string{
		"before it is stopped":   {"POST", "/nodes/*/qemu/*/status/stop"},
		"before it is destroyed": {"DELETE", vmPath},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			before := s.inventory()
			id := s.create(everyStep("web-01"))
			s.on(id)
			s.meanwhile(when[0], when[1], func() {
				if err := s.sim.VanishVM(10000); err != nil {
					t.Error(err)
				}
			})
			s.must(s.delete(id))
			s.nothingLeft(before)
		})
	}
}

func TestDeletesOfOneVMAreOneOperation(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01"))
	release := s.sim.HoldTasks("qmdestroy")
	defer release()
	const callers = 5
	errs := make(chan error)
	for i := range callers {
		go func() {
			if i%2 == 0 {
				errs <- s.delete(id)
			} else {
				errs <- s.delete("10000")
			}
		}()
	}
	s.eventually("PVE destroys", func() bool { return s.sim.TaskCount("qmdestroy") > 0 })
	if d := s.described(id); d.GetPowerState() != "Off" {
		t.Errorf("a VM under deletion is %s", d.GetPowerState())
	}
	release()
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := s.sim.TaskCount("qmdestroy"); n != 1 {
		t.Errorf("PVE was asked %d times", n)
	}
	s.nothingLeft(before)
}

func TestDeleteOfAVMInCreation(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	before := s.inventory()
	release := s.sim.HoldTasks("qmclone")
	defer release()
	c := s.began(everyStep("web-01"))
	done := make(chan error)
	go func() { done <- s.delete(c.GetId()) }()
	select {
	case err := <-done:
		t.Fatalf("ended before the clone did: %v", err)
	default:
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.nothingLeft(before)
	if st := s.poll(c.GetTask()); !st.GetDone() || st.GetError() != "" {
		t.Errorf("the task of its creation says %v", st)
	}
}

// TestDeleteTellsWhatPVESays, and a repeat tries again.
func TestDeleteTellsWhatPVESays(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01"))
	s.sim.FailTask("qmdestroy", 10000, "something odd")
	refused(t, s.delete(id), codes.FailedPrecondition, "delete VM 10000", "something odd")
	s.described(id)
	s.must(s.delete(id))
	s.nothingLeft(before)
}

func TestDeleteWaitsForALock(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(request("web-01"))
	s.sim.FailTask("qmdestroy", 10000, "can't lock file '/var/lock/qemu-server/lock-10000.conf' - got timeout")
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestDeleteOfAVMThatHAStartsAgain: between our stop and our destroy.
func TestDeleteOfAVMThatHAStartsAgain(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.must(s.sim.AddHA(500, "started"))
	s.must(s.sim.StartVM(500))
	s.meanwhile("DELETE", vmPath, func() {
		if err := s.sim.StartVM(500); err != nil {
			t.Error(err)
		}
	})
	s.must(s.delete("500"))
	if _, ok := s.sim.Owner(500); ok {
		t.Error("still there")
	}
	if ha := string(s.file("etc/pve/ha/resources.cfg")); strings.Contains(ha, "500") {
		t.Errorf("HA still knows it: %s", ha)
	}
}

// TestANumberThatBelongsToAnotherMachineNow: our VM was destroyed in PVE, and its number was given to another one,
// whose disks have the same names.
func TestANumberThatBelongsToAnotherMachineNow(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01"))
	s.must(s.sim.VanishVM(10000))
	s.eventually("gone", func() bool { d, err := s.describe(id); return err == nil && !d.GetExists() })
	s.must(os.RemoveAll(filepath.Join(s.rig.Dir, "pve1/vz/images/10000")))
	s.add(10000, map[string]string{"name": "precious"})
	records := s.records()
	before := s.inventory()

	refused(t, s.delete(id), codes.FailedPrecondition, id, "precious")
	s.nothingLeft(before)

	// Records that stand for nothing are removed at the start of the agent. The disks are not.
	s.stop()
	s.startAgent()
	s.eventually("the record is gone", func() bool { return len(s.records()) == 0 })
	for name := range before {
		if slices.ContainsFunc(records, func(r string) bool { return strings.HasSuffix(name, r) }) {
			delete(before, name)
		}
	}
	s.eventually("the operation is over", func() bool { return !strings.Contains(s.scrape("/metrics"), `running{kind="delete"} 1`) })
	s.nothingLeft(before)
	if next := s.create(request("web-01")); next == id {
		t.Errorf("the id %s again", id)
	}
}

// TestARecordOfAVMThatSomebodyDestroyed is removed when Delete finds the VM gone.
func TestARecordOfAVMThatSomebodyDestroyed(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(everyStep("web-01"))
	s.must(s.sim.VanishVM(10000))
	s.must(os.RemoveAll(filepath.Join(s.rig.Dir, "pve1/vz/images/10000")))
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestManyDeletesAtOnce of VMs that share a snippet.
func TestManyDeletesAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	var wg sync.WaitGroup
	for i := range 4 {
		id := s.create(everyStep(fmt.Sprintf("web-%d", i)))
		wg.Go(func() {
			if err := s.delete(id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.nothingLeft(before)
	if _, err := os.Stat(filepath.Join(s.rig.Dir, "pve1/vz/images/10000")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
