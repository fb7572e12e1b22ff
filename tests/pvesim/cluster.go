// Package pvesim is a Proxmox VE cluster to develop against: N nodes in one
// process, each with an HTTPS API on a port of its own, one shared /etc/pve
// tree in a directory, and run and lock directories per node. It answers as
// recorded on a real cluster; virtual machines are real QEMU processes or
// stand-ins with the same sockets.
//
// It is a tool for tests and demonstrations and is not packaged.
package pvesim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/schema"
)

// Cluster is a simulated cluster. New prepares it, Start brings it up.
type Cluster struct {
	cfg      Config
	log      *slog.Logger
	nodes    []*Node
	byName   map[string]*Node
	routes   []*route
	tree     *tree
	accounts *accounts
	workers  *workers
	faults   *faults
	stats    *requestStats
	hyper    kvm.Hypervisor // of VMs in general
	standIn  kvm.Hypervisor // of the fleet, when hyper is real
	disks    disk.Store
	schema   *schema.Checker // nil: unchecked
	broken   *schemaLog
	guest    *guestimage.Image  // what real VMs boot; nil without
	debian   *guestimage.Debian // what some of them boot; nil without
	why      string
	pool     *storagePool
	pools    *pools
	machines *machines
	ha       *haState
	ring     *ring
	control  *control
	gap      atomic.Int64 // of migrations, nanoseconds

	ca, agentCA *authority

	ctx    context.Context //nolint:containedctx // the cluster's life: its tasks outlive every request
	cancel context.CancelFunc
	base   context.Context //nolint:containedctx // never ends: for what Close still has to do
	wg     sync.WaitGroup
}

// New checks the configuration. Nothing is started or written.
func New(cfg Config) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg: cfg, log: cfg.Log, byName: map[string]*Node{},
		accounts: newAccounts(cfg.Version, cfg.TicketLife),
		workers:  newWorkers(), faults: &faults{},
		stats:    &requestStats{counts: map[string]int{}},
		machines: newMachines(), ha: &haState{}, ring: newRing(), broken: &schemaLog{},
	}
	c.control = &control{c: c}
	c.pools = newPools(c)
	c.routes = c.routeTable()
	own := map[string]string{}
	for i := range cfg.Nodes {
		n := newNode(c, i, fmt.Sprintf("pve%d", i+1))
		c.nodes = append(c.nodes, n)
		c.byName[n.Name] = n
		c.ring.names, own[n.Name] = append(c.ring.names, n.Name), n.own
	}
	c.tree = newTree(filepath.Join(cfg.Dir, "etc", "pve"), c.ring.names, own, cfg.Addresses)
	c.tree.linked = cfg.PMXCFS == Dir
	c.tree.later = func(d time.Duration, do func()) {
		c.wg.Go(func() {
			if c.pause(c.ctx, d); c.ctx.Err() == nil {
				do()
			}
		})
	}
	c.tree.warn = func(err error) { c.log.Warn("tree", "err", err) }
	c.pool = newStoragePool(c)
	if err := c.loadSchema(); err != nil {
		return nil, err
	}
	return c, nil
}

// Start brings the cluster up and returns when it answers. It may be called
// once; when it fails everything is taken down again.
func (c *Cluster) Start(ctx context.Context) error {
	c.base = context.WithoutCancel(ctx)
	c.ctx, c.cancel = context.WithCancel(c.base)
	for _, n := range c.nodes {
		n.powerOn()
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"directory", c.clearDir},
		{"directories", c.makeDirs},
		{"certificates", c.makeCerts},
		{"hypervisor", c.chooseHypervisor},
		{"api", c.openAPI},
		{"guests", c.populate},
		{"files", c.writeFiles},
		{"kernel", c.writeKernel},
	} {
		if err := step.run(ctx); err != nil {
			return errors.Join(fmt.Errorf("pvesim: %s: %w", step.name, err), c.Close())
		}
	}
	c.wg.Go(func() { c.tree.watch(c.ctx, c.cfg.Scan) })
	c.log.InfoContext(ctx, "simulated cluster is up", "dir", c.cfg.Dir, "vms", c.hyper.Name(), "pve", c.cfg.Version, "schema", c.Schema())
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, "ready"), nil, 0o600); err != nil {
		return errors.Join(fmt.Errorf("pvesim: %w", err), c.Close())
	}
	return nil
}

// Close stops every virtual machine, task and server and waits for them. The
// files stay.
func (c *Cluster) Close() error {
	if c.cancel == nil {
		return nil
	}
	_ = os.Remove(filepath.Join(c.cfg.Dir, "ready"))
	c.cancel()
	for _, n := range c.nodes {
		n.proxy.close()
		n.daemon.close()
	}
	c.control.close()
	err := c.machines.killAll()
	for _, n := range c.nodes {
		n.proxy.wait()
		n.daemon.wait()
	}
	c.control.busy.Wait()
	c.wg.Wait()
	err = errors.Join(err, c.machines.killAll())
	if c.cfg.PMXCFS == FUSE {
		for _, n := range c.nodes {
			err = errors.Join(err, n.unmount(c.base))
		}
	}
	return err
}

// Nodes returns the nodes in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns a node by its name, nil if there is none.
func (c *Cluster) Node(name string) *Node { return c.byName[name] }

// Tree is the path of the shared /etc/pve.
func (c *Cluster) Tree() string { return c.tree.root }

// Hypervisor says what the VMs are.
func (c *Cluster) Hypervisor() string { return c.hyper.Name() }

// pause waits, but not longer than the cluster lives.
func (c *Cluster) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
}

func (c *Cluster) offlineDelay() time.Duration { return 20 * time.Millisecond }

func (c *Cluster) makeDirs(ctx context.Context) error {
	for _, n := range c.nodes {
		for _, d := range []string{n.own, filepath.Dir(n.PMXCFS), n.Run, n.Lock, n.State} {
			if err := os.MkdirAll(d, 0o750); err != nil {
				return fmt.Errorf("node %s: %w", n.Name, err)
			}
		}
	}
	if err := c.tree.create(); err != nil {
		return err
	}
	if err := errors.Join(c.pool.create(), c.pools.change(func() error { return nil })); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.mountView(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) openAPI(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := errors.Join(n.proxy.open(c), n.daemon.open(c)); err != nil {
			return err
		}
	}
	return c.control.open(ctx)
}
