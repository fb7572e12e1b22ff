package forward

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// answer is who handled a call, for whom, and who had forwarded it.
type answer struct{ By, For, From string }

func mustCall(t *testing.T, cc *grpc.ClientConn, vm string) answer {
	t.Helper()
	resp, err := call(t.Context(), cc, vm)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.GetHostname(), resp.GetUsername(), resp.GetServerId()}
}

func TestEachRequestGoesToItsNode(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve1", "here")
		w.owns("pve2", "there")
		w.owns("pve2", "") // EmptyCall
		manager := w.client("manager", "pve1")
		if diff := cmp.Diff(answer{By: "pve1", For: "manager"}, mustCall(t, manager, "here")); diff != "" {
			t.Error(diff)
		}
		if n := len(w.agents["pve1"].forward.Links()); n != 0 {
			t.Errorf("%d links for a call that is handled here", n)
		}
		if diff := cmp.Diff(answer{By: "pve2", For: "manager", From: "pve1"}, mustCall(t, manager, "there")); diff != "" {
			t.Error(diff)
		}
		// Another type of answer, by nothing but the method's name.
		if _, err := testpb.NewTestServiceClient(manager).EmptyCall(t.Context(), &testpb.Empty{}); err != nil {
			t.Error(err)
		}
		if n := w.agents["pve2"].handled.Load(); n != 2 {
			t.Errorf("pve2 handled %d", n)
		}
		// The Router is told that a request was forwarded, not of one that was not.
		if from, ok := Forwarded(w.agents["pve2"].router.received[0]); !ok || from != "pve1" {
			t.Errorf("pve2's router sees %q, %v", from, ok)
		}
		if from, ok := Forwarded(w.agents["pve1"].router.received[0]); ok {
			t.Errorf("pve1's router sees %q", from)
		}
	}, "pve1", "pve2")
}

func TestOtherServicesAreHandledHere(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		if _, err := grpc_health_v1.NewHealthClient(w.client("manager", "pve1")).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Error(err)
		}
		if a := w.agents["pve1"]; a.checks.Load() != 1 || a.router.asked != 0 {
			t.Errorf("%d checks, router asked %d times", a.checks.Load(), a.router.asked)
		}
		// A peer's call of one is answered, too; what is no error needs no name beside it.
		var trailer metadata.MD
		ctx := w.agents["pve2"].forward.marked(t.Context())
		if _, err := grpc_health_v1.NewHealthClient(w.client("pve2", "pve1")).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Trailer(&trailer)); err != nil {
			t.Error(err)
		}
		if named := trailer.Get(answeredKey); named != nil {
			t.Errorf("the answer names %q", named)
		}
	}, "pve1", "pve2")
}

func TestRouterRefuses(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		_, err := call(t.Context(), w.client("manager", "pve1"), "unknown")
		if st := status.Convert(err); st.Code() != codes.NotFound || st.Message() != "no such VM" {
			t.Errorf("got %v", err)
		}
	}, "pve1")
}

// A marker and an identity from somebody who is no agent are nothing.
func TestMarkerOfAClient(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve1", "here")
		w.owns("pve2", "there")
		forged := metadata.AppendToOutgoingContext(t.Context(), markerKey, "pve2", clientKey, "root")
		for vm, want := range map[string]answer{
			"here":  {By: "pve1", For: "manager"},
			"there": {By: "pve2", For: "manager", From: "pve1"},
		} {
			var trailer metadata.MD
			resp, err := call(forged, w.client("manager", "pve1"), vm, grpc.Trailer(&trailer))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, answer{resp.GetHostname(), resp.GetUsername(), resp.GetServerId()}); diff != "" {
				t.Errorf("%s: %s", vm, diff)
			}
			if len(trailer.Get(answeredKey)) != 0 {
				t.Errorf("%s: answered as if to a peer", vm)
			}
		}
	}, "pve1", "pve2")
}

