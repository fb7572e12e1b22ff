package pvesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// machine is a running VM.
type machine struct {
	vmid   int
	node   *Node
	life   context.Context //nolint:containedctx // of the node when the VM was started
	proc   kvm.Process
	since  time.Time
	memory int64 // configured, bytes
	real   bool  // QEMU, not a stand-in

	mu      sync.Mutex // guards what follows
	paused  bool
	cleaned bool // qm cleanup was here
	reboot  bool // start it again after it stopped
}

// alive says whether the process is there; pidfile and /proc say the same.
func (m *machine) alive() bool {
	select {
	case <-m.proc.Done():
		return false
	default:
		return true
	}
}

func (m *machine) isPaused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

func (m *machine) setPaused(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = on
}

func (m *machine) setReboot(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reboot = on
}

// takeReboot returns and clears the request.
func (m *machine) takeReboot() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.reboot
	m.reboot = false
	return was
}

// takeCleanup is true once.
func (m *machine) takeCleanup() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := !m.cleaned
	m.cleaned = true
	return first
}

// machines are the running VMs of all nodes.
type machines struct {
	mu   sync.Mutex // guards what follows
	byID map[machineKey]*machine
	deaf map[int]bool // guests that ignore a shutdown
}

// machineKey: after a partition two nodes may run a VM of one number.
type machineKey struct {
	node string
	vmid int
}

func (m *machine) key() machineKey { return machineKey{m.node.Name, m.vmid} }

func newMachines() *machines { return &machines{byID: map[machineKey]*machine{}, deaf: map[int]bool{}} }

// on returns the VM if it runs on that node.
func (ms *machines) on(node string, vmid int) *machine {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.byID[machineKey{node, vmid}]; m != nil && m.alive() {
		return m
	}
	return nil
}

func (ms *machines) put(m *machine) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.byID[m.key()] = m
}

func (ms *machines) forget(m *machine) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.byID[m.key()] == m {
		delete(ms.byID, m.key())
	}
}

func (ms *machines) list() []*machine {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return slices.Collect(maps.Values(ms.byID))
}

func (ms *machines) isDeaf(vmid int) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.deaf[vmid]
}

