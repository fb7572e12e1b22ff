package snippet

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// wait lets virtual time go by.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func uses(data ...string) string {
	conf := "name: x\n"
	for i, d := range data {
		conf += fmt.Sprintf("cicustom%d: user=%s\n", i, Volume("local", []byte(d)))
	}
	return conf
}

func gapsOf(s *Store) string {
	var nodes []string
	for _, g := range s.Gaps() {
		nodes = append(nodes, g.Node)
	}
	return strings.Join(nodes, " ")
}

// TestNodeWithoutAgent: it stops no create for long, is told once, and gets everything when its agent comes back.
func TestNodeWithoutAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n, other := w.nodes["pve1"], w.nodes["pve2"]
		w.run(n)
		wait(time.Second)
		other.set(func() { other.down = true })
		for i, limit := range []time.Duration{patience, 0, 0} { // known from then on
			data := fmt.Sprint(secret, i)
			w.vm(100+i, "pve1", uses(data))
			began := time.Now()
			w.must(n.Write(t.Context(), "local", []byte(data)))
			if took := time.Since(began); took > limit {
				t.Errorf("write %d took %s", i, took)
			}
			if got := w.everywhere(data); got != "pve1 pve3" {
				t.Errorf("on %s", got)
			}
		}
		if got := gapsOf(n.Store); got != "pve2 pve2 pve2" {
			t.Errorf("gaps of %s", got)
		}
		if text := w.log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "at=pve2") {
			t.Errorf("logged:\n%s", text)
		}
		// Its agent is started anew: it has all before it is ready.
		other = w.boot("pve2")
		w.run(other)
		<-other.Ready()
		for i := range 3 {
			if got := w.everywhere(fmt.Sprint(secret, i)); got != "pve1 pve2 pve3" {
				t.Errorf("%d: on %s", i, got)
			}
		}
		wait(2 * lastRetry)
		if gaps := n.Gaps(); len(gaps) > 0 {
			t.Errorf("gaps: %v", gaps)
		}
		if !strings.Contains(w.log.String(), "has the cloud-init snippets that it lacked") {
			t.Error("nobody says that it is over")
		}
		w.keptQuiet()
	})
}

// TestPassingSilence is no gap.
func TestPassingSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := w.nodes["pve2"]
		other.down = true
		timer := time.AfterFunc(time.Second, func() { other.set(func() { other.down = false }) })
		defer timer.Stop()
		w.must(w.nodes["pve1"].Write(t.Context(), "local", []byte("a")))
		if got := w.everywhere("a"); got != "pve1 pve2 pve3" || len(w.nodes["pve1"].Gaps()) > 0 {
			t.Errorf("on %s, gaps %v", got, w.nodes["pve1"].Gaps())
		}
	})
}

// TestOlderAgent knows no snippets: it is not in the way of those that do, and syncs when it is a newer one.
func TestOlderAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n, other := w.nodes["pve1"], w.nodes["pve2"]
		other.answer = status.Error(codes.Unimplemented, "pve2: unknown service rigaud.v1.Peer")
		began := time.Now()
		w.must(n.Write(t.Context(), "local", []byte("a")))
		if took := time.Since(began); took > 0 || gapsOf(n.Store) != "pve2" {
			t.Errorf("took %s, gaps of %s", took, gapsOf(n.Store))
		}
	})
}

// TestGapsGo with what needs them, and with their nodes.
func TestGapsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.nodes["pve1"]
		w.run(n)
		wait(time.Second)
		w.nodes["pve2"].set(func() { w.nodes["pve2"].down = true })
		w.vm(100, "pve1", uses("a"))
		w.must(n.Write(t.Context(), "local", []byte("a")))
		wait(syncEvery)
		if got := gapsOf(n.Store); got != "pve2" {
			t.Errorf("gaps of %q", got)
		}
		w.removeVM(100)
		wait(syncEvery)
		if got := gapsOf(n.Store); got != "" {
			t.Errorf("of no VM: gaps of %q", got)
		}
	})
}