// An agent that comes without a marker is a client like others, and one that
// names no client is refused: nobody would be the owner of what is made for it.
func TestPeerWithoutMarker(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve3", "there")
		cc := w.client("pve2", "pve1")
		noMarker := metadata.AppendToOutgoingContext(t.Context(), clientKey, "manager")
		resp, err := call(noMarker, cc, "there")
		if err != nil || resp.GetHostname() != "pve3" || resp.GetUsername() != "pve2" {
			t.Errorf("got %v, %v", resp, err)
		}
		w.owns("pve1", "here")
		noClient := metadata.AppendToOutgoingContext(t.Context(), markerKey, "pve2")
		resp, err = call(noClient, cc, "here")
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v, %v", resp, err)
		}
		// Who it is, its certificate says, not its marker.
		other := metadata.AppendToOutgoingContext(t.Context(), markerKey, "pve3", clientKey, "manager")
		resp, err = call(other, cc, "here")
		if err != nil || resp.GetServerId() != "pve2" {
			t.Errorf("got %v, %v", resp, err)
		}
	}, "pve1", "pve2", "pve3")
}

// A name in a certificate may have any letters.
func TestClientNameInUTF8(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, _ *memory) {
		w.owns("pve2", "there")
		if got := mustCall(t, w.client("müller\n", "pve1"), "there"); got.For != "müller\n" {
			t.Errorf("got %q", got.For)
		}
	}, "pve1", "pve2")
}

// The receiver says where the request belongs, handles nothing and forwards
// nothing.
func TestForwardedIsNotForwardedAgain(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve3", "vm")
		var resp testpb.SimpleResponse
		err := w.agents["pve1"].forward.Call(t.Context(), "pve2", unaryCall, about("vm"), &resp)
		if node, ok := IsElsewhere(err); !ok || node != "pve3" {
			t.Errorf("got %v", err)
		}
		for name, a := range w.agents {
			if n := a.handled.Load(); n != 0 {
				t.Errorf("%s handled %d", name, n)
			}
		}
		// Its router's errors and its handler's Elsewhere come as they are.
		err = w.agents["pve1"].forward.Call(t.Context(), "pve2", unaryCall, about("unknown"), &resp)
		if st := status.Convert(err); st.Code() != codes.NotFound || st.Message() != "pve2: no such VM" {
			t.Errorf("got %v", err)
		}
		w.owns("pve2", "full")
		w.agents["pve2"].on(func(context.Context, string) error { return Elsewhere("", "no room") })
		err = w.agents["pve1"].forward.Call(t.Context(), "pve2", unaryCall, about("full"), &resp)
		if node, ok := IsElsewhere(err); !ok || node != "" || status.Convert(err).Message() != "pve2: no room" {
			t.Errorf("got %v", err)
		}
	}, "pve1", "pve2", "pve3")
}

// Only some metadata goes on.
func TestMetadata(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		var seen metadata.MD
		w.agents["pve2"].on(func(ctx context.Context, _ string) error {
			seen, _ = metadata.FromIncomingContext(ctx)
			return nil
		})
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-a-b-01", "tracestate", "x=1", "tracestate", "y=2", "authorization", "secret")
		if _, err := call(ctx, w.client("manager", "pve1"), "vm"); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string][]string{
			"traceparent": {"00-a-b-01"}, "tracestate": {"x=1", "y=2"}, "authorization": nil,
			markerKey: {"pve1"}, clientKey: {"manager"},
		} {
			if diff := cmp.Diff(want, seen.Get(key)); diff != "" {
				t.Errorf("%s: %s", key, diff)
			}
		}
	}, "pve1", "pve2")
}

