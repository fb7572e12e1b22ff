package cluster

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// virtual runs a test in virtual time.
func virtual(t *testing.T, test func(*lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(&lab{TB: t}) })
}

func TestLoneNodeIsReady(t *testing.T) {
	virtual(t, func(l *lab) {
		begin := time.Now()
		a := l.run(1)
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("ready after %v", waited)
		}
		if p := a.peer(t, "pve1"); !p.Self || !p.Alive || !p.Compatible || p.Gossip != a.addr {
			t.Errorf("sees itself as %+v", p)
		}
		l.until(2*time.Second, "it knows its own digest", func() bool {
			return know([]*agent{a}, "pve1", func(s view.Node) bool { return s.Digest.MemoryFree == usualDigest().MemoryFree })
		})
		begin = time.Now()
		a.stop()
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("nobody is there to be told, but stopping took %v", waited)
		}
		if a.peer(t, "pve1").Alive {
			t.Error("alive after its end")
		}
	})
}

func TestJoin(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		want := Member{Name: "pve3", Address: netip.AddrPortFrom(all[2].host(), 9443), Version: "0.1.0", Protocol: Protocols{1, 1}}
		p := all[0].peer(t, "pve3")
		if diff := equal(want, p.Member); diff != "" {
			t.Errorf("presented as (-want +got):\n%s", diff)
		}
		if !p.Compatible || p.Self || p.Gossip != all[2].addr {
			t.Errorf("%+v", p)
		}
		var names []string
		for _, p := range all[1].Peers() {
			names = append(names, p.Name)
		}
		if strings.Join(names, " ") != "pve1 pve2 pve3" {
			t.Errorf("peers %v", names)
		}
	})
}

// TestJoinWhoComesLater: agents start in any order, and a seed that is not there
// yet is tried again.
func TestJoinWhoComesLater(t *testing.T) {
	virtual(t, func(l *lab) {
		l.seeds.Store(&[]Seed{{"", nodeAddr(1)}, {"", nodeAddr(2)}, {"pve9", nodeAddr(9)}})
		first := l.run(2, func(cfg *Config, _ *agent) { cfg.Seeds = func() []Seed { return []Seed{{AddrPort: nodeAddr(1)}} } })
		time.Sleep(time.Minute)
		changed := first.Changed()
		second := l.run(1, func(cfg *Config, _ *agent) { cfg.Seeds = func() []Seed { return nil } })
		both := []*agent{first, second}
		l.until(6*time.Second, "both see each other", func() bool { return everybody(both, both...) })
		select {
		case <-changed:
		default:
			t.Error("nothing has changed")
		}
		third := l.run(3)
		all := []*agent{first, second, third}
		l.until(time.Second, "all see each other", func() bool { return everybody(all, all...) })
		asked := l.log.count("asked a node to gossip")
		time.Sleep(time.Minute)
		if more := l.log.count("asked a node to gossip") - asked; more > 0 {
			t.Errorf("a seed that is seen is joined again, %d times", more)
		}
	})
}

func TestCrashIsSeen(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		time.Sleep(2 * time.Second)
		changed, died := all[0].Changed(), time.Now()
		before := all[0].peer(t, "pve3")
		l.net.Power(false, all[2].host())
		took := l.until(20*time.Second, "the crash is seen", func() bool { return everybody(all[:2], all[:2]...) })
		t.Logf("seen after %v", took)
		select {
		case <-changed:
		default:
			t.Error("nothing has changed")
		}
		time.Sleep(5 * time.Minute)
		p := all[0].peer(t, "pve3")
		if diff := equal(before.Member, p.Member); diff != "" || p.Gossip != all[2].addr || !p.Compatible {
			t.Errorf("the dead node is known as %+v", p)
		}
		if p.Alive || p.Since.Before(died) || p.Since.After(died.Add(took)) {
			t.Errorf("alive %v since %v, died %v", p.Alive, p.Since, died)
		}
		if age, known := p.State.DigestAge(time.Now()); !known || age < 5*time.Minute || p.State.Usable(time.Now()) {
			t.Errorf("its digest is %v old, usable %v", age, p.State.Usable(time.Now()))
		}
		l.net.Power(true, all[2].host())
		l.until(15*time.Second, "it is back", func() bool { return everybody(all, all...) })
	})
}

