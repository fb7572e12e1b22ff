package e2e

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// validate returns the message of Validate, which has to be ok whatever is wrong: the manager drops finalizers of
// VMs under deletion when it is not.
func (s *stage) validate() string {
	s.Helper()
	v, err := s.agent.Provider.Validate(s.ctx, &providerpb.ValidateRequest{})
	if err != nil {
		s.Fatalf("validate: %v", err)
	}
	if !v.GetOk() {
		s.Errorf("validate: ok is false, message %q", v.GetMessage())
	}
	return v.GetMessage()
}

func (s *stage) troubled(word string) {
	s.Helper()
	s.eventually("Validate says "+word, func() bool { return strings.Contains(s.validate(), word) })
}

func (s *stage) healthy() {
	s.Helper()
	s.eventually("Validate has nothing to say", func() bool { return s.validate() == "" })
}

func TestValidateAsksNobody(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.silent("Validate", func() {
		for range 50 {
			if m := s.validate(); m != "" {
				t.Fatalf("message %q, nothing is wrong", m)
			}
		}
	})
}

func TestValidateTellsOfLostQuorum(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.must(s.sim.SetQuorate(false))
	s.troubled("no quorum")
	s.must(s.sim.SetQuorate(true))
	s.healthy()
}

// tryPower asks for a change of power without waiting for its task.
func (s *stage) tryPower(id string, op providerpb.PowerOp) (*providerpb.TaskRef, error) {
	t, err := s.agent.Provider.Power(s.ctx, &providerpb.PowerRequest{Id: id, Op: op, GracefulTimeoutSeconds: 60})
	return t.GetTask(), err
}

func TestATokenThatIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=50ms"}})
	s.add(500, nil)
	s.add(501, nil)
	s.sim.RemoveToken(pvesim.TokenID)
	// Traffic shows it: an agent that asked PVE for the sake of Validate would meet 3 s of delay each time.
	if _, err := s.tryPower("500", powerOn); err != nil {
		t.Errorf("the first request begins an operation that waits: %v", err)
	}
	s.troubled(pvesim.TokenID)
	before := s.sim.Requests()["401"]
	_, err := s.tryPower("501", powerOn)
	refused(t, err, codes.Unavailable, "power on 501", pvesim.TokenID)
	_, err = s.agent.Provider.Create(s.ctx, request("web-01"))
	refused(t, err, codes.Unavailable, "create web-01", pvesim.TokenID)
	refused(t, s.delete("501"), codes.Unavailable, "delete 501", pvesim.TokenID)
	if n := s.sim.Requests()["401"] - before; n != 0 {
		t.Errorf("PVE was asked %d more times with a token it has refused", n)
	}
	if got := s.described("501").GetPowerState(); got != "Off" {
		t.Errorf("Describe says %s without PVE's API, want Off", got)
	}
}

func TestAnAPIThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := start(t, setting{flags: []string{"--sync-wait=50ms"}})
	s.add(500, nil)
	s.add(501, nil)
	s.sim.Fail(func(*http.Request) bool { return true }, 0, "", -1)
	task, err := s.tryPower("500", powerOn)
	s.must(err)
	s.troubled("API")
	_, err = s.tryPower("501", powerOn)
	refused(t, err, codes.Unavailable, "power on 501")
	refused(t, s.delete("501"), codes.Unavailable, "delete 501")
	if st := s.poll(task); st.GetDone() || st.GetError() != "" {
		t.Errorf("the operation that was begun before waits for PVE, but its task says %v", st)
	}
	s.sim.ClearFaults()
	if failure := s.outcome(task); failure != "" {
		t.Errorf("the operation that waited: %s", failure)
	}
	s.healthy()
	s.on("501")
}

func TestWithoutQuorumNothingIsChanged(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.on("500")
	before := s.inventory()
	s.must(s.sim.SetQuorate(false))
	s.troubled("no quorum")
	s.silent("a change without quorum", func() {
		_, err := s.agent.Provider.Create(s.ctx, request("web-01"))
		refused(t, err, codes.FailedPrecondition, "web-01", "no quorum")
		refused(t, s.delete("500"), codes.FailedPrecondition, "500", "no quorum")
	})
	s.nothingLeft(before)
	// PVE would stop it, but whether the VM is still this node's cannot be known.
	refused(t, s.power("500", powerOff), codes.FailedPrecondition, "500", "no quorum")
	refused(t, s.power("500", powerOn), codes.FailedPrecondition, "500", "no quorum")
	s.must(s.sim.SetQuorate(true))
	s.healthy()
	s.on("500")
}

func TestValidateTellsOfAnAPIThatIsDownAtTheStart(t *testing.T) {
	t.Parallel()
	s := raise(t)
	s.must(s.sim.SetAPI("pve1", false))
	s.startAgent()
	if m := s.validate(); !strings.Contains(m, "API") {
		t.Errorf("message %q does not name the API", m)
	}
}
