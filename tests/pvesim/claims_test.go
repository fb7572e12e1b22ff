package pvesim_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario/fabric"
)

// claim takes a name below /etc/pve/priv; false if somebody else has it.
func claim(n *pvesim.Node, name string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(n.PMXCFS, "priv", name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = f.WriteString(n.Name)
	return true, errors.Join(err, f.Close())
}

// TestClaimsWhileSplitting: whatever is cut when, a name has one owner, and nobody is told that a file is gone that is there.
func TestClaimsWhileSplitting(t *testing.T) {
	mountable(t)
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.PMXCFS, cfg.VMs = pvesim.FUSE, 1 })
	var (
		takers  sync.WaitGroup
		readers sync.WaitGroup
		mu      sync.Mutex // guards owner
		owner   = map[string]string{}
	)
	stop := make(chan struct{})
	over := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	for _, n := range c.Nodes() {
		takers.Go(func() {
			for i := range 1500 {
				name := fmt.Sprintf("name-%d", i/5)
				won, err := claim(n, name)
				if err != nil && !errors.Is(err, syscall.EACCES) {
					t.Errorf("%s: %v", n.Name, err)
				}
				if won {
					mu.Lock()
					if owner[name] != "" {
						t.Errorf("%s is %s's and %s's", name, owner[name], n.Name)
					}
					owner[name] = n.Name
					mu.Unlock()
				}
			}
		})
		readers.Go(func() {
			for !over() {
				for _, name := range []string{".vmlist", ".members", "nodes/pve1/qemu-server/100.conf"} {
					if _, err := os.ReadFile(filepath.Join(n.PMXCFS, name)); err != nil {
						t.Errorf("%s: %v", n.Name, err)
					}
				}
			}
		})
	}
	go func() {
		takers.Wait()
		close(stop)
	}()
	for i := 0; !over(); i++ {
		cut := c.Nodes()[i%3].Name
		for _, line := range []string{"partition " + cut + "|" + others(c, cut), "heal"} {
			if _, err := c.Do(t.Context(), line); err != nil {
				t.Error(err)
			}
		}
	}
	readers.Wait()
	if len(owner) < 10 {
		t.Errorf("only %d names were taken", len(owner))
	}
	for name, by := range owner {
		if _, err := os.Stat(filepath.Join(c.Tree(), "priv", name)); err != nil {
			t.Errorf("%s has %s, but: %v", by, name, err)
		}
	}
}

func others(c *pvesim.Cluster, name string) string {
	out := ""
	for _, n := range c.Nodes() {
		if n.Name != name {
			out += "," + n.Name
		}
	}
	return out[1:]
}

// TestManyFaults: half an hour of faults in virtual time, all of which end, and a cluster that is whole when all is healed.
func TestManyFaults(t *testing.T) {
	const seed = 20261122
	bubble(t, func(cfg *pvesim.Config) { cfg.CorosyncDelay = 2 * time.Second }, func(t *testing.T, c *pvesim.Cluster, _ *fabric.Network) {
		rng := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the same faults each time
		node := func() string { return c.Nodes()[rng.IntN(3)].Name }
		for id := range 4 {
			run(t, c, fmt.Sprintf("ha %d started", 100+id))
		}
		faults := []func() string{
			func() string { a := node(); return "partition " + a + "|" + others(c, a) },
			func() string { return "cut " + node() + ">" + node() },
			func() string { return "cut " + node() + " " + node() },
			func() string { return "cut-agents " + node() + " " + node() },
			func() string { return "heal" }, func() string { return "heal" },
			func() string { return "node " + node() + " off" },
			func() string { return "node " + node() + " on" }, func() string { return "node " + node() + " on" },
			func() string { return "readonly " + node() + " on" }, func() string { return "readonly " + node() + " off" },
			func() string { return "quorum " + node() + " off" }, func() string { return "quorum " + node() + " on" },
			func() string { return "vmlist-lag " + node() + " 3s" }, func() string { return "vmlist-lag " + node() + " 0s" },
			func() string { return fmt.Sprintf("migrate %d %s gap 1s &", 100+rng.IntN(4), node()) },
			func() string { return fmt.Sprintf("set %d name=n%d", 100+rng.IntN(4), rng.IntN(1000)) },
		}
		for range 250 {
			line := faults[rng.IntN(len(faults))]()
			_, _ = c.Do(t.Context(), line)                             // many cannot work: the node is off
			time.Sleep(time.Duration(rng.IntN(int(12 * time.Second)))) //nolint:forbidigo // virtual time
		}
		run(t, c, "heal", "quorum all on")
		for _, n := range c.Nodes() {
			run(t, c, "readonly "+n.Name+" off", "vmlist-lag "+n.Name+" 0s", "node "+n.Name+" on")
		}
		time.Sleep(5 * time.Minute) //nolint:forbidigo // virtual time
		for name, got := range look(t, c) {
			if got != "123" {
				t.Errorf("%s sees %s", name, got)
			}
		}
		for i := range 4 {
			vmid := fmt.Sprint(100 + i)
			at, files := "", 0
			for _, n := range c.Nodes() {
				if _, err := os.Stat(filepath.Join(c.Node("pve1").PMXCFS, "nodes", n.Name, "qemu-server", vmid+".conf")); err == nil {
					at, files = n.Name, files+1
				}
			}
			for _, n := range c.Nodes() {
				if got := list(t, n).IDs[vmid].Node; got != at || files != 1 {
					t.Errorf("%s says that %s is on %q; %d files, at %q", n.Name, vmid, got, files, at)
				}
			}
		}
	})
}
