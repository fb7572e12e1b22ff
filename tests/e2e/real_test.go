package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// TestALife walks a VM through its life, as a stand-in and as a real QEMU process with a Linux guest.
func TestALife(t *testing.T) {
	t.Parallel()
	t.Run("simulated", func(t *testing.T) {
		t.Parallel()
		aLife(start(t))
	})
	t.Run("simulated on FUSE", func(t *testing.T) {
		t.Parallel()
		aLife(start(t, fuse))
	})
	for _, version := range []string{"7.4", "8.4"} {
		t.Run("simulated PVE "+version, func(t *testing.T) {
			t.Parallel()
			aLife(start(t, ofVersion(version)))
		})
	}
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		// A second is a second here: a real guest needs some to shut down.
		s := raise(t, setting{sim: func(c *pvesim.Config) { c.QEMU, c.PollUnit = pvesim.Auto, time.Second }})
		if !s.rig.Real() {
			t.Skipf("skipped: needs qemu and a Linux guest for it; enable with: %s", rig.InstallQEMU)
		}
		s.patience = 3 * time.Minute // without KVM, on a machine that does other things
		s.startAgent()
		aLife(s)
	})
}

// ofVersion makes the cluster one of another version of PVE.
func ofVersion(version string) setting {
	return setting{sim: func(c *pvesim.Config) {
		c.Version = version
		if schema := os.Getenv("PVE_API_SCHEMA"); schema != "" {
			c.SchemaFile = filepath.Join(filepath.Dir(schema), version+".json")
		}
	}}
}

func aLife(s *stage) {
	s.Helper()
	before := s.inventory()
	id := s.create(request("web-01", class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"Type":"thin","SizeGiB":1}}`), func(r *providerpb.CreateRequest) {
		r.UserData = []byte("#cloud-config\nhostname: web-01\n")
	}))
	s.wellFormed(id)
	s.on(id)
	s.eventually("the guest has an address and its name", func() bool {
		d := s.described(id)
		return len(d.GetIps()) > 0 && s.raw(d)["hostname"] == "web-01" && s.raw(d)["os"] != ""
	})
	if d := s.described(id); d.GetPowerState() != "On" || s.raw(d)["status"] != "running" {
		s.Errorf("with a guest that answers: %v", d)
	}
	s.turn(id, graceful, "Off")
	for _, task := range s.sim.Tasks() {
		if task.Type() != "qmshutdown" {
			continue
		}
		if log := s.taskLog(task.UPID); strings.Contains(log, "terminating") {
			s.Errorf("the guest did not shut down by itself:\n%s", log)
		}
	}
	if n := s.sim.TaskCount("qmstop"); n != 0 {
		s.Errorf("%d hard stops", n)
	}
	s.must(s.delete(id))
	if d, err := s.describe(id); err != nil || d.GetExists() {
		s.Errorf("after the delete: %v, err %v", d, err)
	}
	s.nothingLeft(before)
}

// taskLog asks PVE for the log of a task.
func (s *stage) taskLog(upid string) string {
	s.Helper()
	rq, err := http.NewRequestWithContext(s.ctx, http.MethodGet,
		s.agent.Node.Daemon()+"/api2/json/nodes/pve1/tasks/"+url.PathEscape(upid)+"/log?limit=1000", nil)
	s.must(err)
	rq.Close = true
	rq.Header.Set("Authorization", "PVEAPIToken="+pvesim.TokenID+"="+pvesim.TokenSecret)
	resp, err := http.DefaultClient.Do(rq)
	s.must(err)
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Data []struct{ T string }
	}
	s.must(json.NewDecoder(resp.Body).Decode(&answer))
	var b strings.Builder
	for _, line := range answer.Data {
		b.WriteString(line.T + "\n")
	}
	if b.Len() == 0 {
		s.Fatalf("the log of %s is empty", upid)
	}
	return b.String()
}
