package forward

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ask makes a marked call to a node that owns "vm".
func (a *agent) ask(t *testing.T, node string) error {
	t.Helper()
	var resp testpb.SimpleResponse
	err := a.forward.Call(t.Context(), node, unaryCall, about("vm"), &resp)
	if err == nil && resp.GetHostname() != node {
		t.Errorf("%s answers for %s", resp.GetHostname(), node)
	}
	return err
}

// peerError is err as one.
func peerError(t *testing.T, err error) *PeerError {
	t.Helper()
	down, ok := errors.AsType[*PeerError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	return down
}

func TestCall(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		var resp testpb.SimpleResponse
		pve1 := w.agents["pve1"]
		if err := pve1.forward.Call(t.Context(), "pve2", unaryCall, about("vm"), &resp); err != nil {
			t.Fatal(err)
		}
		if resp.GetHostname() != "pve2" || resp.GetServerId() != "pve1" || resp.GetUsername() != "local" {
			t.Errorf("got %v", &resp)
		}
		// In the handler of a forwarded request it is for the same client.
		w.owns("pve3", "other")
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			return w.agents["pve2"].forward.Call(ctx, "pve3", unaryCall, about("other"), &resp)
		})
		if got := mustCall(t, w.client("manager", "pve1"), "vm"); got.By != "pve2" {
			t.Errorf("got %v", got)
		}
		if resp.GetHostname() != "pve3" || resp.GetServerId() != "pve2" || resp.GetUsername() != "manager" {
			t.Errorf("got %v", &resp)
		}
	}, "pve1", "pve2", "pve3")
}

func TestPeerError(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		w.agents["pve2"].server.Stop()
		<-w.agents["pve2"].served
		err := w.agents["pve1"].ask(t, "pve2")
		down := peerError(t, err)
		if down.Node != "pve2" || down.Sent || down.Since.IsZero() || !strings.Contains(down.Err.Error(), "refused") {
			t.Errorf("got %+v", down)
		}
		want := "ask node pve2, which has not answered since " + down.Since.UTC().Format(time.RFC3339) + ": connect to "
		if !strings.HasPrefix(err.Error(), want) || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v", err)
		}
		down.Since = time.Time{}
		if got := down.Error(); !strings.HasPrefix(got, "ask node pve2: connect to ") {
			t.Errorf("got %s", got)
		}
	}, "pve1", "pve2")
}

// A hooked context does something before its deadline is looked at, which is
// after a connection was chosen and before the call is sent.
type hooked struct {
	context.Context
	hook func()
}

func (h hooked) Deadline() (time.Time, bool) {
	h.hook()
	return h.Context.Deadline()
}

// A call that was not sent, because its connection ended just then, is made on
// another one, once.
func TestEndsBeforeItIsSent(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		pve1, pve2 := w.agents["pve1"], w.agents["pve2"]
		ends := 0
		ask := func(times int) error {
			return pve1.forward.Call(hooked{t.Context(), func() {
				if ends < times {
					ends++
					w.wires.cut(w.wires.addr("pve2"))
					pve1.awaitEnd("pve2")
				}
			}}, "pve2", unaryCall, about("vm"), &testpb.SimpleResponse{})
		}
		if err := ask(1); err != nil || ends != 1 || pve2.handled.Load() != 1 || pve1.dials.Load() != 2 {
			t.Errorf("got %v, %d handled, %d dials", err, pve2.handled.Load(), pve1.dials.Load())
		}
		ends = 0
		down := peerError(t, ask(100))
		if down.Sent || down.Since.IsZero() || ends != 2 || pve2.handled.Load() != 1 {
			t.Errorf("got %+v after %d ends, %d handled", down, ends, pve2.handled.Load())
		}
	}, "pve1", "pve2")
}

