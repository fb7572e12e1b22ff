package status_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func TestGuestAgent(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5", "fd00::5")})
	tracker := run(t, status.Config{RunDir: dir, AgentEvery: time.Millisecond})
	if st := state(t, tracker, status.Want{User: true}); st.AgentAge >= 0 {
		t.Errorf("%+v, want nothing of an agent that is not configured", st)
	}
	st := until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.AgentAge >= 0 })
	if !slices.Equal(st.IPs, []string{"10.0.0.5", "fd00::5"}) || st.HostName != "web-1" || st.OS != "Debian GNU/Linux 13 (trixie)" {
		t.Errorf("%+v", st)
	}
	q.SetGuest(guest("web-2", "10.0.0.6"))
	st2 := until(t, tracker, user, "its new word", func(st status.State) bool { return st.HostName == "web-2" })
	if st2.Generation == st.Generation || !slices.Equal(st2.IPs, []string{"10.0.0.6"}) {
		t.Errorf("%+v", st2)
	}
	q.SetAgentSilent(true)
	old := until(t, tracker, user, "an old word", func(st status.State) bool { return st.AgentAge > 700*time.Millisecond })
	if old.Generation != st2.Generation || old.HostName != "web-2" {
		t.Errorf("%+v, want the last word of %+v", old, st2)
	}
	if n := q.AgentStats(); n.LongestHold > 5*time.Second {
		t.Errorf("agent's socket was held for %v", n.LongestHold)
	}
}

// TestSilentAgent: nobody waits for it, and it is left alone more and more.
func TestSilentAgent(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid})
	q.SetAgentSilent(true)
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: 40 * time.Millisecond, AgentYoung: time.Hour, AgentTimeout: 10 * time.Millisecond,
	})
	began := time.Now()
	// 10+40, 10+80, 10+160, 10+320 ms and so on
	until(t, tracker, user, "four attempts", func(status.State) bool { return q.AgentStats().Connections >= 4 })
	if took := time.Since(began); took < 280*time.Millisecond {
		t.Errorf("four attempts within %v", took)
	}
}

func TestYoungGuestIsAskedMoreOften(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Boot: 300 * time.Millisecond, Guest: guest("web-1", "10.0.0.5")})
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Hour, AgentYoung: 20 * time.Millisecond, AgentTimeout: 100 * time.Millisecond,
	})
	until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName == "web-1" })
	if n := q.AgentStats().Connections; n < 2 {
		t.Errorf("%d connections", n)
	}
}

// TestYoungGuestIsAwaited: one question is enough.
func TestYoungGuestIsAwaited(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	q.SetAgentSilent(true)
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Hour, AgentYoung: 10 * time.Millisecond, AgentTimeout: 100 * time.Millisecond,
	})
	state(t, tracker, user)
	asked := func(n int) func(status.State) bool {
		return func(status.State) bool { return q.AgentStats().Connections >= n }
	}
	noAgent := status.Want{User: true}
	until(t, tracker, noAgent, "three attempts", asked(3))
	q.SetAgentSilent(false)
	until(t, tracker, noAgent, "the guest's word", func(st status.State) bool { return st.HostName == "web-1" })
}

// TestPausedGuestIsNotAsked: its agent could not answer.
func TestPausedGuestIsNotAsked(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startProcess(t, dir, other)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Runstate: "paused"})
	clock := startQEMU(t, qmptest.Config{Dir: dir, VMID: other})
	tracker := run(t, status.Config{RunDir: dir, Gate: eager(), AgentWorkers: 1, RunstateEvery: time.Nanosecond, AgentEvery: time.Nanosecond})
	state(t, tracker, user)
	settle(t, tracker, clock)
	if n := q.AgentStats().Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
}

// TestKnownGuestIsLeftAlone: without a question there are no reads, but for the
// first word of a booting guest.
func TestKnownGuestIsLeftAlone(t *testing.T) {
	dir := shortDir(t)
	startProcess(t, dir, vmid)
	startProcess(t, dir, other)
	q := startQEMU(t, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	clock := startQEMU(t, qmptest.Config{Dir: dir, VMID: other})
	clock.SetAgentSilent(true) // and so it is revisited
	tracker := run(t, status.Config{
		RunDir: dir, AgentEvery: time.Nanosecond, AgentYoung: 5 * time.Millisecond, AgentTimeout: 50 * time.Millisecond,
	})
	until(t, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName != "" })
	settleAgent := func(n int) {
		until(t, tracker, status.Want{}, "attempts at the other", func(status.State) bool { return clock.AgentStats().Connections >= n })
	}
	if _, err := tracker.State(t.Context(), other, user); err != nil {
		t.Fatal(err)
	}
	settleAgent(2)
	before := q.AgentStats().Connections
	settleAgent(7)
	if n := q.AgentStats().Connections - before; n != 0 {
		t.Errorf("%d connections without a question", n)
	}
}
