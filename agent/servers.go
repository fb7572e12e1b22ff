package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/health"
	"github.com/pve-rigaud/pve-rigaud/agent/metrics"
	"github.com/pve-rigaud/pve-rigaud/agent/mtls"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/peer"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// drainTime is how long requests under way may go on after a stop was asked for. What they wait for goes on without
// them: a repeat of the request joins it.
const drainTime = 10 * time.Second

// streamWorkers is how many calls are handled by goroutines that are kept; more at once have one of their own.
const streamWorkers = 16

// services are what is served to others: the provider to clients, and the two that only agents of the cluster may ask.
type services struct {
	provider providerpb.ProviderServer
	peer     peerpb.PeerServer
	node     nodepb.NodeServer
}

// grpcServer serves services and grpc.health.v1.Health.
type grpcServer struct {
	listener net.Listener
	options  []grpc.ServerOption
	services services
	metrics  *metrics.Registry
	health   *grpchealth.Server
	cordons  *cordon.Store
	node     string // ours
	ready    chan struct{}
}

func newGRPCServer(l net.Listener, holder *mtls.Holder, what services, cordons *cordon.Store, others *fleet, reg *metrics.Registry, log *slog.Logger) *grpcServer {
	s := &grpcServer{
		listener: l, services: what, metrics: reg, health: grpchealth.NewServer(), cordons: cordons, node: others.self.Name, ready: make(chan struct{}),
	}
	s.options = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(reg.UnaryInterceptor(), recoverPanics(log), others.knownAgents, peer.Guard(others.peer), others.forward.Unary()),
		// Goroutines that are used again keep their stacks, which would else grow anew with each call.
		grpc.NumStreamWorkers(streamWorkers),
		// Fixed windows: gRPC would send a ping with each call to find the best ones, and no answer here is large.
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(1 << 20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if holder != nil {
		s.options = append(s.options, grpc.Creds(credentials.NewTLS(withALPN(holder.ServerConfig()))))
	}
	return s
}

// withALPN offers HTTP/2, without which gRPC clients refuse a TLS server.
func withALPN(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{"h2"}
	return c
}

func (s *grpcServer) String() string         { return "gRPC server" }
func (s *grpcServer) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, then lets requests under way end for drainTime.
func (s *grpcServer) Run(ctx context.Context) error {
	server := grpc.NewServer(s.options...) // which starts its workers
	providerpb.RegisterProviderServer(server, s.services.provider)
	peerpb.RegisterPeerServer(server, s.services.peer)
	nodepb.RegisterNodeServer(server, s.services.node)
	grpc_health_v1.RegisterHealthServer(server, s.health)
	s.metrics.Initialize(server)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(s.listener) }()
	var following sync.WaitGroup
	defer following.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.tellHealth()
	following.Go(func() { s.followHealth(ctx) })
	close(s.ready)
	select {
	case err := <-failed:
		server.Stop()
		return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
	case <-ctx.Done():
	}
	s.health.Shutdown() // NOT_SERVING: balancers and watching clients go elsewhere
	timer := time.AfterFunc(drainTime, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
	}
	return nil
}

// followHealth keeps the health service up to date until ctx ends.
func (s *grpcServer) followHealth(ctx context.Context) {
	for {
		changed := s.cordons.Changed()
		s.tellHealth()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// tellHealth lets balancers leave a node that is being drained before it goes. Whoever asks it all the same is answered.
func (s *grpcServer) tellHealth() {
	health := grpc_health_v1.HealthCheckResponse_SERVING
	if draining(s.cordons, s.node) {
		health = grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	s.health.SetServingStatus("", health)
	s.health.SetServingStatus(providerpb.Provider_ServiceDesc.ServiceName, health)
}

func draining(cordons *cordon.Store, node string) bool {
	c, _ := cordons.Of(node)
	return c.Draining
}

// recoverPanics makes a panic of a handler that request's failure instead of the agent's.
func recoverPanics(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(ctx, "request panicked", "rpc", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = status.Errorf(codes.Internal, "%s: panic: %v", info.FullMethod, p)
			}
		}()
		return handler(ctx, req)
	}
}

// httpServer serves /healthz (the process lives), /readyz (it can serve requests now) and /metrics.
type httpServer struct {
	listener net.Listener
	server   *http.Server
	ready    chan struct{}
}

func newHTTPServer(l net.Listener, reg *metrics.Registry, monitor *health.Monitor, drained func() bool, agentReady <-chan struct{}, log *slog.Logger) *httpServer {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		trouble := monitor.Trouble()
		if trouble == "" && drained() {
			trouble = "draining"
		}
		select {
		case <-agentReady:
		default:
			trouble = "starting"
		}
		if trouble != "" {
			answer(w, http.StatusServiceUnavailable, trouble)
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	mux.Handle("GET /metrics", reg.Handler(log))
	return &httpServer{
		listener: l, ready: make(chan struct{}),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)},
	}
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	// The only error is that the client has gone.
	_, _ = fmt.Fprintln(w, text)
}

func (s *httpServer) String() string         { return "metrics server" }
func (s *httpServer) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends.
func (s *httpServer) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.listener) }()
	close(s.ready)
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if s.server.Shutdown(stop) != nil { // a client that does not go: end its connection
		if err := s.server.Close(); err != nil {
			return fmt.Errorf("close %s: %w", s.listener.Addr(), err)
		}
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
	}
	return nil
}
