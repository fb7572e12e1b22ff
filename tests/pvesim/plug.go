package pvesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

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

// plugBalloon changes the balloon's target. PVE sends the command only when
// "shares" is 0; otherwise pvestatd would, in its own time.
func (c *Cluster) plugBalloon(ctx context.Context, m *machine, conf vmconf.Section, want string) (bool, error) {
	old, had := conf["balloon"]
	if (had && old == "0") != (want == "0") {
		return false, nil // the device comes and goes with a restart
	}
	if want == "" || conf["shares"] == "0" {
		mib := conf.MemoryMiB()
		if n, err := strconv.Atoi(want); err == nil && n > 0 {
			mib = n
		}
		_, err := m.proc.Execute(ctx, "balloon", map[string]any{"value": int64(mib) << 20})
		return err == nil, err
	}
	return true, nil
}
