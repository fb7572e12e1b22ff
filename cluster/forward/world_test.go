package forward

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	service   = "grpc.testing.TestService" // the routed one; its requests name a VM, its answers say who gave them
	unaryCall = "/" + service + "/UnaryCall"
)

// A world is some agents and what connects them.
type world struct {
	t      testing.TB
	wires  wires
	agents map[string]*agent
}

// wires are what connects agents: memory, or TCP with TLS.
type wires interface {
	listen(node string) net.Listener
	dial(ctx context.Context, from, addr string) (net.Conn, error)
	addr(node string) string
	server(node string) credentials.TransportCredentials
	client(from, to string) credentials.TransportCredentials
	caller(p *peer.Peer) string // the name of who calls
	cut(addr string)            // ends all connections to an address, as a process that is killed does
}

// both runs a test in memory, where time is virtual, and over TLS.
func both(t *testing.T, test func(t *testing.T, w *world), nodes ...string) {
	t.Run("memory", func(t *testing.T) { inMemory(t, func(t *testing.T, w *world, _ *memory) { test(t, w) }, nodes...) })
	t.Run("TLS", func(t *testing.T) { test(t, newWorld(t, newLoopback(t), nodes...)) })
}

// inMemory runs a test in memory, where time is virtual.
func inMemory(t *testing.T, test func(t *testing.T, w *world, m *memory), nodes ...string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		test(t, newWorld(t, m, nodes...), m)
	})
}

func newWorld(t testing.TB, wires wires, nodes ...string) *world {
	w := &world{t: t, wires: wires, agents: make(map[string]*agent)}
	for _, name := range nodes {
		w.agents[name] = newAgent(w, name)
	}
	for _, a := range w.agents {
		a.serve()
		a.run()
	}
	return w
}

// An agent is a server with a Forwarder.
type agent struct {
	testpb.UnimplementedTestServiceServer
	grpc_health_v1.UnimplementedHealthServer

	w       *world
	name    string
	forward *Forwarder
	router  *router
	stop    func() // ends Run

	server  *grpc.Server
	served  chan struct{}
	checks  atomic.Int32 // health checks answered
	handled atomic.Int32 // calls that reached the handler
	dials   atomic.Int32

	// mu guards the fields below.
	mu     sync.Mutex
	handle func(ctx context.Context, vm string) error
	slow   time.Duration     // of health checks
	addrs  map[string]string // of other agents, where they are not the usual ones
}

func newAgent(w *world, name string) *agent {
	a := &agent{w: w, name: name, addrs: make(map[string]string)}
	a.router = &router{node: name, owners: make(map[string]string)}
	a.forward = New(Config{
		Node: name, Services: []string{service}, Router: a.router,
		Address: a.address,
		Credentials: func(node string) credentials.TransportCredentials {
			return w.wires.client(name, node)
		},
		Peer: func(ctx context.Context) (string, bool) {
			p, _ := peer.FromContext(ctx)
			_, ok := w.agents[w.wires.caller(p)]
			return w.wires.caller(p), ok
		},
		Client: func(ctx context.Context) string {
			p, ok := peer.FromContext(ctx)
			if !ok {
				return "local"
			}
			return w.wires.caller(p)
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			a.dials.Add(1)
			return w.wires.dial(ctx, name, addr)
		},
	})
	return a
}

// serve starts a server, again after it was stopped.
func (a *agent) serve() {
	l := a.w.wires.listen(a.name)
	server := grpc.NewServer(grpc.Creds(a.w.wires.server(a.name)), grpc.UnaryInterceptor(a.forward.Unary()), grpc.WaitForHandlers(true))
	testpb.RegisterTestServiceServer(server, a)
	grpc_health_v1.RegisterHealthServer(server, a)
	served := make(chan struct{})
	a.server, a.served = server, served
	go func() {
		defer close(served)
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			a.w.t.Error(err)
		}
	}()
	a.w.t.Cleanup(func() {
		server.Stop()
		<-served
	})
}

// run starts the Forwarder.
func (a *agent) run() {
	ctx, cancel := context.WithCancel(a.w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.forward.Run(ctx); err != nil {
			a.w.t.Error(err)
		}
	}()
	a.stop = func() {
		cancel()
		<-done
	}
	a.w.t.Cleanup(a.stop)
	<-a.forward.Ready()
}

// address is where other agents are; "" as an entry of addrs: not known.
func (a *agent) address(node string) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addr, changed := a.addrs[node]; changed {
		return addr, addr != ""
	}
	return a.w.wires.addr(node), true
}

func (a *agent) moveAddress(node, addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addrs[node] = addr
}

