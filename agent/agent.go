// Package agent assembles one node's agent from its rooms and runs them: it is the only place where they are wired
// together.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/pve-rigaud/pve-rigaud/agent/capacity"
	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/drain"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/health"
	"github.com/pve-rigaud/pve-rigaud/agent/image"
	"github.com/pve-rigaud/pve-rigaud/agent/metrics"
	"github.com/pve-rigaud/pve-rigaud/agent/mtls"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/peer"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/provider"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/scheduler"
	"github.com/pve-rigaud/pve-rigaud/agent/snippet"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"golang.org/x/sync/errgroup"
)

// Task is a long-running part of the agent.
type Task interface {
	Run(ctx context.Context) error // returns nil when ctx has ended
	Ready() <-chan struct{}        // closed when the task can be relied on
	String() string
}

// Agent is one node's agent.
type Agent struct {
	cfg      config.Config
	log      *slog.Logger
	journal  *ops.Journal
	api      *pve.Client
	policy   plan.Policy
	monitor  *health.Monitor
	capacity *capacity.Source
	network  Network
	rooms    []Task // what the servers rely on
	servers  []Task // what clients see; they start after the rooms and stop before them
	grpc     net.Listener
	http     net.Listener
	ready    chan struct{}
}

// New assembles an agent and opens its listeners and its journal; nothing runs before Run. What it has opened is
// closed by Run, or by New itself when it fails.
func New(ctx context.Context, cfg config.Config, log *slog.Logger, with ...Option) (_ *Agent, err error) {
	a := &Agent{cfg: cfg, log: log, ready: make(chan struct{})}
	opts := options{network: &host{}, now: time.Now, mhz: hostMHz, version: "unknown", protocol: protocol}
	for _, o := range with {
		o(&opts)
	}
	a.network = opts.network
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	tree := pmxcfs.Open(cfg.Paths.PMXCFS)
	watcher := pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: tree, Node: cfg.Node, Interval: cfg.Watch, Log: log})
	var holder *mtls.Holder
	if !cfg.Listen.Plaintext {
		if holder, err = mtls.New(mtlsConfig(cfg.Listen, watcher, log)); err != nil {
			return nil, fmt.Errorf("listen.cert, listen.key, listen.ca: %w", err)
		}
	}
	reg := metrics.New()
	if a.api, err = newClient(cfg, log, opts.network, reg.ObservePVE); err != nil {
		return nil, err
	}
	if a.journal, err = ops.OpenJournal(filepath.Join(cfg.StateDir, "journal.db")); err != nil {
		return nil, err
	}
	if a.grpc, err = a.network.Listen(ctx, "tcp", cfg.Listen.GRPC); err != nil {
		return nil, fmt.Errorf("listen.grpc: %w", err)
	}
	if a.http, err = a.network.Listen(ctx, "tcp", cfg.Metrics); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if a.policy, err = newPolicy(cfg); err != nil {
		return nil, err
	}
	a.wire(tree, watcher, holder, reg, opts)
	return a, nil
}

