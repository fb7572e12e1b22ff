package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// brief gives guests little time.
var brief = setting{options: []agent.Option{agent.WithPluggingLimits(hotplug.Limits{Unplug: 200 * time.Millisecond, Still: 300 * time.Millisecond})}}

// running makes a VM that runs, and returns its id and its stand-in.
func (s *stage) running(class string) (string, *qmptest.QEMU) {
	s.Helper()
	r := request("web-01")
	r.ClassJson = class
	id := s.create(r)
	s.on(id)
	q, ok := s.sim.QEMU(vmid(s, id))
	if !ok {
		s.Fatal("no stand-in")
	}
	return id, q
}

func TestReconfigureOfAGuestThatKeepsItsCPUs(t *testing.T) {
	t.Parallel()
	s := start(t, brief, setting{sim: func(c *pvesim.Config) {
		c.Fake.Tune = func(_ kvm.Spec, cfg *qmptest.Config) { cfg.IgnoreUnplug = true }
	}})
	id, q := s.running(hot(4, 2048))
	err := s.reconfigure(id, desired(hot(2, 1024), disks(`[{"Name":"data","SizeGiB":1}]`)))
	refused(t, err, codes.FailedPrecondition, "cpu:", "asked for 2 vCPUs", "stays at 4", "done:", "balloon to 1024 MiB", "scsi1")
	s.runs(id, 4, 1024)
	s.says(id, map[string]string{"vcpus": "4", "balloon": "1024", "shares": "0"})
	s.shows(id, "4", "1024", "memory")

	q.Handle("device_del", func(json.RawMessage) (any, error) { q.SetVCPUs(q.VCPUs() - 1); return struct{}{}, nil })
	s.must(s.reconfigure(id, desired(hot(2, 1024), disks(`[{"Name":"data","SizeGiB":1}]`))))
	s.runs(id, 2, 1024)
	s.says(id, map[string]string{"vcpus": "2"})
}

func TestReconfigureOfAGuestWithoutABalloonDriver(t *testing.T) {
	t.Parallel()
	s := start(t, brief)
	id, q := s.running(hot(1, 2048))
	q.SetBalloonDriver(false)
	err := s.reconfigure(id, desired(hot(2, 1024)))
	refused(t, err, codes.FailedPrecondition, "memory:", "asked for 1024 MiB", "stays at 2048", "driver", "2 vCPUs")
	s.runs(id, 2, 2048)
	s.says(id, map[string]string{"vcpus": "2", "memory": "2048", "balloon": "", "shares": ""})
	s.shows(id, "2", "2048", "memory")
	s.off(id)
	s.on(id)
	s.runs(id, 2, 1024)
	s.must(s.reconfigure(id, desired(hot(2, 1024))))
	s.shows(id, "2", "1024", "")
}

func TestReconfigureOfAGuestThatGivesSomeMemory(t *testing.T) {
	t.Parallel()
	s := start(t, brief)
	id, q := s.running(hot(1, 2048))
	q.SetBalloonFloor(1500 << 20)
	for range 2 { // a repeat finds the same
		err := s.reconfigure(id, desired(hot(1, 1024)))
		refused(t, err, codes.FailedPrecondition, "asked for 1024 MiB", "stays at 1500")
		s.runs(id, 1, 1500)
		s.says(id, map[string]string{"memory": "2048", "balloon": "1500", "shares": "0"})
		s.shows(id, "1", "1500", "")
	}
	q.SetBalloonFloor(0)
	s.must(s.reconfigure(id, desired(hot(1, 1024))))
	s.runs(id, 1, 1024)
	s.says(id, map[string]string{"memory": "2048", "balloon": "1024", "shares": "0"})
	s.shows(id, "1", "1024", "memory")
}

// TestReconfigureOfAQEMUThatStops (SIGSTOP) in the middle of a change: it goes on when QEMU does.
func TestReconfigureOfAQEMUThatStops(t *testing.T) {
	t.Parallel()
	s := start(t)
	id, q := s.running(hot(1, 1024))
	var once sync.Once
	stopped := make(chan struct{})
	q.Handle("device_add", func(json.RawMessage) (any, error) {
		once.Do(func() { q.SetHung(true); close(stopped) })
		q.SetVCPUs(q.VCPUs() + 1) // and nobody hears of it
		return struct{}{}, nil
	})
	ended := make(chan error, 1)
	go func() { ended <- s.reconfigure(id, desired(hot(3, 1024))) }()
	<-stopped
	select {
	case err := <-ended:
		t.Errorf("ended while QEMU is stopped: %v", err)
	case <-time.After(time.Second):
	}
	q.SetHung(false)
	s.must(<-ended)
	s.runs(id, 3, 1024)
	s.says(id, map[string]string{"vcpus": "3"})
}

