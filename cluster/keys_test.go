package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// TestTurn goes from any ring to any other one, while others read it.
func TestTurn(t *testing.T) {
	a, b, c, d := key('a'), key('b'), key('c'), key('d')
	rings := [][][]byte{{a}, {b}, {a, b}, {b, a}, {a, b, c}, {c, b, a}, {b, a, c}, {a, c}, {c, d}, {a, b, c, d}, {d, a}, {a, a}, {b, a, b}}
	for _, from := range rings {
		for _, to := range rings {
			ring, err := memberlist.NewKeyring(from, from[0])
			if err != nil {
				t.Fatal(err)
			}
			stop := watchRing(t, ring, func(k []byte) bool { return contains(from, k) && contains(to, k) })
			if err := turn(ring, to); err != nil {
				t.Fatalf("%s to %s: %v", letters(from), letters(to), err)
			}
			stop()
			got := ring.GetKeys()
			if !bytes.Equal(got[0], to[0]) || letters(slices.SortedFunc(slices.Values(got), bytes.Compare)) != letters(unique(to)) {
				t.Errorf("%s to %s: %s", letters(from), letters(to), letters(got))
			}
		}
	}
}

// watchRing reads the ring all the time. A key that stays is never missing.
func watchRing(t *testing.T, ring *memberlist.Keyring, stays func([]byte) bool) (stop func()) {
	begin := slices.Clone(ring.GetKeys())
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			now := ring.GetKeys()
			for _, k := range begin {
				if stays(k) && !contains(now, k) {
					t.Errorf("key %c is missing for a moment", k[0])
				}
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	return func() {
		close(done)
		reader.Wait()
	}
}

func unique(keys [][]byte) [][]byte {
	return slices.CompactFunc(slices.SortedFunc(slices.Values(keys), bytes.Compare), bytes.Equal)
}

func letters(keys [][]byte) string {
	var out strings.Builder
	for _, k := range keys {
		out.WriteByte(k[0])
	}
	return out.String()
}

// TestKeyRotationUnderLoad changes the keys of three nodes one after the other,
// while each says something new every second.
func TestKeyRotationUnderLoad(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(3)
		load := func(what string, d time.Duration) {
			for begin := time.Now(); time.Since(begin) < d; time.Sleep(time.Second) {
				for _, a := range all {
					a.set(func(d *view.Digest) { d.Load += 1000 })
					time.Sleep(50 * time.Millisecond)
				}
				if !everybody(all, all...) {
					t.Fatalf("%s: a node is lost", what)
				}
			}
		}
		load("before", 10*time.Second)
		old, next := key('o'), key('n')
		for _, a := range all {
			a.keys.Store(&[][]byte{key(1), old})
		}
		load("a first key", 10*time.Second)
		for _, keys := range [][][]byte{{old, key(1)}, {old}, {old, next}, {next, old}, {next}} {
			what := "keys " + letters(keys)
			for _, a := range all {
				a.keys.Store(&keys)
				load(what, 5*time.Second) // two of three have it, or one
			}
			load(what, 10*time.Second)
			l.until(2*time.Second, what+": all know the newest", func() bool {
				return !slices.ContainsFunc(all, func(a *agent) bool {
					return !know(all, a.name, func(s view.Node) bool { return s.Digest.Load+2000 > a.digest.Load().Load })
				})
			})
			for _, a := range all {
				if got := a.ring.GetKeys(); letters(got) != letters(keys) {
					t.Errorf("%s: %s has %s", what, a.name, letters(got))
				}
			}
		}
		if n := l.log.count("decrypt"); n > 0 {
			t.Errorf("%d messages could not be read", n)
		}
	})
}

func TestAnotherKeyIsNoMember(t *testing.T) {
	virtual(t, func(l *lab) {
		all := l.cluster(2)
		stranger := l.run(3, func(_ *Config, a *agent) { a.keys.Store(&[][]byte{key(2)}) })
		time.Sleep(3 * time.Minute)
		if !everybody(all, all...) || !everybody([]*agent{stranger}, stranger) {
			t.Errorf("%v and %v", all[0].Peers(), stranger.Peers())
		}
		if n := l.log.count("level=WARN"); n < 1 || n > 20 {
			t.Errorf("warned %d times:\n%s", n, &l.log.buf)
		}
		if l.log.count("a node does not gossip with our keys") < 1 {
			t.Error("nobody says that keys differ")
		}
		stranger.keys.Store(&[][]byte{key(1)})
		all = append(all, stranger)
		l.until(10*time.Second, "with the right key it is in", func() bool { return everybody(all, all...) })
	})
}

func TestEverythingIsEncrypted(t *testing.T) {
	virtual(t, func(l *lab) {
		var packets atomic.Int64
		l.net.Tap(func(_, _ netip.AddrPort, packet []byte) {
			packets.Add(1)
			if bytes.Contains(packet, []byte("pve")) {
				t.Errorf("a name can be read: %q", packet)
			}
		})
		l.cluster(3)
		time.Sleep(10 * time.Second)
		if n := packets.Load(); n < 30 {
			t.Errorf("%d packets", n)
		}
	})
}