// What a handler answers comes back as it is, with its node's name.
func TestStatusComesBack(t *testing.T) {
	detailed, err := status.New(codes.FailedPrecondition, "no").WithDetails(&errdetails.ErrorInfo{Reason: "R", Domain: "D"})
	if err != nil {
		t.Fatal(err)
	}
	both(t, func(t *testing.T, w *world) {
		w.owns("pve2", "vm")
		manager := w.client("manager", "pve1")
		tests := []struct {
			err  error
			want *status.Status
		}{
			{detailed.Err(), func() *status.Status {
				p := detailed.Proto()
				p.Message = "pve2: no"
				return status.FromProto(p)
			}()},
			{status.Error(codes.NotFound, "pve2: said once"), status.New(codes.NotFound, "pve2: said once")},
			{status.Error(codes.NotFound, ""), status.New(codes.NotFound, "pve2: ")},
			{errors.New("plain"), status.New(codes.Unknown, "pve2: plain")},
		}
		for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
			tests = append(tests, struct {
				err  error
				want *status.Status
			}{status.Error(code, "m"), status.New(code, "pve2: m")})
		}
		for _, tt := range tests {
			w.agents["pve2"].on(func(context.Context, string) error { return tt.err })
			_, err := call(t.Context(), manager, "vm")
			if got := status.Convert(err); got.String() != tt.want.String() || len(got.Details()) != len(tt.want.Details()) {
				t.Errorf("%v: got %v, want %v", tt.err, got, tt.want)
			}
		}
		l := w.agents["pve1"].forward.Links()[0]
		if l.Forwarded != uint64(len(tests)) || l.Failed != 0 || !l.Since.IsZero() {
			t.Errorf("answers count as failures: %+v", l)
		}
	}, "pve1", "pve2")
}

// A peer that does not know the method, or would not take so much, has answered.
func TestStatusOfNoHandler(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		var resp testpb.SimpleResponse
		f := w.agents["pve1"].forward
		err := f.Call(t.Context(), "pve2", "/"+service+"/Newer", about("vm"), &resp)
		if st := status.Convert(err); st.Code() != codes.Unimplemented || !strings.HasPrefix(st.Message(), "pve2: ") {
			t.Errorf("got %v", err)
		}
		w.owns("pve2", "vm")
		large := about("vm")
		large.FillUsername, large.Payload.Body = true, make([]byte, 5<<20)
		err = f.Call(t.Context(), "pve2", unaryCall, large, &resp)
		if st := status.Convert(err); st.Code() != codes.ResourceExhausted || !strings.HasPrefix(st.Message(), "pve2: ") {
			t.Errorf("got %v", err)
		}
		// The answers may be larger than a client would take.
		wide := about("vm")
		wide.ResponseSize = 5 << 20
		if err = f.Call(t.Context(), "pve2", unaryCall, wide, &resp); err != nil || len(resp.GetPayload().GetBody()) != 5<<20 {
			t.Errorf("got %v, %d bytes", err, len(resp.GetPayload().GetBody()))
		}
		if l := f.Links()[0]; l.Forwarded != 3 || l.Failed != 0 {
			t.Errorf("got %+v", l)
		}
	}, "pve1", "pve2")
}