func TestLeaveIsSeenAtOnce(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		begin := time.Now()
		go all[2].stop()
		took := l.until(2*time.Second, "it is seen to leave", func() bool { return everybody(all[:2], all[:2]...) })
		t.Logf("seen after %v", took)
		all[2].stop()
		t.Logf("gone after %v", time.Since(begin))
		if took := time.Since(begin); took > leaveTimeout+2*time.Second {
			t.Errorf("leaving took %v", took)
		}
	})
}

func TestRestart(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		for round := range 4 {
			before := all[0].peer(t, "pve3").State.Digest
			if round%2 == 0 {
				all[2].stop()
			} else { // as kill -9 does it: the kernel goes on, and the next one gets the address
				l.net.Power(false, all[2].host())
				all[2].stop()
				l.net.Power(true, all[2].host())
			}
			all[2] = l.run(3, func(_ *Config, a *agent) { a.set(func(d *view.Digest) { d.VCPUs = uint32(100 + round) }) })
			took := l.until(20*time.Second, "the new one is known", func() bool {
				return everybody(all, all...) && know(all, "pve3", func(s view.Node) bool { return s.Digest.VCPUs == uint32(100+round) })
			})
			t.Logf("round %d: known after %v", round, took)
			if after := all[0].peer(t, "pve3").State.Digest; after.Incarnation <= before.Incarnation {
				t.Errorf("incarnation %d after %d", after.Incarnation, before.Incarnation)
			}
		}
	})
}

// TestRestartWithClockSetBack: what was said before is believed to be newer
// until the node has learnt of it.
func TestRestartWithClockSetBack(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		time.Sleep(3 * time.Second)
		all[2].stop()
		all[2] = l.run(3, func(_ *Config, a *agent) {
			a.set(func(d *view.Digest) { d.VCPUs = 5 })
			a.facts.Store(&view.Facts{PVEVersion: "10.0"})
			a.spoil = func(c *Cluster) { c.own = newAnnouncement(time.Unix(7, 0)) }
		})
		l.until(4*time.Second, "its digest is believed", func() bool {
			return know(all, "pve3", func(s view.Node) bool { return s.Digest.VCPUs == 5 })
		})
		l.until(50*time.Second, "its facts are believed", func() bool {
			return know(all, "pve3", func(s view.Node) bool { return s.Facts.PVEVersion == "10.0" })
		})
		if l.log.count("the clock was set back") != 1 {
			t.Error("nobody was told")
		}
	})
}

// TestClockBefore1970 is a host whose clock has no battery.
func TestClockBefore1970(t *testing.T) {
	if got := newAnnouncement(time.Unix(-7, 0)).stamp; got != (view.Stamp{Incarnation: 1}) {
		t.Errorf("%+v", got)
	}
}

func TestComesBackWithAnotherAddress(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		l.net.Power(false, all[2].host())
		time.Sleep(time.Second)
		moved := l.run(3, func(cfg *Config, a *agent) {
			a.addr = nodeAddr(33)
			cfg.Self.Address = netip.AddrPortFrom(a.host(), 9443)
			a.set(func(d *view.Digest) { d.VCPUs = 33 })
		})
		now := []*agent{all[0], all[1], moved}
		took := l.until(25*time.Second, "it is known where it is now", func() bool {
			return everybody(now, now...) && know(now, "pve3", func(s view.Node) bool { return s.Digest.VCPUs == 33 })
		})
		t.Logf("known after %v", took)
		if p := all[0].peer(t, "pve3"); p.Gossip != moved.addr || p.Address.Addr() != moved.host() {
			t.Errorf("%+v", p)
		}
	})
}

// TestSplitHealsThroughSeeds: memberlist alone forgets the other side after a
// while.
func TestSplitHealsThroughSeeds(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		two, one := []netip.Addr{all[0].host(), all[1].host()}, []netip.Addr{all[2].host()}
		for _, length := range []time.Duration{15 * time.Second, 10 * time.Minute} {
			l.net.Cut(two, one)
			// Who has failed much lately probes less often: it doubts itself first.
			l.until(time.Minute, "both sides see the split", func() bool {
				return everybody(all[:2], all[:2]...) && everybody(all[2:], all[2])
			})
			time.Sleep(length)
			all[2].set(func(d *view.Digest) { d.Cordoned = !d.Cordoned })
			time.Sleep(2 * time.Second)
			l.net.Heal(two, one)
			took := l.until(15*time.Second, "the split heals", func() bool { return everybody(all, all...) })
			more := l.until(3*time.Second, "all know what changed meanwhile", func() bool {
				return know(all, "pve3", func(s view.Node) bool { return s.Digest.Cordoned == all[2].digest.Load().Cordoned })
			})
			t.Logf("after %v: healed in %v, news after %v", length, took, more)
		}

		none := []Seed{}
		l.seeds.Store(&none)
		l.net.Cut(two, one)
		time.Sleep(10 * time.Minute)
		l.net.Heal(two, one)
		time.Sleep(10 * time.Minute)
		if everybody(all[:1], all...) {
			t.Error("it heals without seeds too: this test shows nothing")
		}
	})
}