// on sets what the handler does before it answers.
func (a *agent) on(handle func(ctx context.Context, vm string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handle = handle
}

// slowChecks lets health checks take this long.
func (a *agent) slowChecks(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.slow = d
}

// UnaryCall answers who handles it, for whom, and who has forwarded it.
func (a *agent) UnaryCall(ctx context.Context, req *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	a.handled.Add(1)
	a.mu.Lock()
	handle := a.handle
	a.mu.Unlock()
	if handle != nil {
		if err := handle(ctx, string(req.GetPayload().GetBody())); err != nil {
			return nil, err
		}
	}
	client, forwarded := Client(ctx)
	if !forwarded {
		client = a.forward.cfg.Client(ctx)
	}
	from, _ := Forwarded(ctx)
	return &testpb.SimpleResponse{
		Hostname: a.name, Username: client, ServerId: from,
		Payload: &testpb.Payload{Body: make([]byte, req.GetResponseSize())},
	}, nil
}

func (a *agent) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	a.handled.Add(1)
	return &testpb.Empty{}, nil
}

func (a *agent) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	a.mu.Lock()
	slow := a.slow
	a.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	a.checks.Add(1)
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// client connects a client of this name to an agent.
func (w *world) client(name, node string) *grpc.ClientConn {
	w.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+w.wires.addr(node), grpc.WithTransportCredentials(w.wires.client(name, node)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return w.wires.dial(ctx, name, addr) }))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// call makes a call about a VM and says who answered.
func call(ctx context.Context, cc *grpc.ClientConn, vm string, opts ...grpc.CallOption) (*testpb.SimpleResponse, error) {
	return testpb.NewTestServiceClient(cc).UnaryCall(ctx, about(vm), opts...)
}

func about(vm string) *testpb.SimpleRequest {
	return &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte(vm)}}
}

// owns lets all agents know where a VM is.
func (w *world) owns(node, vm string) {
	for _, a := range w.agents {
		a.router.set(vm, node)
	}
}

// A router is a Router that is told what it says.
type router struct {
	node string

	// mu guards the fields below.
	mu       sync.Mutex
	owners   map[string]string // by VM; "" is an error
	next     map[string]string // what Refresh will see
	asked    int
	refresh  int
	failing  error // of Refresh
	down     []Unreachable
	received []context.Context
	choices  map[string][]string // by VM: nodes that would do, best first
	answered []answeredWay
}

func (r *router) set(vm, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners[vm] = node
}

// later is what Refresh will see.
func (r *router) later(vm, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = make(map[string]string)
	}
	r.next[vm] = node
}

func (r *router) Route(ctx context.Context, _ string, req any) (Way, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	r.received = append(r.received, ctx)
	vm, ok := req.(*testpb.SimpleRequest)
	if !ok {
		return Way{Node: r.owners[""]}, nil
	}
	if choices := r.choices[string(vm.GetPayload().GetBody())]; len(choices) > 0 {
		return r.choose(ctx, choices)
	}
	node, known := r.owners[string(vm.GetPayload().GetBody())]
	if !known || node == "" {
		return Way{}, status.Error(codes.NotFound, "no such VM")
	}
	return Way{Node: node}, nil
}

// choose takes the first node that has not been a wrong choice. One that was chosen by another agent agrees.
func (r *router) choose(ctx context.Context, nodes []string) (Way, error) {
	if _, sent := Forwarded(ctx); sent && Note(ctx) != "" {
		return Way{Node: r.node}, nil
	}
	for _, node := range nodes {
		if !slices.ContainsFunc(r.answered, func(a answeredWay) bool { return a.way.Node == node && a.err != nil }) {
			return Way{Node: node, Note: "chosen " + node}, nil
		}
	}
	return Way{}, status.Error(codes.FailedPrecondition, "no node fits")
}

// An answeredWay is what a router was told of a choice.
type answeredWay struct {
	way Way
	err error
}

func (r *router) Answered(_ context.Context, way Way, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answered = append(r.answered, answeredWay{way, err})
}

func (r *router) Refresh(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh++
	maps.Copy(r.owners, r.next)
	return r.failing
}

var errUnreachable = status.Error(codes.FailedPrecondition, "its node cannot be asked")

func (r *router) Unreachable(_ context.Context, u Unreachable) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = append(r.down, u)
	if _, ok := u.Req.(*testpb.Empty); ok {
		return &testpb.Empty{}, nil
	}
	return nil, errUnreachable
}

// unreachable is the last one the router was told of.
func (r *router) unreachable(t *testing.T) Unreachable {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.down) == 0 {
		t.Fatal("the router was not asked what to answer")
	}
	return r.down[len(r.down)-1]
}

func isUnreachable(err error) bool {
	return status.Convert(err).Message() == "its node cannot be asked"
}
