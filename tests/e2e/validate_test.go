package e2e

import (
	"net/http"
	"strings"
	"testing"

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

func TestValidateTellsOfATokenThatIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.must(s.sim.AddVM(500, "pve1", nil))
	s.sim.RemoveToken(pvesim.TokenID)
	// Traffic shows it: an agent that asked for the sake of Validate would meet 3 s of delay each time.
	if err := s.power("500", powerOn); err == nil {
		t.Error("a VM was started without credentials")
	}
	if m := s.validate(); !strings.Contains(m, pvesim.TokenID) {
		t.Errorf("message %q does not name the token", m)
	}
}

func TestValidateTellsOfAnAPIThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.must(s.sim.AddVM(500, "pve1", nil))
	s.sim.Fail(func(*http.Request) bool { return true }, 0, "", -1)
	if err := s.power("500", powerOn); err == nil {
		t.Error("a VM was started without the API")
	}
	if m := s.validate(); !strings.Contains(m, "API") {
		t.Errorf("message %q does not name the API", m)
	}
	s.sim.ClearFaults()
	s.on("500")
	s.healthy()
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
