// Package hotplug changes running VMs of this node through QMP where that is allowed without making PVE's config lie: the
// number of vCPUs, with the config, and the balloon's target, without.
//
// vCPUs are changed as PVE does it (qemu-server, qemu_cpu_hotplug): under PVE's own lock of the VM, one device at a time,
// named as PVE names them, and after each one the config says how many run. PVE refuses a hot-plug when the two differ, and
// a live migration dies. Two things are done differently: the lock is not held while a guest gives a CPU back, and the
// monitor not for longer than a few commands.
package hotplug

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// Config is what a Plugger works with.
type Config struct {
	Node    string       // this node's name
	Tree    *pmxcfs.Tree // /etc/pve
	RunDir  string       // holds <vmid>.qmp, /var/run/qemu-server
	LockDir string       // holds PVE's lock files, /var/lock/qemu-server
	Gate    *qmp.Gate    // of this process
	Log     *slog.Logger
	Limits  Limits
}

// Limits bound how long is waited. Zero fields take the value named at them.
type Limits struct {
	Lock   time.Duration // for PVE's lock of a VM, 10 s as PVE itself
	Hold   time.Duration // that lock is ours at a time, 5 s
	Unplug time.Duration // for a guest to give a CPU back, 10 s; PVE waits 6
	Still  time.Duration // for a balloon that does not move, 5 s
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Lock: cmp.Or(l.Lock, 10*time.Second), Hold: cmp.Or(l.Hold, 5*time.Second),
		Unplug: cmp.Or(l.Unplug, 10*time.Second), Still: cmp.Or(l.Still, 5*time.Second),
	}
}

// Plugger changes running VMs. It keeps nothing between calls.
type Plugger struct {
	cfg Config
}

// New makes a Plugger.
func New(cfg Config) *Plugger {
	cfg.Limits = cfg.Limits.withDefaults()
	return &Plugger{cfg: cfg}
}

// Target is the VM that is meant.
type Target struct {
	VMID int
	Is   func(*pmxcfs.Conf) bool // still the machine that was meant: numbers are used again
}

// conf reads the config of the target. While it is not here, or is another machine's, that is ErrMoved.
func (p *Plugger) conf(t Target) (*pmxcfs.Conf, error) {
	conf, err := p.cfg.Tree.Conf(p.cfg.Node, t.VMID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := p.cfg.Tree.Version(); err != nil {
			return nil, err // nothing of the tree is there
		}
		return nil, fmt.Errorf("%w: no config under node %s", ErrMoved, p.cfg.Node)
	case err != nil:
		return nil, err
	case !t.Is(conf):
		return nil, fmt.Errorf("%w: the number is another machine's", ErrMoved)
	}
	return conf, nil
}

// free refuses a config that PVE is at work on.
func free(conf *pmxcfs.Conf) error {
	if lock := conf.Lock(); lock != "" {
		return &LockedError{Lock: lock}
	}
	return nil
}

// talk has one short conversation with the target's QEMU.
func (p *Plugger) talk(ctx context.Context, t Target, f func(*qmp.Session) error) error {
	err := p.cfg.Gate.Do(ctx, filepath.Join(p.cfg.RunDir, strconv.Itoa(t.VMID)+".qmp"), qmp.User, f)
	if !errors.Is(err, qmp.ErrGone) {
		return err
	}
	if _, elsewhere := p.conf(t); elsewhere != nil { // at the end of a migration process and config go at once
		return fmt.Errorf("%w: %w", elsewhere, err)
	}
	return fmt.Errorf("%w: %w", ErrNotRunning, err)
}

// explain names the VM and what was to be done with it, and recognises what somebody else's work was in the way of. ctx is
// the caller's: its end is the caller's doing.
func explain(ctx context.Context, act string, t Target, err error) error {
	if err == nil {
		return nil
	}
	late := errors.Is(err, qmp.ErrBusy) || errors.Is(err, context.DeadlineExceeded)
	if late && ctx.Err() == nil && !errors.Is(err, ErrBusy) {
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fmt.Errorf("%s of vm %d: %w", act, t.VMID, err)
}

// holding is a stretch of time in which PVE's lock of a VM is ours.
type holding struct {
	p    *Plugger
	t    Target
	conf *pmxcfs.Conf // as it is now: nobody else may change it
	half time.Time    // after that nothing new is begun
}

// locked runs f under PVE's lock of the VM, with the config read anew. The context of f ends when the lock must be given back.
func (p *Plugger) locked(ctx context.Context, t Target, f func(context.Context, *holding) error) (err error) {
	unlock, err := p.lock(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	held, cancel := context.WithTimeout(ctx, p.cfg.Limits.Hold)
	defer cancel()
	conf, err := p.conf(t)
	if err != nil {
		return err
	}
	return f(held, &holding{p: p, t: t, conf: conf, half: time.Now().Add(p.cfg.Limits.Hold / 2)})
}

func (p *Plugger) lock(ctx context.Context, t Target) (unlock func() error, err error) {
	wait, cancel := context.WithTimeout(ctx, p.cfg.Limits.Lock)
	defer cancel()
	unlock, err = pmxcfs.LockConf(wait, p.cfg.LockDir, t.VMID)
	if errors.Is(err, unix.EWOULDBLOCK) && ctx.Err() == nil {
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return unlock, err
}

// spent reports that the lock should be given back before the next step.
func (h *holding) spent() bool { return time.Now().After(h.half) }

// says returns the config with so many vCPUs. PVE writes the number even if it is all that the VM can have.
func (h *holding) says(vcpus int) (*pmxcfs.Conf, error) {
	return h.conf.Set("vcpus", strconv.Itoa(vcpus))
}

// stage lays a changed config beside the old one.
func (h *holding) stage(conf *pmxcfs.Conf) (*pmxcfs.Staged, error) {
	return h.p.cfg.Tree.Stage(h.p.cfg.Node, h.t.VMID, conf)
}

// write puts a changed config in the place of the old one.
func (h *holding) write(conf *pmxcfs.Conf) error {
	if err := h.p.cfg.Tree.Replace(h.p.cfg.Node, h.t.VMID, conf); err != nil {
		return err
	}
	h.conf = conf
	return nil
}

// pause lets d pass.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// The times between two looks at what a guest does.
const (
	pauseFirst = 100 * time.Millisecond
	pauseLast  = time.Second
)
