package pvesim

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// errNoVM names a VM that no node has.
func errNoVM(vmid int) error { return fmt.Errorf("pvesim: no VM %d", vmid) }

// CAFile is the cluster's CA in the shared tree.
func (c *Cluster) CAFile() string { return filepath.Join(c.tree.root, "pve-root-ca.pem") }

// Owner returns the node that has a VM.
func (c *Cluster) Owner(vmid int) (string, bool) { return c.tree.owner(vmid) }

// VMIDs returns the numbers in use, in order.
func (c *Cluster) VMIDs() []int {
	ids, _ := c.tree.ids()
	return ids
}

// Running says whether a VM runs.
func (c *Cluster) Running(vmid int) bool {
	node, ok := c.tree.owner(vmid)
	return ok && c.machines.on(node, vmid) != nil
}

// Config returns the current options of a VM.
func (c *Cluster) Config(vmid int) (map[string]string, error) {
	n, conf, err := c.find(vmid)
	if err != nil || n == nil {
		return nil, err
	}
	return conf.Main, nil
}

// Pending returns what waits in the config of a VM for its next start; "delete" lists the keys that go away.
func (c *Cluster) Pending(vmid int) (map[string]string, error) {
	n, conf, err := c.find(vmid)
	if err != nil || n == nil {
		return nil, err
	}
	return conf.Pending, nil
}

func (c *Cluster) find(vmid int) (*Node, *vmconf.Conf, error) {
	node, ok := c.tree.owner(vmid)
	if !ok {
		return nil, nil, errNoVM(vmid)
	}
	b, err := c.tree.readLive(node, vmid)
	if err != nil {
		return nil, nil, err
	}
	return c.byName[node], vmconf.Parse(b), nil
}

// SetConfig changes options of a VM behind everybody's back, as root with an
// editor would; an empty value removes the option.
func (c *Cluster) SetConfig(vmid int, options map[string]string) error {
	n, conf, err := c.find(vmid)
	if err != nil {
		return err
	}
	for k, v := range options {
		if v == "" {
			delete(conf.Main, k)
		} else {
			conf.Main[k] = v
		}
	}
	return c.saveConf(n, vmid, conf)
}

// SetLock sets the "lock" option ("backup"); "" removes it.
func (c *Cluster) SetLock(vmid int, lock string) error {
	return c.SetConfig(vmid, map[string]string{"lock": lock})
}

// VanishVM removes a VM at once: process and config. Its disks stay.
func (c *Cluster) VanishVM(vmid int) error {
	node, ok := c.tree.owner(vmid)
	if !ok {
		return errNoVM(vmid)
	}
	if err := c.tree.removeConf(node, vmid); err != nil {
		return err
	}
	return c.KillVM(vmid)
}

// KillVM ends the process of a VM like a crash of QEMU.
func (c *Cluster) KillVM(vmid int) error {
	var errs []error
	for _, m := range c.machines.list() {
		if m.vmid == vmid {
			errs = append(errs, killMachine(m))
		}
	}
	return errors.Join(errs...)
}

func killMachine(m *machine) error {
	if err := m.proc.Kill(); err != nil && !errors.Is(err, kvm.ErrGone) {
		return fmt.Errorf("pvesim: kill VM %d: %w", m.vmid, err)
	}
	return nil
}

// AddVM adds a stopped VM to a node, with the usual options changed by those
// given. Its disk is on storage local.
func (c *Cluster) AddVM(vmid int, node string, options map[string]string) error {
	n := c.byName[node]
	if n == nil {
		return fmt.Errorf("pvesim: no node %q", node)
	}
	volid := fmt.Sprintf("%s:%d/vm-%d-disk-0.qcow2", StorageLocal, vmid, vmid)
	err := c.makeDisk(c.ctx, n, volid, func(path string) error { return c.disks.Create(c.ctx, path, "qcow2", fleetDisk) })
	if err != nil {
		return err
	}
	conf := c.guestConf(vmid, fmt.Sprintf("vm-%d", vmid), volid, fleetDisk)
	for k, v := range options {
		conf.Main[k] = v
	}
	return c.saveConf(n, vmid, conf)
}

