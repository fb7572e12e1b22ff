package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// spreads are the sizes of clusters that are measured.
var spreads = []int{3, 32, 64}

// TestSpread measures in virtual time what `make bench` prints: how soon all
// agents know that capacity has changed or that a node has crashed, and what
// gossip costs when nothing happens.
func TestSpread(t *testing.T) {
	for _, n := range spreads {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			begin := time.Now()
			virtual(t, func(l *lab) { l.spread(n) })
			t.Logf("%d agents: %.1f s of real time", n, time.Since(begin).Seconds())
		})
	}
}

func (l *lab) spread(n int) {
	all := l.cluster(n)
	l.until(time.Minute, "all know the digests of all", func() bool {
		return !slices.ContainsFunc(all, func(a *agent) bool {
			return !know(all, a.name, func(view.Node) bool { return true })
		})
	})
	time.Sleep(5 * time.Second) // until what was said at the start is said

	const idle = 20 * time.Second
	packets, streams := l.traffic(all)
	time.Sleep(idle)
	packetsThen, streamsThen := l.traffic(all)
	packets, streams = (packetsThen-packets)/idle.Seconds(), (streamsThen-streams)/idle.Seconds()

	changed := usualDigest()
	changed.MemoryFree -= changed.MemoryTotal / 10
	all[0].digest.Store(&changed)
	change := l.until(time.Minute, "all know the change", func() bool {
		return know(all, all[0].name, func(s view.Node) bool { return s.Digest.MemoryFree == changed.MemoryFree })
	})

	dead, rest := all[n-1], all[:n-1]
	l.net.Power(false, dead.host())
	crash := l.until(time.Minute, "all know of the crash", func() bool { return everybody(rest, rest...) })

	l.Logf("%d agents: capacity change seen by all after %.1f s, crash after %.1f s; idle %.0f B/s sent per node (%.0f in packets, %.0f in streams)",
		n, change.Seconds(), crash.Seconds(), packets+streams, packets, streams)
	if change > 3*time.Second {
		l.Errorf("a change of capacity took %v", change)
	}
	if crash > 20*time.Second {
		l.Errorf("a crash was seen after %v", crash)
	}
}

// traffic is what a node has sent on the average, in bytes.
func (l *lab) traffic(all []*agent) (packets, streams float64) {
	for _, a := range all {
		sum := l.net.Traffic(a.addr)
		packets += float64(sum.PacketBytes) / float64(len(all))
		streams += float64(sum.StreamBytes) / float64(len(all))
	}
	return packets, streams
}