// killAll ends every process, by its id, several at a time.
func (ms *machines) killAll() error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
	)
	slots := make(chan struct{}, 16)
	for _, m := range ms.list() {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := m.proc.Kill(); err != nil && !errors.Is(err, kvm.ErrGone) {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("kill VM %d: %w", m.vmid, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// launch starts the process of a VM whose config passed all checks.
func (c *Cluster) launch(ctx context.Context, n *Node, vmid int, conf vmconf.Section) (*machine, error) {
	return c.launchFrom(ctx, n, vmid, conf, "")
}

// launchFrom is launch with the memory that a snapshot holds.
func (c *Cluster) launchFrom(ctx context.Context, n *Node, vmid int, conf vmconf.Section, snapshot string) (*machine, error) {
	spec, err := c.spec(n, vmid, conf)
	if err != nil {
		return nil, err
	}
	spec.LoadVM = snapshot
	hyper := c.hypervisorFor(vmid)
	_, fake := hyper.(*kvm.Fake)
	m := &machine{vmid: vmid, node: n, life: n.alive(), since: time.Now(), memory: int64(conf.MemoryMiB()) << 20, real: !fake}
	ready := make(chan struct{})
	spec.OnEvent = func(event string, _ json.RawMessage) {
		<-ready
		c.onEvent(m, event)
	}
	proc, err := hyper.Start(ctx, spec)
	if err != nil {
		close(ready)
		return nil, dief("start failed: %s", err)
	}
	m.proc = proc
	c.machines.put(m)
	c.tellMemory(n)
	close(ready)
	c.wg.Go(func() { c.awaitExit(m) })
	return m, nil
}

// onEvent is qmeventd's ear: a guest that powered itself off leaves QEMU in
// run state "shutdown", and somebody has to end it.
func (c *Cluster) onEvent(m *machine, event string) {
	switch event {
	case "SHUTDOWN":
		if m.proc == nil {
			return
		}
		c.wg.Go(func() {
			if err := m.proc.Quit(c.ctx); err != nil && !errors.Is(err, kvm.ErrGone) && c.ctx.Err() == nil {
				c.log.Warn("quit after guest shutdown", "vmid", m.vmid, "err", err)
				_ = m.proc.Kill()
			}
		})
	case "STOP":
		m.setPaused(true)
	case "RESUME":
		m.setPaused(false)
	}
}

// awaitExit is the "qm cleanup" that qmeventd runs after each exit.
func (c *Cluster) awaitExit(m *machine) {
	select {
	case <-m.proc.Done():
	case <-c.ctx.Done():
		return
	}
	c.tellMemory(m.node)
	if m.life.Err() != nil {
		c.machines.forget(m)
		return
	}
	c.pause(c.ctx, c.cfg.CleanupDelay)
	err := c.withLock(c.ctx, m.node, m.vmid, cleanupTimeout, false, nil, func() error {
		c.awaitOther(m)
		return c.cleanup(m)
	})
	if err != nil && c.ctx.Err() == nil {
		c.log.Warn("cleanup", "vmid", m.vmid, "err", err)
	}
	c.machines.forget(m)
	if c.ctx.Err() == nil && m.takeReboot() {
		c.fork(m.node.Name, "qmstart", itoa(m.vmid), rootPrincipal, c.startWork(m.node, m.vmid))
	}
}

// awaitOther is the trap of a start right after a stop: "qm cleanup" finds a
// QEMU of that number running, takes it for the one that ended, and waits for
// its end with the VM's lock in its hand.
func (c *Cluster) awaitOther(m *machine) {
	next := c.machines.on(m.node.Name, m.vmid)
	if next == nil || next == m || c.cfg.CleanupHold <= 0 {
		return
	}
	timer := time.NewTimer(c.cfg.CleanupHold)
	defer timer.Stop()
	select {
	case <-next.proc.Done():
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

// cleanupTimeout is how long "qm cleanup" waits for the lock.
const cleanupTimeout = 60 * time.Second

// cleanup applies what was pending. The caller holds the VM's lock. It works
// once for each run of a VM.
func (c *Cluster) cleanup(m *machine) error {
	if next := c.machines.on(m.node.Name, m.vmid); !m.takeCleanup() || (next != nil && next != m) {
		return nil
	}
	conf, err := c.loadConf(m.node, m.vmid)
	if err != nil {
		return nil //nolint:nilerr // the VM is gone or moved: nothing is pending
	}
	return c.applyPending(c.ctx, m.node, m.vmid, conf, nil)
}

// spec says what to start.
func (c *Cluster) spec(n *Node, vmid int, conf vmconf.Section) (kvm.Spec, error) {
	s := kvm.Spec{
		VMID: vmid, Name: conf["name"], Hostname: conf["name"], UUID: conf.UUID(), RunDir: n.Run,
		Sockets: conf.Int("sockets", 1), Cores: conf.Int("cores", 1), VCPUs: conf.Int("vcpus", 0),
		CPUType:   vmconf.Props(conf["cpu"], "cputype")["cputype"],
		MemoryMiB: conf.MemoryMiB(), NUMA: conf.Bool("numa", false),
		Hotplug: sortedKeys(conf.Hotplug()), Agent: conf.AgentEnabled(), Serial: conf.HasSerial(),
		Args: splitArgs(conf["args"]), GuestIP: guestIP(vmid),
	}
	if v, ok := conf["balloon"]; ok {
		if s.BalloonMiB = conf.Int("balloon", 0); v == "0" {
			s.BalloonMiB = -1
		}
	}
	for _, d := range conf.Drives() {
		if d.Key == "efidisk0" || d.Key == "tpmstate0" {
			continue // firmware's, not a disk of the guest
		}
		disk, err := c.disk(n, d)
		if err != nil {
			return s, err
		}
		s.Disks = append(s.Disks, disk)
	}
	for _, key := range sortedKeys(conf) {
		if vmconf.IsNIC(key) {
			nic := vmconf.ParseNIC(key, conf[key])
			s.NICs = append(s.NICs, kvm.NIC{Key: key, Model: nic.Model, MAC: nic.MAC, Bridge: nic.Opts["bridge"]})
		}
	}
	return s, nil
}

// disk says what a machine needs to know of a drive.
func (c *Cluster) disk(n *Node, d vmconf.Drive) (kvm.Disk, error) {
	disk := kvm.Disk{Key: d.Key, CDROM: d.CDROM()}
	if serial, err := url.PathUnescape(d.Opts["serial"]); err == nil {
		disk.Serial = serial
	}
	if d.File == "none" || d.File == "cdrom" {
		return disk, nil
	}
	path, err := c.pool.exists(n.Name, d.File)
	if err != nil {
		return disk, err
	}
	disk.Path, disk.Format = path, fileFormat(path)
	if disk.Format != "qcow2" {
		disk.Format = "raw"
	}
	return disk, nil
}

// resizeFake tells a stand-in how much memory it has now.
func (c *Cluster) resizeFake(m *machine, mib int) error {
	p, ok := m.proc.(*kvm.FakeProcess)
	if !ok {
		return fmt.Errorf("VM %d is no stand-in", m.vmid)
	}
	p.QEMU().SetMemory(mib)
	return nil
}

// guestIP is the address a fake guest says it has.
func guestIP(vmid int) string {
	return fmt.Sprintf("10.%d.%d.%d", 77+vmid>>16&0x3f, vmid>>8&0xff, vmid&0xff)
}
