package pvesim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

var rootPrincipal = principal{user: RootUser}

// start is POST .../status/start.
func (c *Cluster) start(_ context.Context, rq *request) (any, error) {
	if err := rq.rootOnly("stateuri", "skiplock", "migratedfrom", "migration_type", "migration_network", "targetstorage", "force-cpu"); err != nil {
		return nil, err
	}
	if err := c.needQuorum(rq.node); err != nil {
		return nil, err
	}
	vmid := rq.vmid()
	if c.haManaged(vmid) {
		return c.haTask(rq, "hastart", "started", "start"), nil
	}
	return c.fork(rq.node.Name, "qmstart", itoa(vmid), rq.who, c.startWork(rq.node, vmid)), nil
}

func (c *Cluster) needQuorum(n *Node) error {
	if !c.tree.isQuorate(n.Name) {
		return dief("cluster not ready - no quorum?")
	}
	return nil
}

func (c *Cluster) startWork(n *Node, vmid int) work {
	return work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error { return c.startVM(ctx, n, vmid, t) })
	}}
}

// startVM starts a VM. The caller holds its lock.
func (c *Cluster) startVM(ctx context.Context, n *Node, vmid int, t *Task) error {
	return c.startFrom(ctx, n, vmid, "", t)
}

// startFrom is startVM with the memory that a snapshot holds; "" boots the VM.
func (c *Cluster) startFrom(ctx context.Context, n *Node, vmid int, snapshot string, t *Task) error {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	if conf.Main.Bool("template", false) {
		return dief("you can't start a vm if it's a template")
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	if c.machines.on(n.Name, vmid) != nil {
		return dief("VM %d already running", vmid)
	}
	if err := c.applyPending(ctx, n, vmid, conf, nil); err != nil {
		return err
	}
	if err := c.generateCloudInit(ctx, n, vmid, conf, t); err != nil {
		return err
	}
	if err := c.startChecks(n, conf.Main); err != nil {
		return err
	}
	_, err = c.launchFrom(ctx, n, vmid, conf.Main, snapshot)
	return err
}

// startChecks are the refusals PVE has only when it builds the command line.
func (c *Cluster) startChecks(n *Node, conf vmconf.Section) error {
	if conf.MaxCPUs() > n.cpus {
		return dief("MAX %d vcpus allowed per VM on this node", n.cpus)
	}
	if conf.Hotplug()["memory"] {
		if !conf.Bool("numa", false) {
			return dief("NUMA needs to be enabled for memory hotplug")
		}
		if conf.MemoryMiB() < 1024 {
			return dief("minimum memory must be 1024MB")
		}
	}
	for _, d := range conf.Drives() {
		if d.Storage() == "" {
			continue
		}
		if _, err := c.pool.exists(n.Name, d.File); err != nil {
			return err
		}
	}
	for _, key := range sortedKeys(conf) {
		if !vmconf.IsNIC(key) {
			continue
		}
		if b := vmconf.ParseNIC(key, conf[key]).Opts["bridge"]; b != "" && !slices.Contains(n.bridges, b) {
			return dief("bridge '%s' does not exist", b)
		}
	}
	return nil
}

// bridges of a node, unless it is said to have others.
var bridges = []string{"vmbr0", "vmbr1"}

// stopRequest says how a VM is to be stopped.
type stopRequest struct {
	timeout  int // in seconds; 0 = PVE's 60
	shutdown bool
	force    bool
}

// stop is POST .../status/stop.
func (c *Cluster) stop(_ context.Context, rq *request) (any, error) {
	if err := rq.rootOnly("skiplock", "keepActive", "migratedfrom"); err != nil {
		return nil, err
	}
	vmid := rq.vmid()
	if c.haManaged(vmid) {
		if rq.flag("overrule-shutdown") {
			return nil, paramError("overrule-shutdown", "Not applicable for HA resources.")
		}
		return c.haTask(rq, "hastop", "stopped", "stop"), nil
	}
	how := stopRequest{timeout: rq.number("timeout", 0), force: true}
	return c.fork(rq.node.Name, "qmstop", itoa(vmid), rq.who, c.stopWork(rq.node, vmid, how)), nil
}

// shutdown is POST .../status/shutdown.
func (c *Cluster) shutdown(_ context.Context, rq *request) (any, error) {
	if err := rq.rootOnly("skiplock", "keepActive"); err != nil {
		return nil, err
	}
	vmid := rq.vmid()
	how := stopRequest{timeout: rq.number("timeout", 0), shutdown: true, force: rq.flag("forceStop")}
	if m := c.machines.on(rq.node.Name, vmid); m != nil && m.isPaused() {
		if !how.force {
			return nil, dief("VM is paused - cannot shutdown")
		}
		how.shutdown = false
	}
	if c.haManaged(vmid) {
		return c.haTask(rq, "hastop", "stopped", "stop"), nil
	}
	return c.fork(rq.node.Name, "qmshutdown", itoa(vmid), rq.who, c.stopWork(rq.node, vmid, how)), nil
}

func (c *Cluster) stopWork(n *Node, vmid int, how stopRequest) work {
	return work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error { return c.stopVM(ctx, n, vmid, how, t) })
	}}
}

