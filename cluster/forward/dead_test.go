package forward

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// soon is how long a dead node may take to be reported.
const soon = time.Second

// hang lets a handler wait until its call is over.
func hang(ctx context.Context, _ string) error {
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

// A node that cannot be asked is reported at once, by what the router says.
func TestDeadNode(t *testing.T) {
	const pve2 = "pve2:9443"
	tests := []struct {
		name  string
		first func(w *world, m *memory) // before the call
		then  func(m *memory)           // when it is being handled; nil: it never is
		sent  bool
		took  time.Duration // 0: at once
		want  string        // part of the reason
	}{
		{name: "refused", first: func(_ *world, m *memory) { m.fail(pve2, refused) }, want: "connect to pve2:9443: connection refused"},
		{name: "no way there", first: func(_ *world, m *memory) { m.fail(pve2, blackout) }, took: connectTimeout, want: "connect to pve2:9443: "},
		{name: "accepts, never answers", first: func(_ *world, m *memory) { m.fail(pve2, stopped) }, took: connectTimeout, want: "no answer within 700ms"},
		{name: "no address", first: func(w *world, _ *memory) { w.agents["pve1"].moveAddress("pve2", "") }, want: "address of its agent is not known"},
		{name: "vanished in the middle", then: func(m *memory) { m.stall(pve2, false) }, sent: true, took: probeAfter + probeTimeout, want: "silent for 850ms"},
		{name: "vanished in the middle, and nothing more can be written", then: func(m *memory) { m.stall(pve2, true) }, sent: true, took: probeAfter + probeTimeout, want: "silent for 850ms"},
		{name: "killed in the middle", then: func(m *memory) { m.cut(pve2) }, sent: true, want: "EOF"},
		{
			name: "vanished before", sent: true, took: probeAfter + probeTimeout, want: "silent for 850ms",
			first: func(w *world, m *memory) {
				_, _ = call(w.t.Context(), w.client("manager", "pve1"), "vm")
				m.stall(pve2, true)
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, w *world, m *memory) {
				w.owns("pve2", "vm")
				if tt.first != nil {
					tt.first(w, m)
				}
				if tt.then != nil {
					w.agents["pve2"].on(func(ctx context.Context, vm string) error {
						tt.then(m)
						return hang(ctx, vm)
					})
				}
				manager := w.client("manager", "pve1")
				mustBeUp(t, w)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				_, err := call(ctx, manager, "vm")
				took := time.Since(start)
				if !isUnreachable(err) {
					t.Errorf("got %v", err)
				}
				if took != tt.took || took >= soon {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				u := w.agents["pve1"].router.unreachable(t)
				if u.Node != "pve2" || u.Method != unaryCall || u.Sent != tt.sent || !u.Since.Equal(start.Add(took)) {
					t.Errorf("the router is told %+v", u)
				}
				if req, ok := u.Req.(*testpb.SimpleRequest); !ok || string(req.GetPayload().GetBody()) != "vm" {
					t.Errorf("the router is told of %v", u.Req)
				}
				if u.Err == nil || !strings.Contains(u.Err.Error(), tt.want) {
					t.Errorf("because of %v, want %q", u.Err, tt.want)
				}
			}, "pve1", "pve2")
		})
	}
}

// mustBeUp lets all clients of the test connect to pve1 before it looks at the
// time.
func mustBeUp(t *testing.T, w *world) {
	t.Helper()
	w.owns("pve1", "first")
	mustCall(t, w.client("manager", "pve1"), "first")
	synctest.Wait()
}

// All calls that a dead connection carries end with it, and none is made again.
func TestVanishedWithManyCalls(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		w.agents["pve2"].on(hang)
		manager := w.client("manager", "pve1")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := call(t.Context(), manager, "vm"); !isUnreachable(err) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		if n := w.agents["pve1"].forward.Links()[0].InFlight; n != 20 {
			t.Errorf("%d calls in flight", n)
		}
		m.stall("pve2:9443", true)
		start := time.Now()
		wg.Wait()
		if took := time.Since(start); took >= soon {
			t.Errorf("took %v", took)
		}
		if n := w.agents["pve2"].handled.Load(); n != 20 {
			t.Errorf("%d calls were handled", n)
		}
		if n := w.agents["pve1"].dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		l := w.agents["pve1"].forward.Links()[0]
		if l.InFlight != 0 || l.Failed != 20 || l.Forwarded != 0 || l.Since.IsZero() || !strings.Contains(l.LastError, "silent") {
			t.Errorf("got %+v", l)
		}
	}, "pve1", "pve2")
}