// TestReconfigureWaitsForABackup: the answer comes before, and a repeat joins; another change does not.
func TestReconfigureWaitsForABackup(t *testing.T) {
	t.Parallel()
	s := start(t)
	id, _ := s.running(hot(1, 1024))
	s.must(s.sim.SetConfig(vmid(t, id), map[string]string{"lock": "backup"}))
	impatient := func(wish string) error {
		ctx, cancel := context.WithTimeout(s.ctx, 500*time.Millisecond)
		defer cancel()
		_, err := s.agent.Provider.Reconfigure(ctx, &providerpb.ReconfigureRequest{Id: id, DesiredJson: wish})
		return err
	}
	for range 2 {
		refused(t, impatient(desired(hot(2, 1024))), codes.Aborted, "goes on", "joins", "lock: backup")
	}
	refused(t, impatient(desired(hot(3, 1024))), codes.Aborted, "another change")
	s.runs(id, 1, 1024)
	s.must(s.sim.SetConfig(vmid(t, id), map[string]string{"lock": ""}))
	s.must(s.reconfigure(id, desired(hot(2, 1024))))
	s.runs(id, 2, 1024)
	s.says(id, map[string]string{"vcpus": "2", "lock": ""})
}

// TestReconfigureOnAFullDisk: each disk is an attempt of its own.
func TestReconfigureOnAFullDisk(t *testing.T) {
	t.Parallel()
	s := start(t)
	id, _ := s.running(hot(1, 1024))
	wish := desired(hot(2, 1024), disks(`[{"Name":"one","SizeGiB":1},{"Name":"two","SizeGiB":1},{"Name":"three","SizeGiB":1}]`))
	n := 0
	s.sim.BeforeTask(func(task *pvesim.Task) {
		if task.Type() != "qmconfig" {
			return
		}
		if n++; n == 2 {
			s.sim.FailTask("qmconfig", vmid(t, id), "no space left on device")
		}
	})
	refused(t, s.reconfigure(id, wish), codes.ResourceExhausted, "scsi2", "no space left", "done:", "2 vCPUs", "serial=one", "serial=three")
	s.runs(id, 2, 1024)
	conf := s.config(id)
	if !strings.Contains(conf["scsi1"], "serial=one") || conf["scsi2"] != "" || !strings.Contains(conf["scsi3"], "serial=three") {
		t.Errorf("after a disk that did not fit: %v", conf)
	}
	s.must(s.reconfigure(id, wish))
	if conf = s.config(id); !strings.Contains(conf["scsi2"], "serial=two") {
		t.Errorf("after the repeat: %v", conf)
	}
}

// TestReconfigureBesideOthers: what somebody else changes meanwhile stays, and a lost answer is no reason to do a thing twice.
func TestReconfigureBesideOthers(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(plain(2, 1024))))
	theirs := fmt.Sprintf("local:%d/vm-%d-disk-9.qcow2,size=1G", vmid(t, id), vmid(t, id))
	var once sync.Once
	post := pvesim.Match(http.MethodPost, "/nodes/*/qemu/*/config")
	s.sim.BeforeRequest(func(_ string, rq *http.Request) {
		if post(rq) { // the place for the new disk is chosen by then
			once.Do(func() {
				if err := s.sim.SetConfig(vmid(t, id), map[string]string{"scsi1": theirs}); err != nil {
					t.Error(err)
				}
			})
		}
	})
	s.must(s.reconfigure(id, desired(plain(2, 1024), disks(`[{"Name":"logs","SizeGiB":1}]`))))
	if conf := s.config(id); conf["scsi1"] != theirs || !strings.Contains(conf["scsi2"], "serial=logs") || conf["unused0"] != "" {
		t.Errorf("beside somebody else's disk: %v", conf)
	}
	s.must(s.sim.SetConfig(vmid(t, id), map[string]string{"scsi1": "", "scsi2": ""}))

	s.sim.FailAfter(pvesim.Match(http.MethodPost, "/nodes/*/qemu/*/config"), 0, "", 1)
	s.sim.FailAfter(pvesim.Match(http.MethodPut, "/nodes/*/qemu/*/resize"), 0, "", 1)
	s.must(s.reconfigure(id, desired(`{"CPU":2,"MemoryMiB":1024,"DiskDefaults":{"SizeGiB":2}}`, disks(`[{"Name":"data","SizeGiB":1}]`))))
	conf := s.config(id)
	if !strings.Contains(conf["scsi0"], "size=2G") || !strings.Contains(conf["scsi1"], "serial=data") || conf["scsi2"] != "" || conf["unused0"] != "" {
		t.Errorf("after lost answers: %v", conf)
	}
	s.silent("a repeat", func() {
		s.must(s.reconfigure(id, desired(`{"CPU":2,"MemoryMiB":1024,"DiskDefaults":{"SizeGiB":2}}`, disks(`[{"Name":"data","SizeGiB":1}]`))))
	})
}

