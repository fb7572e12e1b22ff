package scheduler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// admit lets a node take a small VM.
func (h *here) admit(node, name string, memory uint64) error {
	p := vm(name, memory)
	return h.Admit(h.Context(), node, p.Key, p.Want)
}

// kept is what room is kept for, as number:GiB.
func (h *here) kept() string {
	var all []string
	for _, m := range h.Making() {
		all = append(all, fmt.Sprintf("%d:%d", m.VMID, m.Memory/gib))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (h *here) keeps(what, want string) {
	h.Helper()
	if got := h.kept(); got != want {
		h.Errorf("%s: room is kept for %q, want %q", what, got, want)
	}
}

func TestAdmit(t *testing.T) {
	h := newHere(t)
	h.fill(12*gib, 0, 0)
	h.must(h.admit("pve1", "one", 8*gib))
	err := h.admit("pve1", "two", 8*gib)
	h.refused(err, fault.Moved, "node pve1 cannot take two: memory (needs 8.0 GiB, 4.0 free)")
	h.must(h.admit("pve1", "one", 8*gib)) // repeated: it has its room
	h.must(h.admit("pve1", "small", 4*gib))
	h.keeps("two of three", "0:4 0:8")
	h.Release(t.Context(), "pve1", "create/me/one")
	h.must(h.admit("pve1", "two", 8*gib))
	h.keeps("after a release", "0:4 0:8")
	h.cordons["pve1"] = "cordoned"
	h.refused(h.admit("pve1", "three", 0), fault.Moved, "node pve1 cannot take three: cordoned")
	h.refused(h.admit("pve1", "two", 8*gib), fault.Moved, "node pve1 cannot take two: cordoned") // though it has room
	h.keeps("and what has room keeps it", "0:4 0:8")
	h.unread = errBroken
	h.refused(h.admit("pve1", "three", 0), fault.Precondition, "three: broken")
}

// TestAdmitTellsAWantOfRoom, and nothing else, as such.
func TestAdmitTellsAWantOfRoom(t *testing.T) {
	h := newHere(t)
	h.fill(4*gib, 0, 0)
	lack := func(err error) bool {
		moved, ok := errors.AsType[*fault.Error](err)
		return ok && moved.Reason == fault.Moved && fault.Is(moved.Err, fault.Exhausted)
	}
	if err := h.admit("pve1", "web", 8*gib); !lack(err) {
		t.Errorf("%v", err)
	}
	h.cordons["pve1"] = "cordoned"
	if err := h.admit("pve1", "web", 8*gib); lack(err) {
		t.Errorf("it is cordoned as well: %v", err)
	}
	h.answer = func(string, string, proto.Message, proto.Message) error {
		return forward.Full("memory (needs 8.0 GiB, 0.0 free)", "pve2: node pve2 cannot take web: memory (needs 8.0 GiB, 0.0 free)")
	}
	err := h.admit("pve2", "web", 8*gib)
	if !lack(err) {
		t.Errorf("%v", err)
	}
	h.refused(err, fault.Moved, "node pve2 cannot take web: memory (needs 8.0 GiB, 0.0 free)")
}

// TestTwoAtOnce: of many for whom there is room for one alone, one gets it.
func TestTwoAtOnce(t *testing.T) {
	h := newHere(t)
	h.fill(12*gib, 0, 0)
	const many = 8
	errs := make(chan error, many)
	for i := range many {
		go func() { errs <- h.admit("pve1", fmt.Sprint("web-", i), 8*gib) }()
	}
	admitted := 0
	for range many {
		if <-errs == nil {
			admitted++
		}
	}
	if admitted != 1 {
		t.Errorf("%d of %d are admitted", admitted, many)
	}
}

// TestAdmitThere asks the agent of the node, and gives back there.
func TestAdmitThere(t *testing.T) {
	h := newHere(t)
	var got []string
	h.answer = func(node, method string, req, _ proto.Message) error {
		rq, _ := req.(*peerpb.AdmitRequest)
		got = append(got, fmt.Sprint(node, " ", method == peerpb.Peer_Admit_FullMethodName, " ", rq.GetKey(), " ", rq.GetName(), " ", rq.GetMemory()/gib, " ", rq.GetCpus(), " ", rq.GetRelease()))
		return nil
	}
	h.must(h.admit("pve2", "web", 8*gib))
	h.Release(t.Context(), "pve2", "create/me/web")
	if want := []string{"pve2 true create/me/web web 8 2 false", "pve2 true create/me/web  0 0 true"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	h.keeps("nothing here", "")
	h.answer = func(string, string, proto.Message, proto.Message) error {
		return status.Error(codes.FailedPrecondition, "pve2: not now")
	}
	err := h.admit("pve2", "web", 8*gib)
	h.refused(err, fault.Moved, "pve2: not now")
	h.Release(t.Context(), "pve2", "create/me/web")
	if !strings.Contains(h.log.String(), "was not given back") {
		t.Errorf("nobody is told:\n%s", h.log.String())
	}
}

// TestAdmittedIsCountedOnce: what was placed here from here is in this node's own numbers from then on.
func TestAdmittedIsCountedOnce(t *testing.T) {
	h := newHere(t)
	h.fill(16*gib, 0, 12*gib)
	way := h.chosen(on(vm("web", 8*gib), "pve1"))
	if got := h.reserved("pve1"); got != 8*gib {
		t.Errorf("%d GiB reserved", got/gib)
	}
	h.after(time.Second)
	h.must(h.admit("pve1", "web", 8*gib))
	h.after(time.Second)
	if got := h.reserved("pve1"); got != 0 {
		t.Errorf("%d GiB are counted twice while it is made", got/gib)
	}
	h.Answered(t.Context(), way, nil)
	if got := h.reserved("pve1"); got != 0 {
		t.Errorf("%d GiB are counted twice when it is made", got/gib)
	}
	h.chosen(on(vm("far", 8*gib), "pve3")) // to be made here, and moved
	h.after(time.Second)
	h.must(h.admit("pve3", "far", 8*gib))
	h.after(time.Second)
	h.told["pve3"].DigestAt = h.now
	if got := h.reserved("pve3"); got != 0 {
		t.Errorf("%d GiB of a VM that pve3 has taken are reserved", got/gib)
	}
}

// TestRoomOfAVM from its beginning to its end.
func TestRoomOfAVM(t *testing.T) {
	h := newHere(t)
	p := vm("web", 8*gib)
	h.must(h.admit("pve1", "web", 8*gib))
	h.after(time.Hour)
	h.keeps("as long as it is made", "0:8")
	h.Hold(p.Key, 500, p.Want)
	h.keeps("with its number", "500:8")
	h.after(time.Hour)
	h.keeps("still", "500:8")
	h.put(500, "pve1", "name: web\nmemory: 8192\n")
	h.Settle(p.Key)
	h.after(startsWithin)
	h.keeps("it is about to be started", "500:8")
	h.after(1)
	h.keeps("it was not started", "")
	h.Settle(p.Key) // of nothing
	h.keeps("once more", "")
}

// TestRoomOfAVMThatIsGone: one that was deleted or moved away right after it was made takes no room.
func TestRoomOfAVMThatIsGone(t *testing.T) {
	for name, to := range map[string]string{"deleted": "", "moved": "pve2"} {
		t.Run(name, func(t *testing.T) {
			h := newHere(t)
			p := vm("web", 8*gib)
			h.Hold(p.Key, 500, p.Want)
			h.put(500, "pve1", "name: web\n")
			h.keeps("while it is made", "500:8")
			h.put(500, to, "name: web\n")
			h.keeps("while it is made, whatever is seen of it", "500:8")
			h.put(500, "pve1", "name: web\n")
			h.Settle(p.Key)
			h.keeps("made", "500:8")
			h.put(500, to, "name: web\n")
			h.keeps(name, "")
		})
	}
	h := newHere(t)
	p := vm("late", 8*gib)
	h.Hold(p.Key, 501, p.Want)
	h.Settle(p.Key)
	h.keeps("made, and not seen yet", "501:8")
	h.sync()
	h.keeps("gone before anybody has looked", "")
}

// TestRoomForAVMFromElsewhere: once it has come it counts by its number, so that it is not counted beside itself.
func TestRoomForAVMFromElsewhere(t *testing.T) {
	h := newHere(t)
	h.fill(20*gib, 0, 0)
	h.put(400, "pve1", "name: web\n") // somebody else's
	rq := &peerpb.AdmitRequest{Key: "create/me/web", Name: "web", Memory: 8 * gib, Cpus: 2}
	ask := func(rq *peerpb.AdmitRequest) error {
		_, err := h.PeerAdmit(t.Context(), rq)
		return err
	}
	h.must(ask(rq))
	h.keeps("expected", "0:8")
	h.put(401, "pve1", "name: web\ntemplate: 1\n")
	h.put(500, "pve2", "name: web\n")
	h.keeps("on its way", "0:8")
	h.must(ask(rq)) // again, right before it comes
	h.put(500, "pve1", "name: web\nmemory: 8192\n")
	h.keeps("here", "500:8")
	h.must(ask(rq)) // and if that answer was lost
	h.keeps("here", "500:8")
	h.put(500, "", "")
	h.keeps("deleted", "")

	rq.Key, rq.Name = "create/me/db", "db"
	h.must(ask(rq))
	h.refused(ask(&peerpb.AdmitRequest{Key: "k", Name: "large", Memory: 16 * gib}), fault.Moved, "cannot take large: memory")
	h.must(ask(&peerpb.AdmitRequest{Key: rq.GetKey(), Release: true}))
	h.keeps("given back", "")
	h.must(ask(rq))
	h.put(501, "pve1", "name: db\n")
	h.keeps("here", "501:8")
	h.after(startsWithin + 1)
	h.keeps("it was not started", "")
	h.must(ask(&peerpb.AdmitRequest{Key: "lost", Name: "lost", Memory: gib}))
	h.after(guestWithin)
	h.keeps("awaited", "0:1")
	h.after(1)
	h.keeps("it never came", "")
	h.refused(ask(&peerpb.AdmitRequest{Memory: gib}), fault.Invalid, "no key")
}

// TestAfterARestart the VMs that were made a moment ago are about to be started all the same.
func TestAfterARestart(t *testing.T) {
	h := newHere(t)
	for id, node := range map[int]string{500: "pve1", 501: "pve2", 502: "pve1", 503: "pve1"} {
		h.put(id, node, "name: vm\nmemory: 2048\ncores: 2\n")
	}
	ago := func(d time.Duration) time.Time { return h.now.Add(-d) }
	h.made = []record.Record{
		{VMID: 500, State: record.Ready, Created: ago(time.Minute)},
		{VMID: 501, State: record.Ready, Created: ago(time.Minute)},
		{VMID: 502, State: record.Ready, Created: ago(startsWithin)},
		{VMID: 503, State: record.Creating, Created: ago(time.Minute)},
		{VMID: 504, State: record.Ready, Created: ago(time.Minute)},
	}
	h.run(func() {
		h.keeps("of this node, made, lately", "500:2")
		h.after(startsWithin - time.Minute)
		h.keeps("still", "500:2")
		h.after(1)
		h.keeps("too late", "")
	})
	h.cfg.Made = func() ([]record.Record, error) { return nil, errBroken }
	h.run(func() {})
	if !strings.Contains(h.log.String(), "do not count before they run") {
		t.Errorf("nobody is told:\n%s", h.log.String())
	}
}

// TestFitsWithReserve: the owner looks by the same rules as who chooses.
func TestFitsWithReserve(t *testing.T) {
	h := newHere(t, func(c *Config) { c.Settings.MemoryOvercommit, c.Settings.MemoryReserve = 1.5, 0 })
	h.tell("pve1", 0)
	h.must(h.admit("pve1", "web", 96*gib))
	h.refused(h.admit("pve1", "more", 1), fault.Moved)
}