// A call may take as long as it likes while its node lives, and the connection
// is asked only then.
func TestLongCall(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve2 := w.agents["pve2"]
		manager := w.client("manager", "pve1")
		mustCall(t, manager, "vm")
		before := pve2.checks.Load() // of connecting

		sleep := func(d time.Duration) {
			pve2.on(func(ctx context.Context, _ string) error {
				time.Sleep(d) // virtual
				return ctx.Err()
			})
		}
		sleep(probeAfter - time.Millisecond)
		for range 10 {
			mustCall(t, manager, "vm")
		}
		time.Sleep(time.Minute)
		sleep(0)
		mustCall(t, manager, "vm")
		time.Sleep(probeAfter - 50*time.Millisecond)
		sleep(100 * time.Millisecond) // so it is not over when the connection was silent for long
		mustCall(t, manager, "vm")
		time.Sleep(time.Minute)
		if n := pve2.checks.Load() - before; n != 0 {
			t.Errorf("%d probes for short calls and for none", n)
		}
		sleep(2 * time.Minute)
		mustCall(t, manager, "vm")
		if n := pve2.checks.Load() - before; n < 360 || n > 480 {
			t.Errorf("%d probes in 2 minutes", n)
		}
		// While it lasts, its node may die.
		start := time.Now()
		time.AfterFunc(time.Minute, func() { m.stall("pve2:9443", false) })
		_, err := call(t.Context(), manager, "vm")
		if took := time.Since(start) - time.Minute; !isUnreachable(err) || took >= soon {
			t.Errorf("got %v after %v", err, took)
		}
		time.Sleep(2 * time.Minute) // until the handler has ended
	}, "pve1", "pve2")
}

// A probe may take a while, and answers to other calls are as good.
func TestSlowProbe(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "slow")
		w.owns("pve2", "quick")
		pve2 := w.agents["pve2"]
		pve2.on(func(_ context.Context, vm string) error {
			if vm == "slow" {
				time.Sleep(time.Minute)
			}
			return nil
		})
		manager := w.client("manager", "pve1")
		mustCall(t, manager, "quick")
		pve2.slowChecks(probeTimeout - time.Millisecond)
		if got := mustCall(t, manager, "slow"); got.By != "pve2" {
			t.Errorf("got %v", got)
		}
		// No probe is answered, but there are others who wait and get answers.
		pve2.slowChecks(time.Hour)
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustCall(t, manager, "slow")
		}()
		for range 150 {
			time.Sleep(400 * time.Millisecond) // a probe is under way by then
			mustCall(t, manager, "quick")
		}
		<-done
		// Without them it is silent.
		if _, err := call(t.Context(), manager, "slow"); !isUnreachable(err) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Hour)
	}, "pve1", "pve2")
}

// The other side has to be done a little earlier than we.
func TestDeadline(t *testing.T) {
	for _, tt := range []struct{ ours, margin time.Duration }{
		{time.Second, 100 * time.Millisecond},
		{5 * time.Second, 500 * time.Millisecond},
		{time.Minute, 500 * time.Millisecond},
	} {
		inMemory(t, func(t *testing.T, w *world, _ *memory) {
			w.owns("pve2", "vm")
			var theirs time.Duration
			w.agents["pve2"].on(func(ctx context.Context, _ string) error {
				d, _ := ctx.Deadline()
				theirs = time.Until(d)
				return nil
			})
			manager := w.client("manager", "pve1")
			mustBeUp(t, w)
			ctx, cancel := context.WithTimeout(t.Context(), tt.ours)
			defer cancel()
			if _, err := call(ctx, manager, "vm"); err != nil {
				t.Fatal(err)
			}
			// The time travels in whole units of gRPC's choice.
			if got := tt.ours - theirs; got < tt.margin-time.Millisecond || got > tt.margin+time.Millisecond {
				t.Errorf("of %v, %v is kept back", tt.ours, got)
			}
		}, "pve1", "pve2")
	}
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "vm")
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			if _, ok := ctx.Deadline(); ok {
				t.Error("a deadline out of nowhere")
			}
			return nil
		})
		mustCall(t, w.client("manager", "pve1"), "vm")
	}, "pve1", "pve2")
}

// A handler that notices its deadline is heard before ours.
func TestAnswerAtTheDeadline(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "vm")
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			d, _ := ctx.Deadline()
			time.Sleep(time.Until(d) - time.Millisecond)
			return status.Error(codes.FailedPrecondition, "still waiting")
		})
		manager := w.client("manager", "pve1")
		mustBeUp(t, w)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := call(ctx, manager, "vm"); status.Convert(err).Message() != "pve2: still waiting" {
			t.Errorf("got %v", err)
		}
	}, "pve1", "pve2")
}

// A node that lives and does not answer in time is the router's to explain, in
// the time that was kept back. It is not called dead.
func TestNoAnswerInTime(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "vm")
		w.agents["pve2"].on(func(context.Context, string) error {
			time.Sleep(time.Minute) // whatever the deadline is
			return nil
		})
		manager := w.client("manager", "pve1")
		mustBeUp(t, w)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		_, err := call(ctx, manager, "vm")
		if took := time.Since(start); !isUnreachable(err) || took < 9*time.Second || took > 9600*time.Millisecond {
			t.Errorf("got %v after %v", err, took)
		}
		if u := w.agents["pve1"].router.unreachable(t); !u.Sent || !u.Since.IsZero() {
			t.Errorf("the router is told %+v", u)
		}
		if l := w.agents["pve1"].forward.Links()[0]; !l.Since.IsZero() || l.Failed != 1 {
			t.Errorf("got %+v", l)
		}
		if n := w.agents["pve1"].dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	}, "pve1", "pve2")
}

