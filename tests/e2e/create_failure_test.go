package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// limited gives the agent a token that lacks privileges everywhere.
func (s *stage) limited(lacks ...string) setting {
	s.Helper()
	var privileges []string
	for _, p := range pvesim.AllPrivileges(s.sim.Version()) {
		if !slices.Contains(lacks, p) {
			privileges = append(privileges, p)
		}
	}
	const id, secret = "limited@pve!agent", "00000000-1111-2222-3333-444444444444"
	s.sim.AddToken(id, secret, pvesim.ACL{"/": privileges})
	file := filepath.Join(s.rig.Dir, "limited-secret")
	s.must(os.WriteFile(file, []byte(secret+"\n"), 0o600))
	return setting{flags: []string{"--pve-token-id=" + id, "--pve-token-secret-file=" + file}}
}

// meanwhile calls f once, when a matching request arrives and before it is carried out.
func (s *stage) meanwhile(method, pattern string, f func()) {
	match := pvesim.Match(method, pattern)
	var once sync.Once
	s.sim.Fail(func(r *http.Request) bool {
		if match(r) {
			once.Do(f)
		}
		return false
	}, 0, "", -1)
}

const (
	clonePath  = "/nodes/*/qemu/*/clone"
	configPath = "/nodes/*/qemu/*/config"
	resizePath = "/nodes/*/qemu/*/resize"
)

// grown is a class whose VMs need every step: a root disk larger than the template's.
const grown = `{"CPU":2,"MemoryMiB":1024,"DiskDefaults":{"Type":"thin","SizeGiB":2}}`

// everyStep asks for a VM in whose making every step has something to do.
func everyStep(name string) *providerpb.CreateRequest {
	return request(name, class(grown), func(r *providerpb.CreateRequest) { r.UserData = []byte("#cloud-config\n") })
}