// TestStart: a node that starts fetches what configs and records name, and waits for nobody too long.
func TestStart(t *testing.T) {
	for name, tc := range map[string]struct {
		has   string // who has the file
		down  string
		took  time.Duration // until it is ready
		comes bool
		gaps  int
	}{
		"another has it":          {has: "pve3", comes: true},
		"all others have it":      {has: "pve1 pve3", down: "pve1", comes: true},
		"it has it":               {has: "pve2", down: "pve1 pve3", comes: true},
		"nobody has it":           {gaps: 2}, // what the operation names it has not written yet
		"who has it is silent":    {has: "pve3", down: "pve3", took: startTime, gaps: 3},
		"nobody answers anything": {down: "pve1 pve3", took: startTime, gaps: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.vm(100, "pve1", "name: a\n[PENDING]\n"+uses("a")+"[snap]\n"+uses("b"))
				_, err := w.records.Take(record.Record{Owner: "o", Name: "c", VMID: 101, Node: "pve1", State: record.Creating, Snippets: []string{Volume("local", []byte("c"))}})
				w.must(err)
				for _, at := range strings.Fields(tc.has) {
					for _, data := range []string{"a", "b", "c", "of no VM"} {
						w.put(at, data, 0)
					}
				}
				for _, at := range strings.Fields(tc.down) {
					w.nodes[at].down = true
				}
				began := time.Now()
				n := w.boot("pve2")
				w.run(n)
				<-n.Ready()
				if took := time.Since(began); took != tc.took {
					t.Errorf("ready after %s, want %s", took, tc.took)
				}
				for _, data := range []string{"a", "b", "c"} {
					if got := strings.Contains(w.everywhere(data), "pve2"); got != tc.comes {
						t.Errorf("%s is on %s", data, w.everywhere(data))
					}
				}
				if tc.has != "pve2" && strings.Contains(w.everywhere("of no VM"), "pve2") {
					t.Error("what nobody needs was fetched")
				}
				if got := len(n.Gaps()); got != tc.gaps {
					t.Errorf("gaps: %v", n.Gaps())
				}
				if tc.has == "pve3" && !tc.comes {
					w.nodes["pve3"].set(func() { w.nodes["pve3"].down = false })
					wait(lastRetry)
					if got := w.everywhere("a"); got != "pve2 pve3" || len(n.Gaps()) > 0 {
						t.Errorf("when it answers: on %s, gaps %v", got, n.Gaps())
					}
				}
			})
		})
	}
}

// TestStartWithoutQuorum waits a while for it: what the node sees before is old.
func TestStartWithoutQuorum(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{4 * time.Second: 6 * time.Second, time.Minute: startTime} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.change(func() { w.quorate = false })
			w.put("pve1", "a", 0)
			n := w.boot("pve2")
			w.run(n)
			began := time.Now()
			timer := time.AfterFunc(after, func() {
				w.change(func() { w.quorate = true })
				w.vm(100, "pve1", uses("a"))
			})
			defer timer.Stop()
			<-n.Ready()
			if took := time.Since(began); took > want || took < after && took < want {
				t.Errorf("quorum after %s: ready after %s, want %s", after, took, want)
			}
			wait(after)
			if got := w.everywhere("a"); got != "pve1 pve2" {
				t.Errorf("quorum after %s: on %s", after, got)
			}
		})
	}
}

// TestOwnOperation: what an operation of this node is about to write is not missing.
func TestOwnOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.nodes["pve1"]
		_, err := w.records.Take(record.Record{Owner: "o", Name: "a", VMID: 101, Node: "pve1", State: record.Creating, Snippets: []string{Volume("local", []byte("a"))}})
		w.must(err)
		w.nodes["pve2"].down = true
		w.run(n)
		began := time.Now()
		<-n.Ready()
		if took := time.Since(began); took > 0 || len(n.Gaps()) > 0 {
			t.Errorf("ready after %s, gaps %v", took, n.Gaps())
		}
	})
}

// TestNodeReturns without its agent having ended: it syncs when the cluster is whole again.
func TestNodeReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.change(func() { w.offline["pve3"] = true })
		w.run(w.nodes["pve3"])
		wait(time.Minute)
		w.vm(100, "pve1", uses("a"))
		w.must(w.nodes["pve1"].Write(t.Context(), "local", []byte("a")))
		if got := w.everywhere("a"); got != "pve1 pve2" {
			t.Errorf("on %s", got)
		}
		w.change(func() { w.offline["pve3"] = false })
		wait(2 * w.watch)
		if got := w.everywhere("a"); got != "pve1 pve2 pve3" {
			t.Errorf("on %s", got)
		}
	})
}

// TestLostFile is fetched again, now and then; one with another content is not taken.
func TestLostFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.nodes["pve1"]
		w.run(n)
		wait(time.Second)
		w.must(w.nodes["pve2"].Write(t.Context(), "local", []byte("a")))
		w.nodes["pve2"].set(func() { w.nodes["pve2"].lies = true })
		w.vm(100, "pve1", uses("a", "b"))
		w.must(os.Remove(w.path("pve1", "a")))
		w.put("pve3", "b", 0)
		damaged := w.path("pve3", "b")
		w.write(strings.TrimPrefix(damaged, w.dir+"/"), "not b")
		wait(syncEvery)
		if got := w.everywhere("a"); got != "pve1 pve2 pve3" {
			t.Errorf("a is on %s", got)
		}
		if got := w.everywhere("b"); got != "pve3" || gapsOf(n.Store) != "pve1" {
			t.Errorf("b is on %s, gaps of %s", got, gapsOf(n.Store))
		}
		w.must(w.nodes["pve2"].Write(t.Context(), "local", []byte("b")))
		if got := w.everywhere("b"); got != "pve1 pve2 pve3" || gapsOf(n.Store) != "" {
			t.Errorf("b is on %s, gaps of %s", got, gapsOf(n.Store))
		}
	})
}
