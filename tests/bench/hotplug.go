package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const (
	places   = 32 // for vCPUs
	inflates = 60
	plugVM   = 9001 // changed by the agent's code
	bareVM   = 9002 // by hand
)

// hotplug measures what our manners cost: a vCPU plugged under PVE's lock in short sessions, against nothing but QEMU's
// device_add and one write of the config; and a balloon's target.
func (b *bench) hotplug(ctx context.Context) (err error) {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		fmt.Println("hot-plug is not measured: it needs qemu-system-x86_64; enable with: apt-get install qemu-system-x86")
		return nil //nolint:nilerr // it is said
	}
	r, err := cluster(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = join(err, r.Close()) }()
	p := &plugging{node: r.Sim.Node("pve1")}
	p.tree = pmxcfs.Open(p.node.PMXCFS)
	for _, vmid := range []int{plugVM, bareVM} {
		stop, err := startQEMU(ctx, program, p.node.Run, vmid)
		if err != nil {
			return err
		}
		defer stop()
		if err := r.Sim.AddVM(vmid, "pve1", map[string]string{
			"name": "vm-" + strconv.Itoa(vmid), "sockets": "1", "cores": strconv.Itoa(places), "vcpus": "1", "hotplug": "cpu,disk,network,usb",
		}); err != nil {
			return err
		}
	}
	if p.monitor, err = qmp.Open(ctx, p.socket(bareVM), qmp.Options{Hold: time.Hour, Command: 10 * time.Second, Greeting: 10 * time.Second}); err != nil {
		return err
	}
	defer p.monitor.Close()
	p.plugger = hotplug.New(hotplug.Config{
		Node: "pve1", Tree: p.tree, RunDir: p.node.Run, LockDir: p.node.Lock, Gate: qmp.NewGate(qmp.GateConfig{}), Log: slog.New(slog.DiscardHandler),
	})
	if err := b.plugs(ctx, p); err != nil {
		return err
	}
	return b.inflates(ctx, p)
}

// plugging is two VMs that are changed in turn.
type plugging struct {
	node    *pvesim.Node
	tree    *pmxcfs.Tree
	plugger *hotplug.Plugger
	monitor *qmp.Session // of bareVM, held
}

var plugTarget = hotplug.Target{VMID: plugVM, Is: func(*pmxcfs.Conf) bool { return true }}

func (p *plugging) socket(vmid int) string {
	return filepath.Join(p.node.Run, strconv.Itoa(vmid)+".qmp")
}

func (b *bench) plugs(ctx context.Context, p *plugging) error {
	var ours, bare []float64
	for n := 2; n <= places; n++ {
		begin := time.Now()
		if _, err := p.plugger.CPUs(ctx, plugTarget, n); err != nil {
			return err
		}
		ours = append(ours, millis(begin))
		begin = time.Now()
		if err := p.plugBare(ctx, n); err != nil {
			return err
		}
		bare = append(bare, millis(begin))
	}
	b.ratio(fmt.Sprintf("vCPU plugged (%.1f ms) of a bare device_add and a write (%.1f ms)", median(ours), median(bare)), median(ours)/median(bare), 5, false)
	return nil
}

// plugBare is the least that plugs a vCPU and says so.
func (p *plugging) plugBare(ctx context.Context, n int) error {
	device := map[string]any{
		"driver": "qemu64-x86_64-cpu", "id": fmt.Sprintf("cpu%d", n), "socket-id": 0, "core-id": n - 1, "thread-id": 0,
	}
	if err := p.monitor.Execute(ctx, "device_add", device, nil); err != nil {
		return err
	}
	conf, err := p.tree.Conf("pve1", bareVM)
	if err != nil {
		return err
	}
	if conf, err = conf.Set("vcpus", strconv.Itoa(n)); err != nil {
		return err
	}
	return p.tree.Replace("pve1", bareVM, conf)
}

// inflates sets the balloon to what the guest has already, since there is none that could move.
func (b *bench) inflates(ctx context.Context, p *plugging) error {
	const memory = 64
	var ours, bare []float64
	for range inflates {
		begin := time.Now()
		if _, err := p.plugger.Balloon(ctx, plugTarget, memory); err != nil {
			return err
		}
		ours = append(ours, millis(begin))
		begin = time.Now()
		if err := p.monitor.Execute(ctx, "balloon", map[string]int{"value": memory << 20}, nil); err != nil {
			return err
		}
		bare = append(bare, millis(begin))
	}
	b.figure(fmt.Sprintf("balloon command beyond the bare one (%.2f ms)", median(bare)), median(ours)-median(bare), 2, "ms")
	return nil
}

func millis(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// startQEMU starts a QEMU whose guest does not begin to run.
func startQEMU(ctx context.Context, program, dir string, vmid int) (stop func(), err error) {
	base := filepath.Join(dir, strconv.Itoa(vmid))
	cmd := exec.CommandContext(ctx, program, "-S", "-nodefaults", "-display", "none", "-machine", "accel=tcg,type=pc", "-cpu", "qemu64", "-m", "64",
		"-smp", fmt.Sprintf("1,sockets=1,cores=%d,maxcpus=%d", places, places), "-device", "virtio-balloon-pci,id=balloon0",
		"-chardev", "socket,id=qmp,path="+base+".qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-pidfile", base+".pid", "-daemonize") // returns when its sockets are there
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("start qemu: %w: %s", err, out)
	}
	text, err := os.ReadFile(base + ".pid")
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, err
	}
	return func() {
		_ = errors.Join(syscall.Kill(pid, syscall.SIGKILL), os.Remove(base+".pid"), os.Remove(base+".qmp")) // it may have ended
	}, nil
}