// TestAFailedCreateLeavesNothing goes through the ways in which the steps of a create fail. Each has to say what went
// wrong with what, in a code that does not open the manager's breaker for all VMs, and leave nothing.
func TestAFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	gone := func(s *stage) {
		if err := s.sim.VanishVM(10000); err != nil {
			s.Error(err)
		}
	}
	for name, tc := range map[string]struct {
		lacks   []string // privileges of the agent's token
		prepare func(*stage)
		change  func(*providerpb.CreateRequest)
		code    codes.Code
		names   []string
	}{
		"clone: the storage is full": {
			prepare: func(s *stage) { s.sim.FailTask("qmclone", template, "clone failed: no space left on device") },
			code:    codes.ResourceExhausted, names: []string{"clone VM 9000 to VM 10000", "no space left on device"},
		},
		"clone: the storage really is full": {
			prepare: func(s *stage) {
				s.must(s.sim.ChangeStorage("local", func(x *pvesim.Storage) { x.Free = 1 << 20 }))
			},
			code: codes.ResourceExhausted, names: []string{"clone VM 9000 to VM 10000", "No space left on device"},
		},
		"clone: the task fails": {
			prepare: func(s *stage) { s.sim.FailTask("qmclone", template, "clone failed: something odd") },
			code:    codes.FailedPrecondition, names: []string{"clone VM 9000 to VM 10000", "something odd"},
		},
		"clone: PVE refuses": {
			prepare: func(s *stage) { s.sim.Fail(pvesim.Match("POST", clonePath), 500, "something odd", 1) },
			code:    codes.FailedPrecondition, names: []string{"clone VM 9000 to VM 10000", "something odd"},
		},
		"clone: the number was taken meanwhile": {
			prepare: func(s *stage) {
				s.sim.Fail(pvesim.Match("POST", clonePath), 500, "unable to create VM 10000: config file already exists", 1)
			},
			code: codes.Aborted, names: []string{"VMID 10000 was taken"},
		},
		"clone: the template is locked meanwhile": {
			prepare: func(s *stage) {
				s.sim.Fail(pvesim.Match("POST", clonePath), 500, "VM is locked (backup)", 1)
			},
			code: codes.FailedPrecondition, names: []string{"clone VM 9000", "locked (backup)"},
		},
		"clone: the template vanishes meanwhile": {
			prepare: func(s *stage) {
				s.sim.Fail(pvesim.Match("POST", clonePath), 500, "Configuration file 'nodes/pve1/qemu-server/9000.conf' does not exist", 1)
			},
			code: codes.Aborted, names: []string{"clone VM 9000", "9000.conf"},
		},
		"clone: no privilege to clone": {
			lacks: []string{"VM.Clone"},
			code:  codes.PermissionDenied, names: []string{"clone VM 9000", "VM.Clone", "/vms/9000", "pveum"},
		},
		"clone: no privilege to make VMs": {
			lacks: []string{"VM.Allocate"},
			code:  codes.PermissionDenied, names: []string{"clone VM 9000 to VM 10000", "Permission check failed"},
		},
		"clone: no privilege on the storage": {
			lacks: []string{"Datastore.AllocateSpace"},
			code:  codes.PermissionDenied, names: []string{"clone VM 9000", "Datastore.AllocateSpace", "/storage/local"},
		},
		"configure: PVE refuses": {
			prepare: func(s *stage) { s.sim.Fail(pvesim.Match("PUT", configPath), 500, "something odd", 1) },
			code:    codes.FailedPrecondition, names: []string{"configure VM 10000", "something odd"},
		},
		"configure: no privilege for CPUs": {
			lacks: []string{"VM.Config.CPU"},
			code:  codes.PermissionDenied, names: []string{"configure VM 10000", "VM.Config.CPU", "/vms/10000"},
		},
		"configure: no privilege for memory": {
			lacks: []string{"VM.Config.Memory"},
			code:  codes.PermissionDenied, names: []string{"configure VM 10000", "VM.Config.Memory", "/vms/10000"},
		},
		"configure: no privilege for hardware": {
			lacks: []string{"VM.Config.HWType"},
			code:  codes.PermissionDenied, names: []string{"configure VM 10000", "VM.Config.HWType", "/vms/10000"},
		},
		"configure: no privilege for cloud-init": {
			lacks: []string{"VM.Config.Cloudinit", "VM.Config.Network"},
			code:  codes.PermissionDenied, names: []string{"configure VM 10000", "VM.Config.Cloudinit", "/vms/10000"},
		},
		"configure: the VM vanishes": {
			prepare: func(s *stage) { s.meanwhile("PUT", configPath, func() { gone(s) }) },
			code:    codes.Aborted, names: []string{"configure VM 10000", "10000.conf"},
		},
		"grow: the storage is full": {
			prepare: func(s *stage) { s.sim.FailTask("resize", 10000, "No space left on device") },
			code:    codes.ResourceExhausted, names: []string{"grow scsi0 of VM 10000 to 2 GiB", "No space left"},
		},
		"grow: PVE refuses": {
			prepare: func(s *stage) { s.sim.Fail(pvesim.Match("PUT", resizePath), 500, "something odd", 1) },
			code:    codes.FailedPrecondition, names: []string{"grow scsi0 of VM 10000 to 2 GiB", "something odd"},
		},
		"grow: no privilege": {
			lacks: []string{"VM.Config.Disk"},
			code:  codes.PermissionDenied, names: []string{"grow scsi0 of VM 10000", "VM.Config.Disk", "/vms/10000"},
		},
		"grow: the VM vanishes": {
			prepare: func(s *stage) { s.meanwhile("PUT", resizePath, func() { gone(s) }) },
			code:    codes.Aborted, names: []string{"grow scsi0 of VM 10000", "10000.conf"},
		},
		"read back: the VM vanishes": {
			prepare: func(s *stage) {
				s.sim.AfterTask(func(x *pvesim.Task) {
					if x.Type() == "resize" {
						gone(s)
					}
				})
			},
			code: codes.Aborted, names: []string{"VM 10000", "pve1"},
		},
		"undo: PVE leaves a disk behind": {
			prepare: func(s *stage) {
				s.sim.FailTask("resize", 10000, "something odd")
				s.stubborn("10000/vm-10000-disk-0.qcow2")
			},
			code: codes.FailedPrecondition, names: []string{"something odd"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := raise(t)
			s.startAgent(s.limited(tc.lacks...))
			before := s.inventory()
			if tc.prepare != nil {
				tc.prepare(s)
			}
			rq := everyStep("web-01")
			if tc.change != nil {
				tc.change(rq)
			}
			refused(t, s.tryCreate(rq), tc.code, append(tc.names, "web-01")...)
			s.nothingLeft(before)
		})
	}
}