// The same that Call asks one node for, a client asks for as a whole.
func TestPart(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		var part, claims bool
		var claimed string
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			part = Part(ctx)
			claimed, claims = Claimed(ctx)
			return nil
		})
		if err := w.agents["pve1"].ask(t, "pve2"); err != nil || !part || claimed != "pve1" || !claims {
			t.Errorf("got %v, part %v, claimed %q, %v", err, part, claimed, claims)
		}
		mustCall(t, w.client("manager", "pve1"), "vm")
		if part || claimed != "pve1" || !claims {
			t.Errorf("forwarded: part %v, claimed %q, %v", part, claimed, claims)
		}
		mustCall(t, w.client("manager", "pve2"), "vm")
		if part || claims {
			t.Errorf("not forwarded: part %v, claimed %q, %v", part, claimed, claims)
		}
		forged := metadata.AppendToOutgoingContext(t.Context(), markerKey, "pve9", partKey, "1")
		if _, err := call(forged, w.client("manager", "pve2"), "vm"); err != nil || part || claimed != "pve9" {
			t.Errorf("forged: %v, part %v, claimed %q", err, part, claimed)
		}
	}, "pve1", "pve2")
}

// A node that fails is one line, and one more when it is back.
func TestLog(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		var log bytes.Buffer
		pve1 := w.agents["pve1"]
		pve1.forward.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		m.fail("pve2:9443", refused)
		for range 5 {
			_ = peerError(t, pve1.ask(t, "pve2"))
			time.Sleep(lastRetry)
		}
		m.fail("pve2:9443", none)
		for range 5 {
			if err := pve1.ask(t, "pve2"); err != nil {
				t.Error(err)
			}
		}
		// Connections may end when nobody needs them.
		m.cut("pve2:9443")
		pve1.awaitEnd("pve2")
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		l := pve1.forward.link("pve2")
		l.mu.Lock()
		l.conn.close(errSpent)
		l.mu.Unlock()
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], `level=WARN msg="node does not answer" peer=pve2 address=pve2:9443 error=`) ||
			!strings.Contains(lines[1], `level=INFO msg="node answers again" peer=pve2 address=pve2:9443 after=5s`) {
			t.Errorf("got %q", lines)
		}
	}, "pve1", "pve2")
}

// How often a dead node is dialled, and since when it is called dead.
func TestBackOff(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve1, addr := w.agents["pve1"], "pve2:9443"
		start := time.Now()
		m.fail(addr, refused)
		first := peerError(t, pve1.ask(t, "pve2"))
		if !first.Since.Equal(start) {
			t.Errorf("since %v, want %v", first.Since, start)
		}
		// Nobody dials for 100, 200, 400, 800, 1000, 1000 ms.
		dials := int32(1)
		for _, pause := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			time.Sleep(pause*time.Millisecond - time.Nanosecond)
			err := peerError(t, pve1.ask(t, "pve2"))
			if pve1.dials.Load() != dials || err.Err.Error() != first.Err.Error() || !err.Since.Equal(start) {
				t.Errorf("after %v: %d dials, %v", time.Since(start), pve1.dials.Load(), err)
			}
			time.Sleep(time.Nanosecond)
			_ = peerError(t, pve1.ask(t, "pve2"))
			if dials++; pve1.dials.Load() != dials {
				t.Errorf("after %v: %d dials, want %d", time.Since(start), pve1.dials.Load(), dials)
			}
		}
		// Nobody dials for nobody.
		time.Sleep(time.Hour)
		if pve1.dials.Load() != dials {
			t.Error("dialled without a call")
		}
		m.fail(addr, none)
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		if l := pve1.forward.Links()[0]; !l.Since.IsZero() || l.LastError != "" {
			t.Errorf("got %+v", l)
		}
		// It all starts anew.
		m.cut(addr)
		m.fail(addr, refused)
		synctest.Wait()
		if down := peerError(t, pve1.ask(t, "pve2")); !down.Since.Equal(time.Now()) {
			t.Errorf("since %v", down.Since)
		}
		time.Sleep(firstRetry)
		m.fail(addr, none)
		w.agents["pve2"].on(func(ctx context.Context, vm string) error { // connecting is a success
			m.stall(addr, false)
			return hang(ctx, vm)
		})
		if down := peerError(t, pve1.ask(t, "pve2")); !down.Since.Equal(time.Now()) {
			t.Errorf("since %v, at %v", down.Since, time.Now())
		}
	}, "pve1", "pve2")
}