// Where a request goes whose VM has moved.
func TestElsewhere(t *testing.T) {
	type views map[string]string // by agent: where it says the VM is
	tests := []struct {
		name      string
		now       views
		refreshed string // what pve1 sees after a refresh; "" as before, "none" an error
		hints     views  // agents whose handler sends the request elsewhere
		failing   error  // of the refresh
		want      string // who answers, or the error
		refresh   int
	}{
		{name: "owner", now: views{"pve1": "pve2", "pve2": "pve2"}, want: "pve2"},
		{name: "moved between look-up and call", now: views{"pve1": "pve2", "pve2": "pve3", "pve3": "pve3"}, refreshed: "pve3", want: "pve3", refresh: 1},
		{name: "moved to us", now: views{"pve1": "pve2", "pve2": "pve1"}, refreshed: "pve1", want: "pve1", refresh: 1},
		{name: "the look-up counts more than the hint", now: views{"pve1": "pve2", "pve2": "pve1", "pve3": "pve3"}, refreshed: "pve3", want: "pve3", refresh: 1},
		{name: "the hint, when the look-up says the same", now: views{"pve1": "pve2", "pve2": "pve3", "pve3": "pve3"}, want: "pve3", refresh: 1},
		{name: "the hint, when the look-up fails", now: views{"pve1": "pve2", "pve2": "pve3", "pve3": "pve3"}, refreshed: "none", want: "pve3", refresh: 1},
		{name: "the hint, when we cannot refresh", now: views{"pve1": "pve2", "pve2": "pve3", "pve3": "pve3"}, failing: errors.New("no"), want: "pve3", refresh: 1},
		{name: "no hint, and the look-up fails", now: views{"pve1": "pve2", "pve2": "pve2"}, hints: views{"pve2": ""}, refreshed: "none", want: "NotFound: no such VM", refresh: 1},
		{name: "no hint, and the look-up knows", now: views{"pve1": "pve2", "pve2": "pve2", "pve3": "pve3"}, hints: views{"pve2": ""}, refreshed: "pve3", want: "pve3", refresh: 1},
		{name: "our own handler lost it", now: views{"pve1": "pve1", "pve2": "pve2"}, hints: views{"pve1": "pve2"}, want: "pve2", refresh: 1},
		{name: "our own handler lost it, without a hint", now: views{"pve1": "pve1", "pve3": "pve3"}, hints: views{"pve1": ""}, refreshed: "pve3", want: "pve3", refresh: 1},
		{
			name: "twice", now: views{"pve1": "pve2", "pve2": "pve3", "pve3": "pve2"}, refresh: 1,
			want: "Aborted: it keeps moving: node pve3, the last of 2 that were asked, sends it elsewhere too (pve3: this belongs to node pve2); try again",
		},
		{
			name: "twice in our own handler", now: views{"pve1": "pve1"}, hints: views{"pve1": ""}, refresh: 1,
			want: "Aborted: it keeps moving: node pve1, the last of 2 that were asked, sends it elsewhere too (moved); try again",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, w *world) {
				for name, owner := range tt.now {
					w.agents[name].router.set("vm", owner)
				}
				us := w.agents["pve1"].router
				us.failing = tt.failing
				switch tt.refreshed {
				case "":
				case "none":
					us.later("vm", "")
				default:
					us.later("vm", tt.refreshed)
				}
				for name, hint := range tt.hints {
					w.agents[name].on(func(context.Context, string) error { return Elsewhere(hint, "moved") })
				}
				resp, err := call(t.Context(), w.client("manager", "pve1"), "vm")
				got := resp.GetHostname()
				if err != nil {
					st := status.Convert(err)
					got = st.Code().String() + ": " + st.Message()
				}
				if got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if _, ok := IsElsewhere(err); ok {
					t.Error("a client is sent elsewhere")
				}
				if us.refresh != tt.refresh {
					t.Errorf("%d refreshes, want %d", us.refresh, tt.refresh)
				}
			}, "pve1", "pve2", "pve3")
		})
	}
}

func TestIsElsewhere(t *testing.T) {
	other, err := status.New(codes.Aborted, "x").WithDetails(&errdetails.ErrorInfo{Reason: elsewhereReason, Domain: "other"})
	if err != nil {
		t.Fatal(err)
	}
	code, err := status.New(codes.NotFound, "x").WithDetails(&errdetails.ErrorInfo{Reason: elsewhereReason, Domain: elsewhereDomain})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		err  error
		node string
		ok   bool
	}{
		{Elsewhere("pve2", "m"), "pve2", true},
		{Elsewhere("", "m"), "", true},
		{errors.Join(errors.New("wrapped"), Elsewhere("pve2", "m")), "pve2", true},
		{nil, "", false},
		{errors.New("plain"), "", false},
		{status.Error(codes.Aborted, "m"), "", false},
		{other.Err(), "", false},
		{code.Err(), "", false},
	}
	for _, tt := range tests {
		if node, ok := IsElsewhere(tt.err); node != tt.node || ok != tt.ok {
			t.Errorf("%v: got %q, %v", tt.err, node, ok)
		}
	}
	if st := status.Convert(Elsewhere("pve2", "m")); st.Code() != codes.Aborted || st.Message() != "m" {
		t.Errorf("got %v", st)
	}
}

// A service that is not described cannot be forwarded, but can be handled.
func TestUndescribedService(t *testing.T) {
	r := &router{node: "pve1", owners: map[string]string{"": "pve2"}}
	f := New(Config{Node: "pve1", Services: []string{"no.such.Service", "grpc.testing.SimpleRequest"}, Router: r})
	unary := f.Unary()
	info := &grpc.UnaryServerInfo{FullMethod: "/no.such.Service/Do"}
	_, err := unary(t.Context(), &testpb.Empty{}, info, nil)
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	r.set("", "pve1")
	resp, err := unary(t.Context(), &testpb.Empty{}, info, func(context.Context, any) (any, error) { return "handled", nil })
	if resp != "handled" || err != nil {
		t.Errorf("got %v, %v", resp, err)
	}
}