// wire makes the rooms and connects them.
func (a *Agent) wire(tree *pmxcfs.Tree, watcher *pmxcfs.Watcher, holder *mtls.Holder, reg *metrics.Registry, o options) {
	cfg, log := a.cfg, a.log
	gate := qmp.NewGate(qmp.GateConfig{})
	tracker := status.New(status.Config{RunDir: cfg.Paths.Run, Gate: gate, Log: log})
	plugger := hotplug.New(hotplug.Config{Node: cfg.Node, Tree: tree, RunDir: cfg.Paths.Run, LockDir: cfg.Paths.Lock, Gate: gate, Log: log, Limits: o.plugging})
	engine := ops.New(ops.Config{Journal: a.journal, Log: log, Hook: o.hook})
	a.monitor = health.New(health.Config{PVE: a.api, Watcher: watcher, Log: log})
	ours := record.Config{Dir: filepath.Join(cfg.Paths.PMXCFS, "priv", "pve-rigaud"), Now: o.now}
	records, ids, vmids := record.New(ours), record.NewIDs(ours), record.Range{Min: cfg.VMIDRange.Min, Max: cfg.VMIDRange.Max}
	cordons := cordon.New(cordon.Config{Dir: ours.Dir, Interval: cfg.Watch, Now: o.now, Log: log})
	var schedule *scheduler.Scheduler // below: it asks the capacity, and others
	a.capacity = capacity.New(capacity.Config{
		Node: cfg.Node, ProcDir: cfg.Paths.Proc, SysDir: cfg.Paths.Sys, World: watcher.World, Running: tracker.Running, API: a.api, Log: log,
		Making:   func() []capacity.Making { return schedule.Making() },
		Cordoned: func() bool { _, is := cordons.Of(cfg.Node); return is },
		Draining: func() bool { return draining(cordons, cfg.Node) || a.monitor.Draining() },
	})
	others := a.newFleet(watcher, holder, o)
	schedule = a.newScheduler(others, cordons, records, o)
	snippets := snippet.New(snippet.Config{
		Node: cfg.Node, Watcher: watcher, Records: records, Storage: cfg.SnippetsStorage, Heard: others.gossip.Changed, Call: others.call, Now: o.now, Log: log,
	})
	images := image.New(image.Config{
		Node: cfg.Node, Tree: tree, Watcher: watcher, Records: record.NewImages(ours), PVE: a.api, Ops: engine, IDs: ids, VMIDs: vmids,
		Replicas: cfg.Placement.ImageReplicas, Devices: o.devices, Every: o.replicas,
		Cordoned: func(node string) string { return why(cordons, node) }, Call: others.call, Now: o.now, Log: log,
	})
	guests := guest.New(guest.Config{
		Node: cfg.Node, Tree: tree, Watcher: watcher, Status: tracker, PVE: a.api, Plugger: plugger,
		Records: records, IDs: ids, VMIDs: vmids, Ops: engine, Images: images, Admission: schedule, Snippets: snippets, Now: o.now, Log: log,
		CPUs: a.monitor.CPUs, MHz: o.mhz, ResolvConf: o.resolv, Policy: a.policy,
		LockDir: cfg.Paths.Lock, DeleteForeign: cfg.DeleteForeign, ConsoleURL: cfg.ConsoleURL, TaskTimeout: cfg.Tasks.Timeout,
	})
	places := placer{node: cfg.Node, guests: guests, scheduler: schedule}
	others.connect(a.network, records, places, log)
	service := provider.New(provider.Config{
		Guests: guests, Images: images, Health: a.monitor, Fleet: others, DiskTypes: a.policy.DiskTypes(), Client: clientIdentity, SyncWait: cfg.SyncWait, SyncWaitsPerClient: cfg.SyncWaitsPerClient, Log: log,
	})
	drainer := drain.New(drain.Config{
		Node: cfg.Node, Watcher: watcher, Cordons: cordons, Scheduler: schedule, Guests: guests, Ops: engine, Running: tracker.Running, Immovable: guest.Immovable,
		Client: clientIdentity, Call: others.call, Passed: passed, Now: o.now, Log: log,
	})
	peers := &peer.Service{Snippets: snippet.NewService(snippets, others.peer), Admission: schedule, Volumes: images, Moves: drainer, Status: provider.Status}
	nodes := others.newNodeService(records, tracker, images, places, drainer, cordons)
	reg.WatchGate(gate)
	reg.WatchJournal(a.journal, engine)
	a.rooms = []Task{watcher, cordons, tracker, a.monitor, schedule, engine, guests, images, snippets, a.capacity, others.gossip, others.forward}
	a.servers = []Task{
		newGRPCServer(a.grpc, holder, services{provider: service, peer: peers, node: nodes}, cordons, others, reg, log),
		newHTTPServer(a.http, reg, a.monitor, func() bool { return draining(cordons, cfg.Node) }, a.ready, log),
	}
	if cfg.Socket != "" {
		a.servers = append(a.servers, newNodeServer(cfg.Socket, nodes, log))
	}
}

// passed reports whether another agent has passed a call on.
func passed(ctx context.Context) bool {
	_, ok := forward.Forwarded(ctx)
	return ok
}

// why says why a node takes no new VMs, "" if it does, as far as is known.
func why(cordons *cordon.Store, node string) string {
	if c, is := cordons.Of(node); is {
		return c.Why()
	}
	return ""
}