func TestAsymmetricLoss(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(4)
		l.net.Lose(1, all[0].host(), all[1].host())
		l.net.Lose(0.3, all[2].host(), all[3].host())
		time.Sleep(10 * time.Second)
		for range 300 {
			time.Sleep(time.Second)
			if !everybody(all, all...) {
				t.Fatalf("a node is believed dead that others reach:\n%v", all[0].Peers())
			}
		}
		all[0].set(func(d *view.Digest) { d.Draining = true })
		// Where nearly every way loses something, comparing may have to help.
		took := l.until(20*time.Second, "the news come by others", func() bool {
			return know(all, "pve1", func(s view.Node) bool { return s.Digest.Draining })
		})
		t.Logf("news by another after %v", took)
	})
}

func TestSecondClaimOfANameIsNotBelieved(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		thief := l.run(3, func(cfg *Config, a *agent) {
			a.addr = nodeAddr(66)
			cfg.Self.Version = "stolen"
			a.set(func(d *view.Digest) { d.VCPUs = 666 })
		})
		for range 120 {
			time.Sleep(time.Second)
			for _, a := range all {
				if p := a.peer(t, "pve3"); p.Gossip != all[2].addr || p.Version != "0.1.0" || !p.Alive || p.State.Digest.VCPUs == 666 {
					t.Fatalf("%s believes %+v", a.name, p)
				}
			}
		}
		if n := l.log.count("another agent claims the name"); n < 3 || n > 20 {
			t.Errorf("logged %d times", n)
		}
		if s := all[0].peer(t, "pve3").State; s.Digest.Incarnation > uint64(time.Now().UnixMilli()) {
			t.Errorf("the two outbid each other: %+v", s.Digest)
		}
		thief.stop()
	})
}

func TestPeersOfOtherVersions(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(2)
		l.run(3, func(cfg *Config, _ *agent) { cfg.Self.Protocol = Protocols{2, 4} })
		l.run(4, func(_ *Config, a *agent) { a.spoil = func(c *Cluster) { c.meta = []byte("\xff\xff") } })
		l.run(5, func(cfg *Config, _ *agent) {
			cfg.Self.Protocol = Protocols{1, 4}
			cfg.Self.unknown = protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 5)
		})
		l.run(6, func(_ *Config, a *agent) { a.spoil = func(c *Cluster) { c.meta = all[0].meta } })
		time.Sleep(30 * time.Second)
		for name, want := range map[string]bool{"pve2": true, "pve3": false, "pve4": false, "pve5": true, "pve6": false} {
			p := all[0].peer(t, name)
			if !p.Alive || p.Compatible != want || p.Name != name {
				t.Errorf("%s: %+v", name, p)
			}
			if p.State.Digest.VCPUs != usualDigest().VCPUs {
				t.Errorf("%s: %+v", name, p.State)
			}
		}
		if p := all[0].peer(t, "pve3"); p.Version != "0.1.0" || p.Protocol.Min != 2 {
			t.Errorf("what can be read of it is not shown: %+v", p)
		}
		if !everybody(all[:1], append(all, &agent{name: "pve3"}, &agent{name: "pve4"}, &agent{name: "pve5"}, &agent{name: "pve6"})...) {
			t.Error("not all are seen")
		}
	})
}

func TestGarbageIsSurvived(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(2)
		bad, err := view.Encode(view.Report{
			Origin: view.Origin{Name: "pve2", Address: all[1].addr}, Digest: []byte("garbage"), Facts: []byte("\xff"),
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			for _, message := range [][]byte{nil, {}, {1}, {2, 3}, []byte("\x01\xff"), bad} {
				delegate{all[0].Cluster}.NotifyMsg(message)
				delegate{all[0].Cluster}.MergeRemoteState(message, true)
			}
			time.Sleep(time.Second)
		}
		if n := l.log.count("what another node gossips cannot be read"); n < 1 || n > 3 {
			t.Errorf("logged %d times", n)
		}
		if !everybody(all, all...) || !all[0].peer(t, "pve2").State.Usable(time.Now()) {
			t.Errorf("%+v", all[0].peer(t, "pve2"))
		}
	})
}