// stubborn makes an image of a VM stay when PVE destroys the VM: it is there when somebody looks afterwards.
func (s *stage) stubborn(file string) {
	path := filepath.Join(s.rig.Dir, "pve1", "vz", "images", file)
	s.meanwhile("GET", "/nodes/*/storage/*/content", func() {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.Error(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			s.Error(err)
		}
	})
}

// TestACreateThatCannotWork is refused before anything is made, and before PVE is asked.
func TestACreateThatCannotWork(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.must(s.sim.AddStorage(pvesim.Storage{Name: "isos", Content: []string{"iso"}}))
	s.must(s.sim.AddStorage(pvesim.Storage{Name: "elsewhere", Content: []string{"images"}, Nodes: []string{"pve2"}}))
	s.must(s.sim.AddStorage(pvesim.Storage{Name: "off", Content: []string{"images"}, Disabled: true}))
	s.must(s.sim.AddVM(9500, "pve2", map[string]string{"template": "1", "name": "far-away"}))
	s.must(s.sim.AddVM(9501, "pve1", map[string]string{"template": "1", "name": "diskless", "scsi0": "none,media=cdrom"}))
	s.must(s.sim.AddVM(9502, "pve1", map[string]string{"template": "1", "name": "busy", "lock": "backup"}))
	s.must(s.sim.AddContainer(9503, "pve1"))
	s.startAgent()
	on := func(storage string) func(*providerpb.CreateRequest) {
		return func(r *providerpb.CreateRequest) { r.PlacementJson = fmt.Sprintf(`{"Datastore":%q}`, storage) }
	}
	before := s.inventory()
	for name, tc := range map[string]struct {
		change func(*providerpb.CreateRequest)
		code   codes.Code
		names  []string
	}{
		"unknown template":                {from("9999"), codes.NotFound, []string{"9999"}},
		"unknown template name":           {from("no-such"), codes.NotFound, []string{`"no-such"`}},
		"a template of another node":      {from("9500"), codes.FailedPrecondition, []string{"far-away", "pve2", "agent"}},
		"one of another node by its name": {from("far-away"), codes.FailedPrecondition, []string{"far-away", "pve2", "agent"}},
		"a template without a disk":       {from("9501"), codes.FailedPrecondition, []string{"diskless"}},
		"a locked template":               {from("9502"), codes.FailedPrecondition, []string{"9502", "locked (backup)"}},
		"a container":                     {from("9503"), codes.FailedPrecondition, []string{"9503", "container"}},
		"unknown storage":                 {on("no-such"), codes.FailedPrecondition, []string{"Datastore", `"no-such"`}},
		"a storage without images":        {on("isos"), codes.FailedPrecondition, []string{"Datastore", `"isos"`, "images"}},
		"a storage of another node":       {on("elsewhere"), codes.FailedPrecondition, []string{"elsewhere", "pve1"}},
		"a disabled storage":              {on("off"), codes.FailedPrecondition, []string{"off", "pve1"}},
		"a number that is none":           {from("99999999999999999999"), codes.NotFound, []string{"99999999999999999999"}},
		"an empty image": {func(r *providerpb.CreateRequest) {
			r.ImageJson = `{"TemplateName":"","Path":"","URL":"","Format":"template","Checksum":"","ChecksumType":"sha256"}`
		}, codes.InvalidArgument, []string{"image_json"}},
		"an image that is a URL": {func(r *providerpb.CreateRequest) {
			r.ImageJson = `{"URL":"https://images.example/x.qcow2"}`
		}, codes.InvalidArgument, []string{"image_json", "https://images.example/x.qcow2"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.within(t)
			s.silent("a create that cannot work", func() {
				refused(t, s.tryCreate(request("web-01", tc.change)), tc.code, tc.names...)
			})
		})
	}
	s.nothingLeft(before)
}