// TestReconfigurePlugsDIMMs where a VM was made for it.
func TestReconfigurePlugsDIMMs(t *testing.T) {
	t.Parallel()
	s := start(t)
	growing := func(mib int) string {
		return fmt.Sprintf(`{"CPU":1,"MemoryMiB":%d,"PerformanceProfile":{"MemoryHotAddEnabled":true}}`, mib)
	}
	id, _ := s.running(growing(1024))
	s.must(s.reconfigure(id, desired(growing(1800)))) // whole DIMMs
	s.runs(id, 1, 2048)
	s.shows(id, "1", "2048", "")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(growing(1800)))) })
	s.must(s.reconfigure(id, desired(growing(1024))))
	s.runs(id, 1, 1024)
	s.says(id, map[string]string{"memory": "2048", "balloon": "1024", "shares": "0"})
	s.shows(id, "1", "1024", "")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(growing(1024)))) })
	s.must(s.reconfigure(id, desired(growing(4096))))
	s.runs(id, 1, 4096)
	s.says(id, map[string]string{"memory": "4096", "balloon": "", "shares": ""})
}

// TestReconfigureOfAVMThatWasStartedOtherwise: its config says that CPUs can be unplugged, and QEMU has none that can.
func TestReconfigureOfAVMThatWasStartedOtherwise(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, map[string]string{"cores": "4", "vcpus": "2", "memory": "512"})
	s.on("500")
	s.set(500, map[string]string{"hotplug": "cpu,disk,network,usb"})
	s.must(s.reconfigure("500", desired(hot(1, 512), `,"Disks":[{"Name":"data","SizeGiB":1}]`)))
	s.says("500", map[string]string{"vcpus": "2"})
	if raw := s.raw(s.described("500")); raw["pending"] != "vcpus" || raw["next_start"] != "vcpus becomes 1 (now 2)" {
		t.Errorf("described as %v", raw)
	}
	if conf := s.config("500"); !strings.Contains(fmt.Sprint(conf), "serial=data") {
		t.Errorf("without its disk: %v", conf)
	}
}

func TestReconfigureRefuses(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, map[string]string{"smbios1": "uuid=01234567-89ab-cdef-0123-456789abcdef"})
	s.add(501, map[string]string{"lock": "suspended"})
	s.must(s.sim.AddContainer(502, "pve1"))
	for _, tc := range []struct {
		id, wish string
		code     codes.Code
		names    []string
	}{
		{"12345", desired(plain(1, 512)), codes.NotFound, []string{"12345"}},
		{"9000", desired(plain(1, 512)), codes.FailedPrecondition, []string{"9000", "template"}},
		{"500-76543210", desired(plain(1, 512)), codes.FailedPrecondition, []string{"another machine"}},
		{"501", desired(plain(1, 512)), codes.FailedPrecondition, []string{"suspended", "qm unlock 501"}},
		{"web-01", desired(plain(1, 512)), codes.InvalidArgument, []string{"web-01"}},
		{"500", `{"Class":{"CPU":0,"MemoryMiB":512}}`, codes.InvalidArgument, []string{"desired_json: Class.CPU"}},
		{"500", `{}`, codes.InvalidArgument, []string{"desired_json: Class"}},
		{"500", desired(plain(17, 512)), codes.FailedPrecondition, []string{"desired_json: Class.CPU", "16 CPUs"}},
	} {
		s.silent("a refusal", func() { refused(t, s.reconfigure(tc.id, tc.wish), tc.code, tc.names...) })
	}
}
