package pvesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// plugCPUs brings a running VM to the wanted number of vCPUs, one device at a
// time. Like PVE it first wants the config to say what runs.
func (c *Cluster) plugCPUs(ctx context.Context, m *machine, conf vmconf.Section, want string) error {
	target := conf.MaxCPUs()
	if want != "" {
		target = atoi(want)
	}
	if target > conf.MaxCPUs() {
		return errors.New("maxcpus exceeded")
	}
	have, cpuType, err := runningCPUs(ctx, m)
	if err != nil {
		return err
	}
	if said := conf.Int("vcpus", conf.MaxCPUs()); said != have {
		return errors.New("vcpus in running vm does not match its configuration")
	}
	cores := conf.Int("cores", 1)
	for ; have < target; have++ {
		dev := map[string]any{
			"driver": cpuType, "id": fmt.Sprintf("cpu%d", have+1),
			"socket-id": have / cores, "core-id": have % cores, "thread-id": 0,
		}
		if _, err := m.proc.Execute(ctx, "device_add", dev); err != nil {
			return err
		}
	}
	for ; have > target; have-- {
		if _, err := m.proc.Execute(ctx, "device_del", map[string]any{"id": fmt.Sprintf("cpu%d", have)}); err != nil {
			return err
		}
		if err := c.awaitCPUs(ctx, m, have-1); err != nil {
			return err
		}
	}
	return nil
}

// awaitCPUs waits until the guest gave a CPU back: 5 s in PVE.
func (c *Cluster) awaitCPUs(ctx context.Context, m *machine, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*c.cfg.PollUnit)
	defer cancel()
	for {
		have, _, err := runningCPUs(ctx, m)
		if err == nil && have <= n {
			return nil
		}
		c.pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("error unplugging cpu%d", n+1)
		}
	}
}

// runningCPUs counts the plugged vCPUs and says which device they are.
func runningCPUs(ctx context.Context, m *machine) (int, string, error) {
	raw, err := m.proc.Execute(ctx, "query-hotpluggable-cpus", nil)
	if err != nil {
		return 0, "", err
	}
	var slots []struct {
		Type    string `json:"type"`
		QOMPath string `json:"qom-path"`
	}
	if err := json.Unmarshal(raw, &slots); err != nil {
		return 0, "", fmt.Errorf("query-hotpluggable-cpus: %w", err)
	}
	n, kind := 0, "qemu64-x86_64-cpu"
	for _, s := range slots {
		kind = s.Type
		if s.QOMPath != "" {
			n++
		}
	}
	return n, kind, nil
}

// staticMiB is the part of a VM's memory that is not in DIMMs.
const staticMiB = 1024

// plugMemory plugs DIMMs into a running VM, or takes some out, one at a time:
// the config says after each what is there. Sizes are those of PVE's ladder, so
// that more can be plugged than asked for.
func (p *plugging) plugMemory(ctx context.Context, want string) error {
	now, target := p.conf.Main.MemoryMiB(), 512
	if want != "" {
		target = atoi(vmconf.Props(want, "current")["current"])
	}
	switch {
	case target == now:
		return nil
	case target < staticMiB:
		return fmt.Errorf("memory can't be lower than %d MB", staticMiB)
	case target > p.m.node.maxMiB():
		return dief("you cannot add more memory than max mem %d MB!", p.m.node.maxMiB())
	}
	for _, d := range ladder(p.m, p.conf.Main, now, target) {
		if err := p.changeDIMM(ctx, d, target > now); err != nil {
			return err
		}
		p.conf.Main["memory"] = itoa(d.total)
		if err := p.c.saveConf(p.m.node, p.m.vmid, p.conf); err != nil {
			return err
		}
	}
	p.conf.Pending["memory"] = p.conf.Main["memory"]
	return nil
}

// dimm is one step of a change of memory.
type dimm struct {
	name  string
	size  int // MiB
	node  int // of NUMA
	total int // MiB of the VM's memory when it is done
}

// ladder are the steps from one size to another. On the way down a DIMM goes
// that was added last, as long as there is more than wanted.
func ladder(m *machine, conf vmconf.Section, now, target int) []dimm {
	var up []dimm
	size, total := 512, staticMiB
	for i := 0; total < max(now, target); i++ {
		if i > 0 && i%32 == 0 {
			size *= 2
		}
		total += size
		up = append(up, dimm{fmt.Sprintf("dimm%d", i), size, i % 32 % conf.Int("sockets", 1), total})
	}
	if target > now {
		return slices.DeleteFunc(up, func(d dimm) bool { return d.total <= now })
	}
	var down []dimm
	for _, d := range slices.Backward(up) {
		if now <= target {
			break
		}
		now -= d.size
		d.total = now
		down = append(down, d)
	}
	return down
}

// changeDIMM plugs or unplugs one. A stand-in is told its new size.
func (p *plugging) changeDIMM(ctx context.Context, d dimm, plug bool) error {
	if !p.m.real {
		return p.c.resizeFake(p.m, d.total)
	}
	if plug {
		return kvm.PlugDIMM(ctx, p.m.proc, kvm.DIMM{Name: d.name, MiB: d.size, Node: d.node})
	}
	return kvm.UnplugDIMM(ctx, p.m.proc, d.name)
}