func TestKeysThatCannotBeReadLaterChangeNothing(t *testing.T) {
	virtual(t, func(l *lab) {
		var mu sync.Mutex
		result, failure := [][]byte{key(1)}, error(nil)
		set := func(keys [][]byte, err error) {
			mu.Lock()
			defer mu.Unlock()
			result, failure = keys, err
		}
		a := l.run(1, func(cfg *Config, _ *agent) {
			cfg.Keys = func() ([][]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				return result, failure
			}
		})
		for i, bad := range [][][]byte{nil, {}, {key(2)[:16]}, {key(1), {}}} {
			set(bad, nil)
			if i == 0 {
				set(bad, errors.New("no /etc/pve"))
			}
			time.Sleep(5 * time.Minute)
			if diff := cmp.Diff([][]byte{key(1)}, a.ring.GetKeys()); diff != "" {
				t.Errorf("after %v: %s", bad, diff)
			}
			if n := l.log.count("gossip keys are left as they were"); n < 4*(i+1) || n > 5*(i+1)+1 {
				t.Errorf("after %v: warned %d times", bad, n)
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"no keys given":              func(c *Config) { c.Keys = nil },
		"no seeds given":             func(c *Config) { c.Seeds = nil },
		"no digest given":            func(c *Config) { c.Digest = nil },
		"no facts given":             func(c *Config) { c.Facts = nil },
		"no log given":               func(c *Config) { c.Log = nil },
		"no address to bind to":      func(c *Config) { c.Transport = nil },
		"bad node metadata":          func(c *Config) { c.Self.Name = "" },
		"read keys: there are none":  func(c *Config) { c.Keys = func() ([][]byte, error) { return nil, nil } },
		"key 2 has 16 bytes, not 32": func(c *Config) { c.Keys = func() ([][]byte, error) { return [][]byte{key(1), key(2)[:16]}, nil } },
		"read keys: gone":            func(c *Config) { c.Keys = func() ([][]byte, error) { return nil, errors.New("gone") } },
		"with a zone":                func(c *Config) { c.Bind = addrPortOf("[fe80::1%eth0]:7946") },
		"which address to advertise": func(c *Config) { c.Transport, c.Bind = nil, addrPortOf("[::]:7946") },
		"nobody can connect to that": func(c *Config) { c.Advertise = addrPortOf("0.0.0.0:7946") },
	} {
		l := &lab{TB: t}
		cfg, a := l.config(1)
		cfg.Transport = l.net.Transport(a.addr)
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "gossip: ") {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestLines(t *testing.T) {
	virtual(t, func(l *lab) {
		cfg, a := l.config(1)
		cfg.Transport = l.net.Transport(a.addr)
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for line, want := range map[string]string{
			"[DEBUG] memberlist: Stream connection from=1":                 `level=DEBUG msg=gossip line="Stream connection from=1"`,
			"[INFO] memberlist: Suspect pve2 has failed, no acks received": `level=DEBUG msg=gossip line="Suspect pve2 has failed, no acks received"`,
			"[WARN] memberlist: Refuting a suspect message (from: pve3)":   `level=DEBUG msg=gossip line="Refuting a suspect message (from: pve3)"`,
			"[ERR] memberlist: Push/Pull with pve2 failed: EOF":            `level=DEBUG msg=gossip line="Push/Pull with pve2 failed: EOF"`,
			"[ERR] memberlist: Decrypt packet failed: No installed keys":   `level=WARN msg="gossip failure" error="Decrypt packet failed: No installed keys"`,
			"[ERROR] memberlist: Failed to encrypt local state: x":         `level=WARN msg="gossip failure" error="Failed to encrypt local state: x"`,
			"Err: Could not set the deadline: x":                           `level=DEBUG msg=gossip line="Could not set the deadline: x"`,
			"odd":                                                          `level=DEBUG msg=gossip line=odd`,
		} {
			for range 3 {
				c.lines().Print(line)
			}
			times := 3
			if strings.Contains(want, "WARN") {
				times = 1
			}
			if n := l.log.count(want); n != times {
				t.Errorf("%q: %d times %q in\n%s", line, n, want, &l.log.buf)
			}
		}
		time.Sleep(time.Minute)
		c.lines().Print("[ERR] memberlist: Decrypt packet failed: other")
		if l.log.count("Decrypt packet failed: other") != 1 {
			t.Error("a minute later it is not said again")
		}
		for i := range 3 * maxKinds {
			c.warned.allows(fmt.Sprint(i))
		}
		if n := len(c.warned.last); n > maxKinds {
			t.Errorf("%d kinds are remembered", n)
		}
	})
}
