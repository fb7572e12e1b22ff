// Package metrics offers the agent's own figures to Prometheus. They are read when a scrape asks; nothing is pushed,
// and no scrape causes a PVE call or a QMP session.
package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// latencyBuckets are seconds, from a watched answer to a slow PVE call.
var latencyBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Registry holds the series of one agent.
type Registry struct {
	reg  *prometheus.Registry
	grpc *grpcprom.ServerMetrics
	pve  *prometheus.HistogramVec
}

// New returns a registry with the Go runtime's, the process's, the gRPC server's and our own series.
func New() *Registry {
	r := &Registry{
		reg:  prometheus.NewRegistry(),
		grpc: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramBuckets(latencyBuckets))),
		pve: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pve_rigaud_pve_api_request_duration_seconds", Buckets: latencyBuckets,
			Help: "Time of calls of the PVE API, without the wait for a free slot; code 0 means that no answer came.",
		}, []string{"method", "path", "code"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pve_rigaud_build_info", Help: "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "go": runtime.Version()},
	}, func() float64 { return 1 })
	r.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), r.grpc, r.pve, build)
	return r
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

// ObservePVE counts one call of the PVE API.
func (r *Registry) ObservePVE(method, path string, status int, d time.Duration) {
	r.pve.WithLabelValues(method, path, strconv.Itoa(status)).Observe(d.Seconds())
}

// UnaryInterceptor counts and times gRPC calls.
func (r *Registry) UnaryInterceptor() grpc.UnaryServerInterceptor {
	return r.grpc.UnaryServerInterceptor()
}

// Initialize makes the series of every method of the server, so that a rate is there before the first call.
func (r *Registry) Initialize(s *grpc.Server) { r.grpc.InitializeMetrics(s) }

// WatchGate offers the figures of the QMP gate.
func (r *Registry) WatchGate(g *qmp.Gate) {
	counter := func(name, help string, read func(qmp.GateStats) float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return read(g.Stats()) })
	}
	r.reg.MustRegister(
		counter("pve_rigaud_qmp_sessions_total", "Conversations held with QEMU monitors.", func(s qmp.GateStats) float64 { return float64(s.Sessions) }),
		counter("pve_rigaud_qmp_busy_total", "Conversations that did not come about because another client held the monitor.",
			func(s qmp.GateStats) float64 { return float64(s.Busy) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pve_rigaud_qmp_longest_hold_seconds", Help: "The longest time a QEMU monitor was held since the agent started.",
		}, func() float64 { return g.Stats().LongestHold.Seconds() }),
	)
}

// WatchJournal offers the figures of the operation journal.
func (r *Registry) WatchJournal(j *ops.Journal, e *ops.Engine) {
	r.reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "pve_rigaud_journal_bytes", Help: "Size of the operation journal.",
		}, func() float64 { return float64(j.Size()) }),
		operations{e},
	)
}

// operations counts the running operations by kind, and tells the age of the oldest.
type operations struct{ engine *ops.Engine }

var (
	running = prometheus.NewDesc("pve_rigaud_operations_running", "Operations under way.", []string{"kind"}, nil)
	oldest  = prometheus.NewDesc("pve_rigaud_operations_oldest_seconds", "Age of the oldest operation under way; 0 when there is none.", nil, nil)
)

// Describe implements prometheus.Collector.
func (operations) Describe(c chan<- *prometheus.Desc) { c <- running; c <- oldest }

// Collect implements prometheus.Collector.
func (o operations) Collect(c chan<- prometheus.Metric) {
	counts, first := map[ops.Kind]int{}, time.Now()
	now := first
	for _, op := range o.engine.Active() {
		counts[op.Kind]++
		if op.Created.Before(first) {
			first = op.Created
		}
	}
	for _, k := range []ops.Kind{
		ops.Create, ops.Clone, ops.Delete, ops.Power, ops.Reconfigure, ops.SnapshotCreate, ops.SnapshotDelete, ops.SnapshotRevert,
	} {
		c <- prometheus.MustNewConstMetric(running, prometheus.GaugeValue, float64(counts[k]), string(k))
	}
	c <- prometheus.MustNewConstMetric(oldest, prometheus.GaugeValue, now.Sub(first).Seconds())
}

// Handler answers scrapes.
func (r *Registry) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
}