// stopVM stops a VM; one that does not run is fine, whatever its config says.
// The caller holds its lock.
func (c *Cluster) stopVM(ctx context.Context, n *Node, vmid int, how stopRequest, t *Task) error {
	m, err := c.running(n, vmid)
	if m == nil {
		return err
	}
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	if err := c.askToStop(ctx, m, conf.Main, how, t); err != nil {
		return err
	}
	def(&how.timeout, 60)
	if !c.awaitStop(ctx, m, how.timeout) {
		if ctx.Err() != nil {
			return fmt.Errorf("stop VM %d: %w", vmid, ctx.Err())
		}
		if !how.force {
			return dief("VM quit/powerdown failed - got timeout")
		}
		t.logf("VM still running - terminating now with SIGTERM")
		if err := m.proc.Kill(); err != nil && !errors.Is(err, kvm.ErrGone) {
			return dief("VM quit/powerdown failed: %s", err)
		}
	}
	return c.cleanup(m)
}

func (c *Cluster) askToStop(ctx context.Context, m *machine, conf vmconf.Section, how stopRequest, t *Task) error {
	var err error
	switch {
	case !how.shutdown:
		err = m.proc.Quit(ctx)
	case conf.AgentEnabled() && c.agentRuns(ctx, m, t):
		if !c.machines.isDeaf(m.vmid) {
			err = c.agentShutdown(ctx, m)
		}
	case !c.machines.isDeaf(m.vmid):
		err = m.proc.Powerdown(ctx)
	}
	if err == nil || errors.Is(err, kvm.ErrGone) || !m.alive() {
		return nil
	}
	if how.force {
		t.logf("VM quit/powerdown failed - terminating now with SIGTERM")
		return nil
	}
	return dief("VM quit/powerdown failed")
}

// awaitStop waits PVE's way, in its "seconds".
func (c *Cluster) awaitStop(ctx context.Context, m *machine, seconds int) bool {
	timer := time.NewTimer(time.Duration(seconds) * c.cfg.PollUnit)
	defer timer.Stop()
	select {
	case <-m.proc.Done():
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return !m.alive()
}

// reboot is POST .../status/reboot: a shutdown, after which "qm cleanup"
// starts the VM again in a task of its own.
func (c *Cluster) reboot(_ context.Context, rq *request) (any, error) {
	vmid := rq.vmid()
	m, err := c.running(rq.node, vmid)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, dief("VM %d not running", vmid)
	case m.isPaused():
		return nil, dief("VM is paused - cannot shutdown")
	}
	how := stopRequest{timeout: rq.number("timeout", 0), shutdown: true}
	n := rq.node
	return c.fork(n.Name, "qmreboot", itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error {
			m.setReboot(true)
			err := c.stopVM(ctx, n, vmid, how, t)
			if err != nil {
				m.setReboot(false)
			}
			return err
		})
	}}), nil
}

// onRunning makes the handlers of reset, suspend and resume.
func (c *Cluster) onRunning(kind string, act func(context.Context, *machine) error) func(context.Context, *request) (any, error) {
	return func(_ context.Context, rq *request) (any, error) {
		if err := rq.rootOnly("skiplock", "nocheck"); err != nil {
			return nil, err
		}
		vmid, n := rq.vmid(), rq.node
		if m, err := c.running(n, vmid); err != nil {
			return nil, err
		} else if m == nil {
			return nil, dief("VM %d not running", vmid)
		}
		return c.fork(n.Name, kind, itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
			return c.lockConf(ctx, n, vmid, t, func() error { return c.runOn(ctx, n, vmid, act) })
		}}), nil
	}
}

func (c *Cluster) runOn(ctx context.Context, n *Node, vmid int, act func(context.Context, *machine) error) error {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	m := c.machines.on(n.Name, vmid)
	if m == nil {
		return dief("VM %d not running", vmid)
	}
	if err := act(ctx, m); err != nil {
		return dief("VM %d qmp command failed - %s", vmid, strings.TrimSpace(err.Error()))
	}
	return nil
}

func resetVM(ctx context.Context, m *machine) error { return m.proc.Reset(ctx) }

func pauseVM(ctx context.Context, m *machine) error {
	if err := m.proc.Pause(ctx); err != nil {
		return err
	}
	m.setPaused(true)
	return nil
}

func resumeVM(ctx context.Context, m *machine) error {
	if err := m.proc.Resume(ctx); err != nil {
		return err
	}
	m.setPaused(false)
	return nil
}