// TestALockIsWaitedFor: PVE holds a VM's lock file for a moment after many things.
func TestALockIsWaitedFor(t *testing.T) {
	t.Parallel()
	const timeout = "can't lock file '/var/lock/qemu-server/lock-10000.conf' - got timeout"
	for name, where := range map[string]func(*stage){
		"clone":     func(s *stage) { s.sim.FailTask("qmclone", 0, timeout) },
		"configure": func(s *stage) { s.sim.Fail(pvesim.Match("PUT", configPath), 500, timeout, 2) },
		"grow":      func(s *stage) { s.sim.FailTask("resize", 0, timeout) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			where(s)
			s.wellFormed(s.create(everyStep("web-01")))
		})
	}
}

// TestAHalfMadeVMThatCannotBeRemoved: somebody has locked what was to be undone. The next request of that name makes
// good for it.
func TestAHalfMadeVMThatCannotBeRemoved(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	s.meanwhile("PUT", configPath, func() {
		if err := s.sim.SetLock(10000, "backup"); err != nil {
			t.Error(err)
		}
	})
	refused(t, s.tryCreate(everyStep("web-01")), codes.FailedPrecondition,
		"configure VM 10000", "could not be removed again", "locked (backup)")
	s.must(s.sim.SetLock(10000, ""))
	id := s.create(everyStep("web-01"))
	if id == "10000" || len(s.made("web-01")) != 1 {
		t.Errorf("made %s, VMs %v are called web-01", id, s.made("web-01"))
	}
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestALostAnswer: the connection breaks after PVE has carried the request out. Nothing may happen twice.
func TestALostAnswer(t *testing.T) {
	t.Parallel()
	for name, path := range map[string][2]string{
		"clone":       {"POST", clonePath},
		"configure":   {"PUT", configPath},
		"grow":        {"PUT", resizePath},
		"task status": {"GET", "/nodes/*/tasks/*/status"},
		"destroy":     {"DELETE", "/nodes/*/qemu/*"},
		"start":       {"POST", "/nodes/*/qemu/*/status/start"},
		"stop":        {"POST", "/nodes/*/qemu/*/status/stop"},
	} {
		for when, lose := range map[string]func(*stage){
			"after it was carried out": func(s *stage) { s.sim.FailAfter(pvesim.Match(path[0], path[1]), 0, "", 1) },
			"before":                   func(s *stage) { s.sim.Fail(pvesim.Match(path[0], path[1]), 0, "", 2) },
			"by pveproxy":              func(s *stage) { s.sim.FailAfter(pvesim.Match(path[0], path[1]), 596, "Broken pipe", 1) },
		} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				s := start(t)
				s.add(9500, map[string]string{"template": "1"}) // without a cloud-init drive, which is added
				before := s.inventory()
				lose(s)
				rq := everyStep("web-01")
				from("9500")(rq)
				id := s.create(rq)
				s.wellFormed(id)
				if got := s.made("web-01"); len(got) != 1 || got[0] != vmid(t, id) {
					t.Errorf("VMs %v are called web-01, want %s alone", got, id)
				}
				if scsi0 := s.config(id)["scsi0"]; !strings.Contains(scsi0, "size=2G") {
					t.Errorf("scsi0: %s", scsi0)
				}
				s.on(id)
				s.must(s.delete(id))
				s.nothingLeft(before)
				if n := s.sim.TaskCount("qmclone"); n != 1 {
					t.Errorf("%d clones", n)
				}
			})
		}
	}
}