// Calls that come while somebody connects wait for that.
// An answer that comes over the old connection, after an attempt to make a new one has failed, says that the node
// answers: the next call connects again, and does not wait for the pause to end.
func TestOldConnectionAnswersAfterAFailure(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "vm")
		pve1, pve2 := w.agents["pve1"], w.agents["pve2"]
		answer := make(chan struct{})
		pve2.on(func(context.Context, string) error {
			<-answer
			return nil
		})
		old := make(chan error, 1)
		go func() { old <- pve1.ask(t, "pve2") }()
		synctest.Wait()
		pve1.moveAddress("pve2", "nowhere:9443")
		_ = peerError(t, pve1.ask(t, "pve2"))
		close(answer)
		if err := <-old; err != nil {
			t.Fatal(err)
		}
		dials := pve1.dials.Load()
		_ = peerError(t, pve1.ask(t, "pve2"))
		if pve1.dials.Load() == dials {
			t.Error("nobody has tried to connect again")
		}
	}, "pve1", "pve2")
}

func TestConnectingIsShared(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				if err := w.agents["pve1"].ask(t, "pve2"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := w.agents["pve1"].dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
		if l := w.agents["pve1"].forward.Links()[0]; l.Forwarded != 30 || l.InFlight != 0 {
			t.Errorf("got %+v", l)
		}
	}, "pve1", "pve2")
}

// A caller that goes away while it waits for a connection takes it from nobody.
func TestConnectingOutlivesItsCaller(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "vm")
		w.agents["pve2"].slowChecks(connectTimeout / 2)
		ctx, cancel := context.WithTimeout(t.Context(), connectTimeout/4)
		defer cancel()
		if err := w.agents["pve1"].forward.Call(ctx, "pve2", unaryCall, about("vm"), &testpb.SimpleResponse{}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		if err := w.agents["pve1"].ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		if n := w.agents["pve1"].dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
	}, "pve1", "pve2")
}

// Links are sorted and say what was.
func TestLinks(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve1 := w.agents["pve1"]
		m.fail("pve3:9443", refused)
		pve1.moveAddress("pve4", "")
		for _, node := range []string{"pve4", "pve3", "pve3", "pve2"} {
			_ = pve1.ask(t, node)
		}
		now := time.Now()
		want := []Link{
			{Node: "pve2", Addr: "pve2:9443", Forwarded: 1},
			{Node: "pve3", Addr: "pve3:9443", Failed: 2, Since: now, LastError: "connect to pve3:9443: connection refused"},
			{Node: "pve4", Failed: 1, Since: now, LastError: "the address of its agent is not known"},
		}
		got := pve1.forward.Links()
		if len(got) != len(want) {
			t.Fatalf("got %+v", got)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("got %+v, want %+v", got[i], want[i])
			}
		}
		// An address that becomes known is tried at once.
		w.owns("pve2", "vm")
		pve1.moveAddress("pve4", "pve2:9443")
		_ = pve1.forward.Call(t.Context(), "pve4", unaryCall, about("vm"), &testpb.SimpleResponse{})
		if l := pve1.forward.Links()[2]; !l.Since.IsZero() || l.Forwarded != 1 {
			t.Errorf("got %+v", l)
		}
	}, "pve1", "pve2", "pve3")
}

// Who answers at a node's address must be that node's agent.
func TestOtherNodeAtTheAddress(t *testing.T) {
	w := newWorld(t, newLoopback(t), "pve1", "pve2", "pve3")
	w.owns("pve2", "vm")
	w.agents["pve1"].moveAddress("pve2", w.wires.addr("pve3"))
	down := peerError(t, w.agents["pve1"].ask(t, "pve2"))
	if down.Sent || !strings.Contains(down.Err.Error(), "pve3 is not pve2") {
		t.Errorf("got %+v", down)
	}
}

// What goes wrong before an agent has answered, over real sockets.
func TestNotAnAgent(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	defer func() {
		_ = l.Close()
		<-served
	}()
	w := newWorld(t, newLoopback(t), "pve1", "pve2")
	w.agents["pve1"].moveAddress("pve2", l.Addr().String())
	if down := peerError(t, w.agents["pve1"].ask(t, "pve2")); down.Sent || down.Since.IsZero() {
		t.Errorf("got %+v", down)
	}
}