// A caller that goes away ends its call everywhere, and is answered for that.
func TestCancellation(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		begun, ended := make(chan struct{}), make(chan error, 1)
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			close(begun)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-begun
			cancel()
		}()
		if _, err := call(ctx, w.client("manager", "pve1"), "vm"); status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the handler's context says %v", err)
		}
	}, "pve1", "pve2")
}

// Only the end of the caller's own context is answered with Canceled or
// DeadlineExceeded, and says nothing of the node.
func TestCallersEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		fault   fault
		timeout time.Duration
		stalled bool
	}{
		"while connecting": {fault: blackout, timeout: connectTimeout / 2},
		"while waiting":    {timeout: probeAfter / 2, stalled: true},
		"before":           {timeout: -1},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(t *testing.T, w *world, m *memory) {
				w.agents["pve2"].on(hang)
				m.fail("pve2:9443", tt.fault)
				ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
				defer cancel()
				if tt.stalled {
					w.agents["pve2"].on(func(ctx context.Context, vm string) error {
						m.stall("pve2:9443", false)
						return hang(ctx, vm)
					})
				}
				start := time.Now()
				var resp testpb.SimpleResponse
				w.owns("pve2", "vm")
				err := w.agents["pve1"].forward.Call(ctx, "pve2", unaryCall, about("vm"), &resp)
				if status.Code(err) != codes.DeadlineExceeded || time.Since(start) != max(tt.timeout, 0) {
					t.Errorf("got %v after %v", err, time.Since(start))
				}
				if l := w.agents["pve1"].forward.Links()[0]; l.Failed != 0 || !l.Since.IsZero() {
					t.Errorf("got %+v", l)
				}
			}, "pve1", "pve2")
		})
	}
}

// Nothing that may have been carried out is sent again.
func TestNeverSentTwice(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		pve2 := w.agents["pve2"]
		pve2.on(func(context.Context, string) error {
			w.wires.cut(w.wires.addr("pve2"))
			return nil
		})
		_, err := call(t.Context(), w.client("manager", "pve1"), "vm")
		if u := w.agents["pve1"].router.unreachable(t); !isUnreachable(err) || !u.Sent || u.Since.IsZero() {
			t.Errorf("got %v, %+v", err, u)
		}
		if n := pve2.handled.Load(); n != 1 {
			t.Errorf("handled %d times", n)
		}
	}, "pve1", "pve2")
}

// awaitEnd waits until it is noticed that the connection to a node has ended.
func (a *agent) awaitEnd(node string) {
	l := a.forward.link(node)
	l.mu.Lock()
	cc := l.conn.cc
	l.mu.Unlock()
	cc.WaitForStateChange(a.w.t.Context(), connectivity.Ready)
}

// A connection that has ended unseen is replaced, and its end is nobody's
// trouble.
func TestRestartedNode(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		manager := w.client("manager", "pve1")
		for range 5 {
			mustCall(t, manager, "vm")
			w.agents["pve2"].server.Stop()
			<-w.agents["pve2"].served
			w.agents["pve1"].awaitEnd("pve2")
			w.agents["pve2"].serve()
		}
		if l := w.agents["pve1"].forward.Links()[0]; l.Failed != 0 || l.Forwarded != 5 {
			t.Errorf("got %+v", l)
		}
	}, "pve1", "pve2")
}

// A server that ends when its calls are done ends them, and new calls go to the
// one that follows.
func TestDrainingNode(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "slow")
		w.owns("pve2", "quick")
		pve2 := w.agents["pve2"]
		pve2.on(func(_ context.Context, vm string) error {
			if vm == "slow" {
				time.Sleep(8 * time.Second)
			}
			return nil
		})
		manager := w.client("manager", "pve1")
		mustCall(t, manager, "quick")
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustCall(t, manager, "slow")
		}()
		synctest.Wait()
		old, served := pve2.server, pve2.served
		go old.GracefulStop()
		synctest.Wait()
		pve2.serve()
		mustCall(t, manager, "quick")
		<-done
		<-served
		if l := w.agents["pve1"].forward.Links()[0]; l.Failed != 0 || l.Forwarded != 3 {
			t.Errorf("got %+v", l)
		}
		// One that dies while it does so is noticed, if not as soon.
		pve2.on(func(context.Context, string) error {
			time.Sleep(time.Hour)
			return nil
		})
		start := time.Now()
		time.AfterFunc(time.Second, func() { go pve2.server.GracefulStop() })
		time.AfterFunc(2*time.Second, func() { m.stall("pve2:9443", false) })
		_, err := call(t.Context(), manager, "slow")
		if took := time.Since(start); !isUnreachable(err) || took > 20*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		time.Sleep(time.Hour)
	}, "pve1", "pve2")
}