// AddContainer adds the config of a container: something that has a number
// and is no VM.
func (c *Cluster) AddContainer(ctid int, node string) error {
	path := filepath.Join("nodes", node, "lxc", itoa(ctid)+".conf")
	if err := c.tree.writeFile(path, []byte("arch: amd64\nhostname: ct-"+itoa(ctid)+"\nmemory: 512\n"), 0o640); err != nil {
		return err
	}
	return c.tree.scan()
}

// StartVM and StopVM change a VM's power without the API.
func (c *Cluster) StartVM(vmid int) error {
	n, conf, err := c.find(vmid)
	if err != nil {
		return err
	}
	_, err = c.launch(c.ctx, n, vmid, conf.Main)
	return err
}

// MoveVM hands a VM to another node, as a migration does at its end. A
// running one is stopped: its process stays behind.
func (c *Cluster) MoveVM(vmid int, node string) error {
	from, ok := c.tree.owner(vmid)
	if !ok {
		return errNoVM(vmid)
	}
	if c.byName[node] == nil {
		return fmt.Errorf("pvesim: no node %q", node)
	}
	if err := c.KillVM(vmid); err != nil {
		return err
	}
	return c.tree.moveConf(vmid, from, node, nil)
}

// LagVMList lets a node's .vmlist and .version show changes only later; 0 ends
// that, and what is late is shown at once.
func (c *Cluster) LagVMList(node string, d time.Duration) error {
	if err := c.known(node); err != nil {
		return err
	}
	return c.tree.setLag(node, d)
}

// SetAPI closes a node's API, or opens it again on the same port; the node
// itself lives on.
func (c *Cluster) SetAPI(node string, on bool) error {
	n := c.byName[node]
	if n == nil {
		return fmt.Errorf("pvesim: no node %q", node)
	}
	if on {
		return errors.Join(n.proxy.open(c), n.daemon.open(c))
	}
	n.proxy.close()
	n.daemon.close()
	return nil
}

// SetDeaf makes a guest ignore the power button and the agent's shutdown.
func (c *Cluster) SetDeaf(vmid int, deaf bool) {
	c.machines.mu.Lock()
	defer c.machines.mu.Unlock()
	c.machines.deaf[vmid] = deaf
}

// QEMU returns the stand-in behind a running VM's sockets, to see what was
// asked and to change what it answers. There is none behind a real one.
func (c *Cluster) QEMU(vmid int) (*qmptest.QEMU, bool) {
	for _, m := range c.machines.list() {
		if p, ok := m.proc.(*kvm.FakeProcess); ok && m.vmid == vmid && m.alive() {
			return p.QEMU(), true
		}
	}
	return nil, false
}

// Requests counts the API's requests by "METHOD /path/{template}"; "401",
// "injected" and "501 ..." count what got no further.
func (c *Cluster) Requests() map[string]int { return c.stats.snapshot() }

// Version is the PVE version that is simulated ("9.1").
func (c *Cluster) Version() string { return c.cfg.Version }

// PMXCFS says how the nodes see /etc/pve.
func (c *Cluster) PMXCFS() string { return string(c.cfg.PMXCFS) }

// StandIns says which VMs are stand-ins beside real ones, "" for none: those
// that are there from the beginning.
func (c *Cluster) StandIns() string {
	if c.hyper == c.standIn || c.cfg.VMs == 0 {
		return ""
	}
	return fmt.Sprintf("VMs %d-%d", c.cfg.FirstVM, c.cfg.FirstVM+c.cfg.VMs-1)
}

// ParseSize reads "64G" into bytes.
func ParseSize(s string) (int64, error) {
	n, err := vmconf.ParseSize(s)
	if err != nil {
		return 0, fmt.Errorf("pvesim: %w", err)
	}
	return n, nil
}

// Sessions is what a VM's QMP socket has seen of others than PVE itself.
type Sessions struct {
	Count       int // that sent something
	LongestHold time.Duration
}

// QMP returns the QMP sessions of each running stand-in since it was started.
// LongestHold is of all clients, PVE's own short look at the greeting included.
func (c *Cluster) QMP() map[int]Sessions {
	out := map[int]Sessions{}
	for _, m := range c.machines.list() {
		p, ok := m.proc.(*kvm.FakeProcess)
		if !ok || !m.alive() {
			continue
		}
		s := p.QEMU().Stats()
		out[m.vmid] = Sessions{Count: s.Sessions, LongestHold: s.LongestHold}
	}
	return out
}
