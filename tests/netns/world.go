package netns

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario"
)

// ErrNotHere says that something can only be had in virtual time.
var ErrNotHere = errors.New("cannot be done with real processes")

// Config describes a World.
type Config struct {
	Nodes int
	Logs  string       // a directory for the logs of the agents, one file for each node, and of the client; "": with the other files
	Log   *slog.Logger // of the simulated cluster

	Change []func(*pvesim.Config) // of the simulated cluster, one after the other
}

// World is a simulated cluster with the real program on its nodes. VMs are stand-ins and can be switched on.
type World struct {
	dir, program, logs string

	net   *network
	sim   *pvesim.Cluster
	creds credentials.TransportCredentials

	said  *os.File     // the log of the client's calls
	calls *slog.Logger // writes it

	mu     sync.Mutex // guards agents and broken
	agents map[string]*process
	broken []error // what went wrong where nobody could be told
}

// networks counts those of this process.
var networks atomic.Int32

// New starts a simulated cluster in a network of its own, without agents. The process has to be one that [Enter] started.
// When it fails nothing is left.
func New(ctx context.Context, cfg Config) (*World, error) {
	base := os.Getenv(dirEnv)
	number := int(networks.Add(1)) - 1
	w := &World{program: program(base), dir: filepath.Join(base, strconv.Itoa(number)), logs: cfg.Logs, agents: map[string]*process{}}
	if w.logs == "" {
		w.logs = filepath.Join(base, fmt.Sprintf("log%d", number))
	}
	if err := os.MkdirAll(w.logs, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.said, err = os.OpenFile(filepath.Join(w.logs, "client.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	w.calls = slog.New(slog.NewTextHandler(w.said, nil))
	var names []string
	for i := range cfg.Nodes {
		names = append(names, fmt.Sprintf("pve%d", i+1))
	}
	if w.net, err = newNetwork(ctx, number, names); err == nil {
		err = w.startCluster(ctx, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close(context.WithoutCancel(ctx)))
	}
	return w, nil
}

func (w *World) startCluster(ctx context.Context, cfg Config) (err error) {
	host := w.net.host()
	sim := pvesim.Config{
		Dir: w.dir, Nodes: cfg.Nodes, QEMU: pvesim.Fake, PMXCFS: pvesim.FUSE, TLS: true, Log: cfg.Log,
		TaskDelay: 300 * time.Millisecond, CorosyncDelay: 3 * time.Second,
		APIHost: host, Control: netip.AddrPortFrom(host, 0).String(),
	}
	for i := range cfg.Nodes {
		sim.Addresses = append(sim.Addresses, w.net.address(i))
	}
	for _, change := range cfg.Change {
		change(&sim)
	}
	if w.sim, err = pvesim.New(sim); err != nil {
		return err
	}
	background := context.WithoutCancel(ctx)
	w.sim.OnCut(func(from, to string, cut bool) { w.note(w.net.setCut(background, link{from, to}, cut)) })
	w.sim.OnPower(func(node string, on bool) {
		if !on {
			w.note(w.KillAgent(background, node))
		}
	})
	if err := w.sim.Start(ctx); err != nil {
		return err
	}
	if w.creds, err = clientCredentials(filepath.Join(w.dir, "tls")); err != nil {
		return err
	}
	return w.addTemplates()
}

// clientCredentials are those that the simulated cluster makes for a client.
func clientCredentials(dir string) (credentials.TransportCredentials, error) {
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

// addTemplates gives each node a template of its own.
func (w *World) addTemplates() error {
	args, err := w.sim.Config(pvesim.TemplateID)
	if err != nil {
		return err
	}
	for _, n := range w.sim.Nodes() {
		options := map[string]string{"template": "1", "name": scenario.TemplateOn(n.Name), "args": args["args"]}
		if err := w.sim.AddVM(pvesim.TemplateID+100+n.Index, n.Name, options); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the agents, the cluster and the network and removes the files. The error has all that went wrong in the
// world's life and was told to nobody.
func (w *World) Close(ctx context.Context) error {
	var errs []error
	for _, node := range w.net.nodes {
		errs = append(errs, w.StopAgent(ctx, node))
	}
	if w.sim != nil {
		errs = append(errs, w.sim.Close())
		for _, e := range w.sim.SchemaErrors() {
			errs = append(errs, fmt.Errorf("a request that PVE's schema does not allow: %s", e))
		}
	}
	errs = append(errs, w.net.close(ctx), os.RemoveAll(w.dir), w.said.Close())
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(append(errs, w.broken...)...)
}

// note keeps an error for Close.
func (w *World) note(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, err)
}

// Logs is where the agents' logs are, and that of the client's calls (client.log).
func (w *World) Logs() string { return w.logs }

// Nodes implements scenario.World.
func (w *World) Nodes() []string { return w.net.nodes }

// Dir implements scenario.World.
func (w *World) Dir() string { return w.dir }

// Do implements scenario.World. It knows two verbs beside those of the simulated cluster: see verbs.go.
func (w *World) Do(ctx context.Context, line string) (string, error) {
	words := strings.Fields(line)
	if len(words) > 0 {
		if verb, ok := verbs[words[0]]; ok {
			return "", verb(w, ctx, words[1:])
		}
	}
	return w.sim.Do(ctx, line)
}

func (w *World) agent(node string) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.agents[node]; p != nil && p.lives() {
		return p
	}
	return nil
}

// StartAgent implements scenario.World.
func (w *World) StartAgent(ctx context.Context, node string) error {
	w.mu.Lock()
	last := w.agents[node]
	w.mu.Unlock()
	if last != nil && last.lives() {
		return nil
	}
	p, err := w.start(ctx, node)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agents[node] = p
	return nil
}

// StartOther implements scenario.World, and always fails: the program speaks the versions that it speaks.
func (w *World) StartOther(context.Context, string, string, uint32, uint32) error {
	return fmt.Errorf("start an agent of another version: %w", ErrNotHere)
}

// StopAgent implements scenario.World.
func (w *World) StopAgent(_ context.Context, node string) error {
	if p := w.agent(node); p != nil {
		return p.stop()
	}
	return nil
}

// KillAgent implements scenario.World.
func (w *World) KillAgent(_ context.Context, node string) error {
	if p := w.agent(node); p != nil {
		p.kill()
	}
	return nil
}

// Dial implements scenario.World: from the bridge, which nothing cuts from any node.
func (w *World) Dial(node string) (providerpb.ProviderClient, func() error, error) {
	conn, err := grpc.NewClient(w.sim.Node(node).GRPC, grpc.WithTransportCredentials(w.creds),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
			begin := time.Now()
			err := call(ctx, method, req, resp, conn, options...)
			w.calls.InfoContext(ctx, "called", "node", node, "method", path.Base(method), "req", req, "resp", resp, "took", time.Since(begin), "err", err)
			return err
		}))
	if err != nil {
		return nil, nil, err
	}
	return providerpb.NewProviderClient(conn), conn.Close, nil
}

// CutGossip implements scenario.World.
func (w *World) CutGossip(ctx context.Context, a, b string, cut bool) error {
	return w.net.setGossip(ctx, a, b, cut)
}

// Lose implements scenario.World: of all packets, TCP's too.
func (w *World) Lose(ctx context.Context, a, b string, percent int) error {
	return w.net.setLoss(ctx, a, b, percent)
}

// SetClock implements scenario.World, and always fails: the machine has one clock.
func (w *World) SetClock(context.Context, string, time.Duration) error {
	return fmt.Errorf("set the clock of a node: %w", ErrNotHere)
}

// keysTime is longer than agents take to notice new keys.
const keysTime = 10 * time.Second

// RotateGossipKey implements scenario.World: the new key is added, then comes first, and the old one goes when all have it.
func (w *World) RotateGossipKey(ctx context.Context) error {
	path := filepath.Join(w.sim.Tree(), "priv/pve-rigaud/gossip.key")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // it never fails
	fresh := base64.StdEncoding.EncodeToString(random) + "\n"
	for _, keys := range []string{string(old) + fresh, fresh + string(old), fresh} {
		if err := os.WriteFile(path+".new", []byte(keys), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		if err := w.Wait(ctx, keysTime); err != nil {
			return err
		}
	}
	return nil
}

// Heal implements scenario.World.
func (w *World) Heal(ctx context.Context) error {
	errs := []error{w.net.heal(ctx)}
	lines := []string{"heal"}
	for _, node := range w.Nodes() {
		lines = append(lines, "node "+node+" on", "readonly "+node+" off", "vmlist-lag "+node+" 0s")
	}
	for _, line := range lines {
		_, err := w.sim.Do(ctx, line)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Wait implements scenario.World.
func (w *World) Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
