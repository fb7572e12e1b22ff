package cluster

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

func TestDigestIsToldWhenItMatters(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		time.Sleep(20 * time.Second)
		said := func() uint64 { return all[1].peer(t, "pve1").State.Digest.Sequence }

		// Facts take numbers too, so only the others' view of the digest counts.
		begin, seen := said(), 0
		for range 60 {
			all[0].set(func(d *view.Digest) { d.MemoryFree += 1 << 20 })
			time.Sleep(time.Second)
			if now := said(); now != begin {
				begin, seen = now, seen+1
			}
		}
		if seen < 3 || seen > 5 {
			t.Errorf("little changes were told %d times in a minute, not by heartbeats alone", seen)
		}

		begin, seen = said(), 0
		for range 100 {
			all[0].set(func(d *view.Digest) { d.Load += 500 })
			time.Sleep(100 * time.Millisecond)
			if now := said(); now != begin {
				begin, seen = now, seen+1
			}
		}
		if seen < 8 || seen > 12 {
			t.Errorf("great changes were told %d times in 10 s", seen)
		}

		for _, flag := range []func(*view.Digest){
			func(d *view.Digest) { d.Cordoned = true }, func(d *view.Digest) { d.Quorate = false }, func(d *view.Digest) { d.Draining = true },
		} {
			all[0].set(flag)
			l.until(2*time.Second, "a flag is seen", func() bool {
				return know(all, "pve1", func(s view.Node) bool {
					want := all[0].digest.Load()
					return s.Digest.Cordoned == want.Cordoned && s.Digest.Quorate == want.Quorate && s.Digest.Draining == want.Draining
				})
			})
		}
	})
}

func TestFactsTravelByComparing(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(5)
		time.Sleep(30 * time.Second)
		facts := usualFacts()
		facts.PVEVersion = "9.2.0"
		all[4].facts.Store(&facts)
		took := l.until(50*time.Second, "all know the new facts", func() bool {
			return know(all, "pve5", func(s view.Node) bool { return s.Facts.PVEVersion == "9.2.0" })
		})
		t.Logf("after %v", took)
		for range 120 {
			time.Sleep(time.Second)
			for _, a := range all {
				for _, p := range a.Peers() {
					if age, known := p.State.FactsAge(time.Now()); !known || age > time.Minute {
						t.Fatalf("%s knows the facts of %s as they were %v ago", a.name, p.Name, age)
					}
				}
			}
		}
	})
}

func TestFactsThatAreTooLong(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(2)
		facts := usualFacts()
		facts.PVEVersion = strings.Repeat("9", view.MaxFacts)
		all[0].facts.Store(&facts)
		time.Sleep(3 * time.Minute)
		if n := l.log.count("our own facts are not told"); n < 1 || n > 4 {
			t.Errorf("logged %d times", n)
		}
		if !everybody(all, all...) || !know(all, "pve1", func(s view.Node) bool { return s.Facts.PVEVersion == "9.1.2" }) {
			t.Error("the old facts are not known any more")
		}
	})
}

// TestDigestsArriveWithTheirAge, whoever passed them on, and however long they
// waited for a packet to travel with.
func TestDigestsArriveWithTheirAge(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(9)
		compared := 0
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			for _, a := range all {
				own := a.peer(t, a.name).State
				for _, other := range all {
					seen := other.peer(t, a.name).State
					if seen.Digest.Sequence != own.Digest.Sequence {
						continue
					}
					compared++
					if late := seen.DigestAt.Sub(own.DigestAt); late < 0 || late > 10*time.Millisecond {
						t.Fatalf("%s believes the digest of %s to be %v younger than it is", other.name, a.name, late)
					}
				}
			}
		}
		if compared < 9*9*100 {
			t.Errorf("%d digests compared", compared)
		}
	})
}

// TestAgesSurviveRelaying: what is heard of a dead node from others does not
// look fresh.
func TestAgesSurviveRelaying(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		time.Sleep(30 * time.Second)
		died := time.Now()
		l.net.Power(false, all[2].host())
		time.Sleep(3 * time.Minute)
		late := l.run(4)
		l.until(20*time.Second, "the late one hears of the dead one", func() bool {
			return !late.stateOf(nodeName(3), all[2].addr).DigestAt.IsZero()
		})
		for _, a := range []*agent{all[0], all[1], late} {
			s := a.stateOf(nodeName(3), all[2].addr)
			for what, at := range map[string]time.Time{"digest": s.DigestAt, "facts": s.FactsAt} {
				if at.After(died) || at.Before(died.Add(-time.Minute)) {
					t.Errorf("%s: the %s of the node that died at %v is of %v", a.name, what, died, at)
				}
			}
		}
		time.Sleep(relayLimit)
		time.Sleep(30 * time.Second)
		if s := late.stateOf(nodeName(3), all[2].addr); !s.DigestAt.IsZero() || !s.FactsAt.IsZero() {
			t.Errorf("a node that it never saw alive is still remembered: %+v", s)
		}
		later := l.run(5)
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if s := later.stateOf(nodeName(3), all[2].addr); !s.DigestAt.IsZero() || !s.FactsAt.IsZero() {
				t.Fatalf("what is long past is still passed on: %+v", s)
			}
		}
		if all[0].peer(t, "pve3").State.DigestAt.IsZero() {
			t.Error("those who knew the node have forgotten")
		}
	})
}

// stateOf is for nodes that are known by what was said, but were never
// seen alive.
func (c *Cluster) stateOf(name string, addr netip.AddrPort) view.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _ := c.view.Node(view.Origin{Name: name, Address: addr})
	return n
}
