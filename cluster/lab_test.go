package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/clustertest"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// lab is a cluster in memory and in virtual time: it is used in a bubble of
// testing/synctest.
type lab struct {
	testing.TB
	net   clustertest.Network
	seeds atomic.Pointer[[]Seed]
	log   logbook
}

// agent is one of its nodes.
type agent struct {
	*Cluster
	name string
	addr netip.AddrPort
	stop func() // its process; returns when it has ended

	spoil  func(*Cluster) // before it runs; may be nil
	digest atomic.Pointer[view.Digest]
	facts  atomic.Pointer[view.Facts]
	keys   atomic.Pointer[[][]byte]
}

func (a *agent) host() netip.Addr { return a.addr.Addr() }

// logbook is what all agents log.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logbook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func key(n byte) []byte { return bytes.Repeat([]byte{n}, KeySize) }

func nodeName(n int) string { return fmt.Sprintf("pve%d", n) }

func nodeAddr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 7946)
}

func usualDigest() view.Digest {
	return view.Digest{
		MemoryTotal: 64 << 30, MemoryFree: 32 << 30, MemoryPromised: 16 << 30,
		VCPUs: 32, VCPUsPromised: 40, Load: 480, PSICPU: 312, Quorate: true,
	}
}

func usualFacts() view.Facts {
	return view.Facts{
		PVEVersion: "9.1.2",
		Storages: []view.Storage{
			{Name: "local", Type: "dir", Total: 100 << 30, Free: 71 << 30, Content: []string{"iso", "vztmpl", "snippets"}},
			{Name: "local-lvm", Type: "lvmthin", Total: 900 << 30, Free: 433 << 30, Content: []string{"images", "rootdir"}},
			{Name: "ceph", Type: "rbd", Total: 90 << 40, Free: 41 << 40, Content: []string{"images"}, Shared: true},
		},
		Templates: []view.Template{{VMID: 9000, Name: "debian-13"}, {VMID: 9001, Name: "ubuntu-26.04"}},
		Bridges:   []string{"vmbr0", "vmbr1"},
		Tags:      map[string]int{"web": 4, "db": 2},
		VMs:       31, Running: 28,
	}
}

// config is that of node n, whose seeds are all nodes of the lab.
func (l *lab) config(n int) (Config, *agent) {
	a := &agent{name: nodeName(n), addr: nodeAddr(n)}
	digest, facts, keys := usualDigest(), usualFacts(), [][]byte{key(1)}
	a.digest.Store(&digest)
	a.facts.Store(&facts)
	a.keys.Store(&keys)
	return Config{
		Self: Member{
			Name: a.name, Address: netip.AddrPortFrom(a.host(), 9443), Version: "0.1.0", Protocol: Protocols{1, 1},
		},
		Keys: func() ([][]byte, error) { return *a.keys.Load(), nil },
		Seeds: func() []Seed {
			if seeds := l.seeds.Load(); seeds != nil {
				return slices.Clone(*seeds)
			}
			return nil
		},
		Digest: func() view.Digest { return *a.digest.Load() },
		Facts:  func() view.Facts { return *a.facts.Load() },
		Log:    slog.New(slog.NewTextHandler(&l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, a
}

// run starts a node, after a change of its configuration.
func (l *lab) run(n int, change ...func(*Config, *agent)) *agent {
	l.Helper()
	cfg, a := l.config(n)
	for _, f := range change {
		f(&cfg, a)
	}
	if cfg.Transport == nil {
		cfg.Transport = l.net.Transport(a.addr)
	}
	l.start(cfg, a)
	return a
}

func (l *lab) start(cfg Config, a *agent) {
	l.Helper()
	c, err := New(cfg)
	if err != nil {
		l.Fatal(err)
	}
	a.Cluster = c
	if a.spoil != nil {
		a.spoil(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := c.Run(ctx); err != nil {
			l.Errorf("%s: %v", a.name, err)
		}
	}()
	a.stop = func() {
		cancel()
		<-ended
	}
	l.Cleanup(a.stop)
	<-c.Ready()
}

// cluster starts nodes 1 to n, and waits until each sees all.
func (l *lab) cluster(n int) []*agent {
	l.Helper()
	started, seeds := make([]*agent, n), make([]Seed, n)
	for i := range seeds {
		seeds[i] = Seed{nodeName(i + 1), nodeAddr(i + 1)}
	}
	l.seeds.Store(&seeds)
	for i := range started {
		started[i] = l.run(i + 1)
	}
	l.until(time.Minute, "all see all", func() bool { return everybody(started, started...) })
	return started
}

// until waits in virtual time. It returns how long it took.
func (l *lab) until(limit time.Duration, what string, cond func() bool) time.Duration {
	l.Helper()
	begin := time.Now()
	for !cond() {
		if time.Since(begin) > limit {
			l.Fatalf("waited %v in vain until %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

// everybody says whether all observers see exactly the others alive.
func everybody(observers []*agent, others ...*agent) bool {
	for _, a := range observers {
		alive := map[string]bool{}
		for _, p := range a.Peers() {
			if p.Alive {
				alive[p.Name] = true
			}
		}
		if len(alive) != len(others) {
			return false
		}
		for _, o := range others {
			if !alive[o.name] {
				return false
			}
		}
	}
	return true
}

// know says whether all observers have a digest of a node that satisfies cond.
func know(observers []*agent, name string, cond func(view.Node) bool) bool {
	for _, a := range observers {
		if p, known := a.Peer(name); !known || p.State.DigestAt.IsZero() || !cond(p.State) {
			return false
		}
	}
	return true
}

// set changes the digest of a node.
func (a *agent) set(change func(*view.Digest)) {
	d := *a.digest.Load()
	change(&d)
	a.digest.Store(&d)
}

// peer is a node as a sees it.
func (a *agent) peer(t testing.TB, name string) Peer {
	t.Helper()
	p, known := a.Peer(name)
	if !known {
		t.Fatalf("%s does not know %s", a.name, name)
	}
	return p
}
