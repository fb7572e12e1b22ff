package qmp_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// BenchmarkShortSession is a whole session: connect, greeting, negotiation,
// query-status, close. longest-us is the longest time that the monitor was ours.
func BenchmarkShortSession(b *testing.B) {
	for _, backend := range backends {
		b.Run(backend.name, func(b *testing.B) {
			m := backend.start(b)
			g := qmp.NewGate(qmp.GateConfig{})
			b.ReportAllocs()
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				err := g.Do(b.Context(), m.path, qmp.User, func(s *qmp.Session) error {
					var status struct{ Status string }
					return s.Execute(b.Context(), "query-status", nil, &status)
				})
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/float64(time.Microsecond), "p50-us")
			b.ReportMetric(float64(g.Stats().LongestHold)/float64(time.Microsecond), "longest-us")
		})
	}
}
