package pvesim_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario/fabric"
)

// outside runs functions on goroutines of no bubble.
func outside(t *testing.T) func(func()) {
	t.Helper()
	work := make(chan func())
	var wg sync.WaitGroup
	wg.Go(func() {
		for f := range work {
			wg.Go(f)
		}
	})
	t.Cleanup(func() {
		close(work)
		wg.Wait()
	})
	return func(f func()) { work <- f }
}

// bubble runs a test with a cluster in virtual time: nodes see /etc/pve
// through FUSE, and all connections are in memory.
func bubble(t *testing.T, change func(*pvesim.Config), test func(t *testing.T, c *pvesim.Cluster, network *fabric.Network)) {
	t.Helper()
	mountable(t)
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	serve := outside(t)
	synctest.Test(t, func(t *testing.T) {
		network := fabric.New(fabric.Config{})
		for i := range byte(3) {
			network.AddHost(fmt.Sprintf("pve%d", i+1), netip.AddrFrom4([4]byte{10, 0, 0, i + 1}))
		}
		cfg := pvesim.Config{
			Dir: dir, VMs: 4, QEMU: pvesim.None, PMXCFS: pvesim.FUSE, Version: "9.1", Network: network, Go: serve,
		}
		if change != nil {
			change(&cfg)
		}
		c, err := pvesim.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(t, c, network)
	})
}

// bubbleClient is newClient over the network in memory.
func bubbleClient(t *testing.T, c *pvesim.Cluster, network *fabric.Network, node string) *client {
	t.Helper()
	pem, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext:     network.Host(node).Process("").Dial,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{
		t: t, c: c, base: c.Node(node).API(), http: &http.Client{Transport: tr},
		token: pvesim.TokenID + "=" + pvesim.TokenSecret,
	}
}

// TestBubble: a cluster lives in virtual time, with FUSE, and minutes pass at once.
func TestBubble(t *testing.T) {
	began := time.Now()
	bubble(t, func(cfg *pvesim.Config) { cfg.TaskDelay = 3 * time.Minute }, func(t *testing.T, c *pvesim.Cluster, network *fabric.Network) {
		start := time.Now()
		cl := bubbleClient(t, c, network, "pve1")
		if cl.base != "https://10.0.0.1:8006" {
			t.Errorf("the API is at %s", cl.base)
		}
		exit, log := cl.task("POST /nodes/pve1/qemu/9000/clone", "newid=600&name=web")
		if exit != "OK" {
			t.Fatalf("clone: %s\n%s", exit, strings.Join(log, "\n"))
		}
		if took := time.Since(start); took < 3*time.Minute || took > 4*time.Minute {
			t.Errorf("the clone took %s of virtual time", took)
		}
		if b, err := os.ReadFile(filepath.Join(c.Node("pve3").PMXCFS, "nodes", "pve1", "qemu-server", "600.conf")); err != nil || !strings.Contains(string(b), "name: web") {
			t.Errorf("%s %v", b, err)
		}
		if exit, _ := cl.task("POST /nodes/pve1/qemu/600/status/start", ""); !strings.Contains(exit, "no virtual machines can run here") {
			t.Errorf("start: %s", exit)
		}
		time.Sleep(10 * time.Minute) //nolint:forbidigo // virtual time
	})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s of real time", took)
	} else {
		t.Logf("took %s of real time", took)
	}
}

// TestBubbleFaults: partitions, delays and deaths in virtual time.
func TestBubbleFaults(t *testing.T) {
	bubble(t, func(cfg *pvesim.Config) { cfg.CorosyncDelay = 3 * time.Second }, func(t *testing.T, c *pvesim.Cluster, network *fabric.Network) {
		c.OnCut(func(from, to string, cut bool) { network.Set(from, to, "", fabric.Link{Cut: cut}) })
		claim := func(node, name string) error {
			f, err := os.OpenFile(filepath.Join(c.Node(node).PMXCFS, "priv", name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err == nil {
				err = f.Close()
			}
			return err
		}
		for round := range 20 {
			if err := c.Partition([][]string{{"pve1"}, {"pve2", "pve3"}}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := network.Host("pve1").Process("").Dial(ctx, "tcp", "10.0.0.2:8006"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("dial over the cut: %v", err)
			}
			cancel()
			name := "claim-" + string(rune('a'+round))
			if err := claim("pve1", name); !errors.Is(err, syscall.EACCES) {
				t.Errorf("claim in the minority: %v", err)
			}
			if err := claim("pve2", name); err != nil {
				t.Errorf("claim in the majority: %v", err)
			}
			time.Sleep(4 * time.Second) //nolint:forbidigo // virtual time
			if got := look(t, c); got["pve1"] != "1!" || got["pve2"] != "23" {
				t.Errorf("noticed: %v", got)
			}
			if err := c.Heal(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Second) //nolint:forbidigo // virtual time
			if err := claim("pve1", name); !errors.Is(err, syscall.EEXIST) {
				t.Errorf("claim when healed: %v", err)
			}
			if err := c.KillNode("pve3"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute) //nolint:forbidigo // virtual time
			if err := c.ReviveNode("pve3"); err != nil {
				t.Fatal(err)
			}
			if err := claim("pve3", "early"); !errors.Is(err, syscall.EACCES) {
				t.Errorf("claim right after the return: %v", err)
			}
			time.Sleep(4 * time.Second) //nolint:forbidigo // virtual time
			if err := claim("pve3", name); !errors.Is(err, syscall.EEXIST) {
				t.Errorf("claim after the return: %v", err)
			}
			// The kernel remembers nothing: what was removed elsewhere is gone here, and can be made.
			at := filepath.Join(c.Node("pve3").PMXCFS, "priv", name)
			if _, err := os.Stat(at); err != nil {
				t.Error(err)
			}
			if err := os.Remove(filepath.Join(c.Node("pve2").PMXCFS, "priv", name)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("removed elsewhere: %v", err)
			}
			if err := claim("pve3", name); err != nil {
				t.Errorf("claim of what was removed elsewhere: %v", err)
			}
		}
	})
}

// TestBubbleOpenFile: who keeps a file of a dead node open does not stop time for ever.
func TestBubbleOpenFile(t *testing.T) {
	bubble(t, func(cfg *pvesim.Config) { cfg.VMs = 0 }, func(t *testing.T, c *pvesim.Cluster, _ *fabric.Network) {
		f, err := os.Open(filepath.Join(c.Node("pve2").PMXCFS, ".members"))
		if err != nil {
			t.Fatal(err)
		}
		run(t, c, "node pve2 off")
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		run(t, c, "node pve2 on")
	})
}
