// Package rig runs a simulated PVE cluster with agents on some of its nodes in one process, for tests, benchmarks and
// the demo. Everything speaks the real bytes: the agents are assembled as the program assembles them, from the
// configuration files that pvesim writes, and are called over gRPC.
package rig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// Config describes a Rig.
type Config struct {
	Sim pvesim.Config // without Dir: a short temporary one is made, and removed by Close
	Log *slog.Logger  // of the agents; default: discarded
}

// Rig is a running cluster.
type Rig struct {
	Sim *pvesim.Cluster
	Dir string
	log *slog.Logger
	tls bool

	mu     sync.Mutex // guards agents
	agents []*Agent
}

// Start starts the cluster, without agents.
func Start(ctx context.Context, cfg Config) (*Rig, error) {
	// Short, because unix socket paths below it must stay under 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "rig")
	if err != nil {
		return nil, err
	}
	r := &Rig{Dir: dir, log: cfg.Log, tls: cfg.Sim.TLS}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	cfg.Sim.Dir = dir
	if cfg.Sim.SchemaFile == "" {
		cfg.Sim.SchemaFile = os.Getenv("PVE_API_SCHEMA")
	}
	if r.Sim, err = pvesim.New(cfg.Sim); err == nil {
		err = r.Sim.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

// Close stops the agents and the cluster and removes the directory.
func (r *Rig) Close() error {
	r.mu.Lock()
	agents := r.agents
	r.agents = nil
	r.mu.Unlock()
	errs := make([]error, len(agents))
	var stops sync.WaitGroup
	for i, a := range agents {
		stops.Go(func() { errs[i] = a.Stop() })
	}
	stops.Wait()
	return errors.Join(append(errs, r.Sim.Close(), os.RemoveAll(r.Dir))...)
}

// Agent is a running agent with a client connected to it.
type Agent struct {
	Node     *pvesim.Node
	Config   config.Config
	Provider providerpb.ProviderClient
	Conn     *grpc.ClientConn
	Metrics  string // base URL of /healthz, /readyz, /metrics

	stop func() error
}

// Load returns the configuration that pvesim wrote for a node, with flags that override it.
func (r *Rig) Load(node string, flags ...string) (config.Config, error) {
	n := r.Sim.Node(node)
	if n == nil {
		return config.Config{}, fmt.Errorf("no node %q in the cluster", node)
	}
	args := append([]string{"--config", n.AgentYAML}, flags...)
	return config.Load(args, func(string) (string, bool) { return "", false })
}

// StartAgent starts the agent of a node and waits until it is ready. Flags override its configuration file.
func (r *Rig) StartAgent(ctx context.Context, node string, flags []string, options ...agent.Option) (*Agent, error) {
	cfg, err := r.Load(node, flags...)
	if err != nil {
		return nil, err
	}
	a, err := agent.New(ctx, cfg, r.log.With("node", node), options...)
	if err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(runCtx) }()
	select {
	case <-a.Ready():
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("agent of %s ended before it was ready: %w", node, err)
	case <-ctx.Done():
		cancel()
		return nil, errors.Join(ctx.Err(), <-ended)
	}
	creds, err := r.Credentials()
	var conn *grpc.ClientConn
	if err == nil {
		conn, err = grpc.NewClient(a.GRPCAddr(), grpc.WithTransportCredentials(creds))
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, <-ended)
	}
	running := &Agent{
		Node: r.Sim.Node(node), Config: cfg, Conn: conn, Provider: providerpb.NewProviderClient(conn), Metrics: "http://" + a.MetricsAddr(),
	}
	running.stop = sync.OnceValue(func() error {
		closed := conn.Close()
		cancel()
		return errors.Join(closed, <-ended)
	})
	r.mu.Lock()
	r.agents = append(r.agents, running)
	r.mu.Unlock()
	return running, nil
}

// Credentials are those of a client of the agents: with TLS, the one that pvesim makes a certificate for.
func (r *Rig) Credentials() (credentials.TransportCredentials, error) {
	if !r.tls {
		return insecure.NewCredentials(), nil
	}
	dir := filepath.Join(r.Dir, "tls")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("no certificate in %s", dir)
	}
	return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}), nil
}

// Stop stops the agent as SIGTERM does, and returns the error it ended with.
func (a *Agent) Stop() error { return a.stop() }

// InstallQEMU is the command that installs what real VMs need.
const InstallQEMU = "apt-get install qemu-system-x86 qemu-utils linux-image-cloud-amd64 busybox-static qemu-guest-agent"

// Real reports whether VMs are real QEMU processes.
func (r *Rig) Real() bool { return r.Sim.Hypervisor() != "fake" }