func newClient(cfg config.Config, log *slog.Logger, network Network, observe func(method, path string, status int, d time.Duration)) (*pve.Client, error) {
	c, err := pve.New(pve.Config{
		Endpoint: cfg.PVE.Endpoint, TokenID: cfg.PVE.TokenID, TokenSecret: cfg.PVE.TokenSecret.Reveal(),
		Username: cfg.PVE.Username, Password: cfg.PVE.Password.Reveal(),
		CAFile: cfg.PVE.CABundle, CAPEM: []byte(cfg.PVE.CABundlePEM), ServerName: cfg.PVE.ServerName, InsecureSkipVerify: cfg.PVE.InsecureSkipVerify,
		MaxInFlight: max(1, cfg.PVE.Workers-1), CallTimeout: cfg.PVE.CallTimeout,
		PollMin: cfg.Tasks.PollMin, PollMax: cfg.Tasks.PollMax, Log: log, Observe: observe, Dial: network.Dial,
	})
	if err != nil {
		return nil, fmt.Errorf("pve: %w", err)
	}
	return c, nil
}

// GRPCAddr returns the address the provider service is served on.
func (a *Agent) GRPCAddr() string { return a.grpc.Addr().String() }

// MetricsAddr returns the address of /healthz, /readyz and /metrics.
func (a *Agent) MetricsAddr() string { return a.http.Addr().String() }

// Ready is closed when the agent serves requests.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run runs the agent until ctx ends, or until one of its parts fails: then it returns that part's error. When it
// returns, everything it has started has ended. Requests under way are given drainTime; operations that are still
// running then are resumed at the next start.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	for _, w := range a.cfg.Warnings {
		a.log.WarnContext(ctx, "a setting deserves a look", "setting", w)
	}
	// The rooms outlive ctx until the servers have drained.
	inner, stopRooms := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRooms()
	rooms, roomCtx := errgroup.WithContext(inner)
	start(rooms, roomCtx, a.rooms)
	var served error
	if awaitReady(ctx, roomCtx, a.rooms) {
		served = a.serve(ctx, roomCtx)
	}
	stopRooms()
	return errors.Join(served, rooms.Wait())
}

// serve runs the servers until ctx ends or a room fails.
func (a *Agent) serve(ctx, roomCtx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(roomCtx, func() { stop(context.Cause(roomCtx)) })()
	servers, serverCtx := errgroup.WithContext(ctx)
	start(servers, serverCtx, a.servers)
	servers.Go(func() error { return watchdog(serverCtx, a.log) })
	if awaitReady(ctx, serverCtx, a.servers) {
		close(a.ready)
		a.log.InfoContext(ctx, "ready", "node", a.cfg.Node, "grpc", a.GRPCAddr(), "metrics", a.MetricsAddr())
		notify(ctx, a.log, daemon.SdNotifyReady)
	}
	<-serverCtx.Done()
	a.monitor.Drain()
	notify(ctx, a.log, daemon.SdNotifyStopping)
	return servers.Wait()
}

func start(group *errgroup.Group, ctx context.Context, tasks []Task) {
	for _, t := range tasks {
		group.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
			return nil
		})
	}
}

// awaitReady waits until all tasks are ready; false means that one of the contexts ended before.
func awaitReady(ctx, group context.Context, tasks []Task) bool {
	for _, t := range tasks {
		select {
		case <-t.Ready():
		case <-group.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// close closes what New has opened.
func (a *Agent) close() error {
	var errs []error
	if a.grpc != nil {
		errs = append(errs, closeListener(a.grpc))
	}
	if a.http != nil {
		errs = append(errs, closeListener(a.http))
	}
	if a.journal != nil {
		errs = append(errs, a.journal.Close())
	}
	if a.api != nil {
		a.api.Close()
	}
	return errors.Join(errs...)
}

func closeListener(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func notify(ctx context.Context, log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WarnContext(ctx, "systemd was not told", "state", state, "err", err)
	}
}

// watchdog tells systemd that the agent is alive, at half the interval the unit asks for.
func watchdog(ctx context.Context, log *slog.Logger) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		if err != nil {
			log.WarnContext(ctx, "systemd's watchdog setting cannot be read", "err", err)
		}
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		notify(ctx, log, daemon.SdNotifyWatchdog)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
