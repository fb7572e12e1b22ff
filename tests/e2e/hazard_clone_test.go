package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// medium puts an installation medium on the agent's node, and returns a request for a VM that is made from it.
func (s *stage) medium(name string) *providerpb.CreateRequest {
	s.Helper()
	file := filepath.Join(s.rig.Dir, "pve1", "vz", "template", "iso", "debian.iso")
	s.must(os.MkdirAll(filepath.Dir(file), 0o755))
	s.must(os.WriteFile(file, make([]byte, 1<<20), 0o600))
	return request(name, class(`{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":1}}`), from("local:iso/debian.iso"), datastore("local"))
}

// handmade is the header by which the requests of byHand are known.
const handmade = "X-By-Hand"

// byHand makes a VM as an administrator does.
func (s *stage) byHand(params url.Values) {
	s.Helper()
	rq, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.agent.Node.Daemon()+"/api2/json/nodes/pve1/qemu", strings.NewReader(params.Encode()))
	s.check(err)
	rq.Close = true
	rq.Header.Set(handmade, "1")
	rq.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rq.Header.Set("Authorization", "PVEAPIToken="+pvesim.TokenID+"="+pvesim.TokenSecret)
	resp, err := http.DefaultClient.Do(rq)
	s.check(err)
	s.check(resp.Body.Close())
}

// TestANumberThatAnotherCreateTakes: somebody makes a VM of our number at this moment. It is not taken for ours, whether
// PVE says that the number is taken or its answer is lost.
func TestANumberThatAnotherCreateTakes(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"and PVE says so": "can't lock file '/var/lock/x' - got timeout", "and the answer is lost": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			wanted, status := s.medium("web-01"), 0
			if answer != "" {
				status = 500
			}
			var begun, ended atomic.Bool
			var wait sync.WaitGroup
			defer wait.Wait()
			match := pvesim.Match("POST", "/nodes/*/qemu")
			s.sim.Fail(func(r *http.Request) bool { // until their VM is there
				if !match(r) || r.Header.Get(handmade) != "" || ended.Load() {
					return false
				}
				if !begun.Swap(true) {
					wait.Go(func() {
						s.byHand(url.Values{"vmid": {"10000"}, "name": {"theirs"}, "memory": {"128"}, "scsi0": {"local:1"}})
						ended.Store(true)
					})
				}
				return true
			}, status, answer, -1)
			refused(t, s.tryCreate(wanted), codes.Aborted, "10000", "taken")
			conf := s.config("10000")
			if conf["name"] != "theirs" || conf["memory"] != "128" || conf["scsi0"] == "" {
				t.Errorf("their VM became %v", conf)
			}
			if len(s.records()) != 0 {
				t.Errorf("records left: %q", s.records())
			}
			if id := s.create(wanted); vmid(t, id) == 10000 {
				t.Errorf("made %s", id)
			}
		})
	}
}

// TestANewVMWaitsForNoCopy: whose answer was lost is found again by its number, whatever is being copied meanwhile.
func TestANewVMWaitsForNoCopy(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=0s"}, sim: func(c *pvesim.Config) { c.QuietClones = true }})
	release := s.sim.HoldTasks("qmclone")
	defer release()
	other, err := s.agent.Provider.Create(s.ctx, request("copy"))
	s.must(err)
	s.eventually("PVE begins to copy", func() bool { _, err := s.sim.Config(vmid(t, other.GetId())); return err == nil })
	s.sim.FailAfter(pvesim.Match("POST", "/nodes/*/qemu"), 0, "", 1)
	id := s.create(s.medium("web-01"))
	if got := s.made("web-01"); len(got) != 1 || got[0] != vmid(t, id) {
		t.Errorf("VMs %v are called web-01, want %s alone", got, id)
	}
}

// TestACopyHasNoAddressOfItsSource: the source's network part names its own address and MAC.
func TestACopyHasNoAddressOfItsSource(t *testing.T) {
	t.Parallel()
	s := start(t)
	source := s.create(request("web-01", func(r *providerpb.CreateRequest) {
		r.NetworksJson = `[{"Name":"primary","StaticIP":"192.0.2.10","Prefix":24}]`
	}))
	id := s.clone(copyOf(source, "web-02"))
	_, mac, _ := strings.Cut(s.config(id)["net0"], "=")
	mac, rest, _ := strings.Cut(mac, ",")
	network := s.part(id, "network")
	for _, want := range []string{strings.ToLower(mac), "dhcp4: true"} {
		if !strings.Contains(network, want) {
			t.Errorf("network-config lacks %q: %s", want, network)
		}
	}
	if strings.Contains(network, "192.0.2.10") || !strings.HasSuffix(s.config(source)["net0"], rest) || strings.Contains(s.config(source)["net0"], mac) {
		t.Errorf("NIC %s of a copy of %s: %s", s.config(id)["net0"], s.config(source)["net0"], network)
	}
}

// TestAPlaceThatTheTemplateTakesMeanwhile: the copy has a disk where one of ours was to go. It is not left out silently.
func TestAPlaceThatTheTemplateTakesMeanwhile(t *testing.T) {
	t.Parallel()
	s := start(t)
	wanted := request("web-01", func(r *providerpb.CreateRequest) { r.DisksJson = `[{"Name":"data","SizeGiB":1}]` })
	s.meanwhile("POST", clonePath, func() {
		s.check(s.sim.SetConfig(template, map[string]string{"scsi1": "none,media=cdrom"}))
	})
	refused(t, s.tryCreate(wanted), codes.Aborted, "scsi1", "ask again")
	id := s.create(wanted)
	if got := fmt.Sprint(s.config(id)); !strings.Contains(got, "serial=data") {
		t.Errorf("made without its disk: %s", got)
	}
}
