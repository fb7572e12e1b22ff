// Package health watches whether this endpoint can work, so that Validate and the readiness probe answer from what
// is known already.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// Config configures a Monitor.
type Config struct {
	PVE      *pve.Client
	Watcher  *pmxcfs.Watcher
	Interval time.Duration // between two probes of the API; default 15 s
	Log      *slog.Logger
}

// Monitor probes the PVE API now and then and combines what it finds with the state of /etc/pve.
type Monitor struct {
	cfg      Config
	ready    chan struct{}
	draining atomic.Bool

	mu   sync.RWMutex   // guards api and cpus
	api  error          // of the latest probe
	cpus map[string]int // host CPUs by node
}

// New returns a monitor; nothing is probed before Run.
func New(cfg Config) *Monitor {
	if cfg.Interval == 0 {
		cfg.Interval = 15 * time.Second
	}
	return &Monitor{cfg: cfg, ready: make(chan struct{})}
}

func (m *Monitor) String() string { return "health" }

// Ready is closed after the first probe, whatever it found.
func (m *Monitor) Ready() <-chan struct{} { return m.ready }

// Run probes until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	ticker := time.NewTicker(m.cfg.Interval)
	defer ticker.Stop()
	m.probe(ctx)
	close(m.ready)
	for {
		select {
		case <-ticker.C:
			m.probe(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// probe lists the nodes: a cheap call that needs a working daemon and an accepted token, and tells the nodes' CPUs.
func (m *Monitor) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Interval)
	defer cancel()
	nodes, err := m.cfg.PVE.Nodes(ctx)
	if ctx.Err() != nil && err == nil {
		err = ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if (err == nil) != (m.api == nil) || m.cpus == nil {
		m.logChange(ctx, err)
	}
	if m.api = err; err != nil {
		return
	}
	cpus := make(map[string]int, len(nodes))
	for _, n := range nodes {
		if n.MaxCPU > 0 {
			cpus[n.Node] = int(n.MaxCPU)
		} else {
			cpus[n.Node] = m.cpus[n.Node] // an offline node tells none: what it had still holds
		}
	}
	m.cpus = cpus
}

func (m *Monitor) logChange(ctx context.Context, err error) {
	if err != nil {
		m.cfg.Log.WarnContext(ctx, "the PVE API cannot be used", "err", err)
		return
	}
	m.cfg.Log.InfoContext(ctx, "the PVE API can be used")
}

// CPUs returns the host CPUs of a node, 0 when unknown.
func (m *Monitor) CPUs(node string) int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.cpus[node]
}

// Draining reports whether Drain was called.
func (m *Monitor) Draining() bool { return m.draining.Load() }

// Drain makes Trouble say that the agent is stopping.
func (m *Monitor) Drain() { m.draining.Store(true) }

// Trouble returns what keeps RPCs from working now, in words; "" when nothing does.
func (m *Monitor) Trouble() string {
	var troubles []string
	if m.draining.Load() {
		troubles = append(troubles, "the agent is stopping")
	}
	if world, err := m.cfg.Watcher.World(); err != nil {
		troubles = append(troubles, err.Error())
	} else if !world.Quorate {
		troubles = append(troubles, fmt.Sprintf("node %s has no quorum: VMs can be read, but not changed", world.Node))
	}
	// Every call tells, the probes among them: trouble is known as soon as a request has met it, and its end too.
	if _, err := m.cfg.PVE.Health(); err != nil {
		troubles = append(troubles, "the PVE API cannot be used: "+err.Error())
	}
	return strings.Join(troubles, "; ")
}
