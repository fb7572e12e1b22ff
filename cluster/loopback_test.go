package cluster

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

func addrPortOf(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// loopback is the address of node n: each has one of its own, so that all can
// have the same port as on real nodes.
func loopback(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, 46, byte(n)}), 17946)
}

// real starts a node with real sockets.
func (l *lab) real(n int, change ...func(*Config)) *agent {
	l.Helper()
	cfg, a := l.config(n)
	a.addr = loopback(n)
	cfg.Bind = a.addr
	cfg.Seeds = func() []Seed {
		return []Seed{{nodeName(1), loopback(1)}, {nodeName(2), loopback(2)}, {nodeName(3), loopback(3)}}
	}
	for _, f := range change {
		f(&cfg)
	}
	l.start(cfg, a)
	return a
}

// soon waits in real time.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for tick := time.Tick(10 * time.Millisecond); !cond(); {
		select {
		case <-tick:
		case <-deadline.C:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestRealSockets(t *testing.T) {
	l := &lab{TB: t}
	all := []*agent{l.real(1), l.real(2), l.real(3)}
	soon(t, "all see all", func() bool { return everybody(all, all...) })
	soon(t, "all know all of all", func() bool {
		return !slices.ContainsFunc(all, func(a *agent) bool {
			return !know(all, a.name, func(s view.Node) bool { return s.Digest.Quorate && s.Facts.PVEVersion == "9.1.2" })
		})
	})
	all[0].set(func(d *view.Digest) { d.Cordoned = true })
	soon(t, "a change is known", func() bool { return know(all, "pve1", func(s view.Node) bool { return s.Digest.Cordoned }) })

	// Somebody connects and says nothing: that must not keep the agent.
	idle, err := net.Dial("tcp", all[2].addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	changed := all[0].Changed()
	all[2].stop()
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told that a node leaves")
	}
	soon(t, "it is known to have left", func() bool { return everybody(all[:2], all[:2]...) })
	if err := idle.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the idle connection is not closed: %v", err)
	}

	all[2] = l.real(3)
	soon(t, "it is back", func() bool { return everybody(all, all...) })
	var stopping sync.WaitGroup
	for _, a := range all {
		stopping.Go(a.stop)
	}
	stopping.Wait()
}

func TestBindAndAdvertise(t *testing.T) {
	l := &lab{TB: t}
	alone := func() []Seed { return nil }
	a := l.real(1, func(cfg *Config) {
		cfg.Seeds, cfg.Bind, cfg.Advertise = alone, addrPortOf("127.77.46.1:0"), addrPortOf("192.0.2.7:4711")
	})
	if p := a.peer(t, "pve1"); p.Gossip != addrPortOf("192.0.2.7:4711") {
		t.Errorf("advertises %v", p.Gossip)
	}
	b := l.real(2, func(cfg *Config) { cfg.Seeds, cfg.Advertise = alone, addrPortOf("192.0.2.7:0") })
	if p := b.peer(t, "pve2"); p.Gossip != addrPortOf("192.0.2.7:17946") {
		t.Errorf("advertises %v", p.Gossip)
	}
	c := l.real(3, func(cfg *Config) { cfg.Seeds, cfg.Bind = alone, addrPortOf("127.77.46.3:0") })
	if p := c.peer(t, "pve3"); p.Gossip.Addr() != loopback(3).Addr() || p.Gossip.Port() == 0 {
		t.Errorf("advertises %v", p.Gossip)
	}
}

func TestCannotListen(t *testing.T) {
	taken, err := net.Listen("tcp", loopback(9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	l := &lab{TB: t}
	cfg, _ := l.config(9)
	cfg.Bind = loopback(9)
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("ran: %v", err)
	}
	select {
	case <-c.Ready():
		t.Error("ready although it does not listen")
	default:
	}
}

// TestStopDoesNotWaitForTheDead: a seed that does not answer a connection is no
// reason to stay.
func TestStopDoesNotWaitForTheDead(t *testing.T) {
	silent, err := net.Listen("tcp", loopback(8).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	l := &lab{TB: t}
	a := l.real(1, func(cfg *Config) { cfg.Seeds = func() []Seed { return []Seed{{"pve8", loopback(8)}} } })
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	begin := time.Now()
	a.stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// TestCannotStart leaves nothing behind, whoever has shut the transport down.
func TestCannotStart(t *testing.T) {
	l := &lab{TB: t}
	for name, give := range map[string]func(calls int) (net.IP, error){
		"no address":         func(int) (net.IP, error) { return nil, errors.New("no address") },
		"none the next time": func(calls int) (net.IP, error) { return net.IP{10, 0, 0, 1}, onlyAfter(calls, 2) },
		"none in the end":    func(calls int) (net.IP, error) { return net.IP{10, 0, 0, 1}, onlyAfter(calls, 3) },
	} {
		cfg, a := l.config(1)
		cfg.Transport = &homeless{Transport: l.net.Transport(a.addr), give: give}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no address") {
			t.Errorf("%s: ran: %v", name, err)
		}
	}
}

func onlyAfter(calls, n int) error {
	if calls < n {
		return nil
	}
	return errors.New("no address")
}

// homeless is a transport that has no address to advertise at times.
type homeless struct {
	memberlist.Transport
	give  func(calls int) (net.IP, error)
	calls int
}

func (h *homeless) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	h.calls++
	ip, err := h.give(h.calls)
	return ip, 7946, err
}
