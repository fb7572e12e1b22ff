package guest

import (
	"context"
	"fmt"
	"net/url"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// allocate has PVE make the disks that the source does not have. What an attempt whose answer was lost has made is found
// in the config.
func (m *making) allocate(ctx context.Context, s *ops.StepRun) error {
	if len(m.order.VM.Drives) == 0 {
		return nil
	}
	err := m.runTask(ctx, s, nil, m.held(func(ctx context.Context) (pve.UPID, error) {
		conf, err := m.confHere(ctx, m.vmid())
		if err != nil {
			return "", err
		}
		params := missingDrives(m.order.VM.Drives, conf)
		if len(params) == 0 {
			return "", nil
		}
		return m.cfg.PVE.ConfigTask(ctx, m.cfg.Node, m.vmid(), params)
	}))
	if err != nil {
		return explain(m.act(fmt.Sprintf("make disks of VM %d", m.vmid())), err)
	}
	return m.noteVolumes(ctx)
}

// missingDrives are the config keys of drives that conf does not have yet. A key that is taken by another disk meanwhile
// is not ours to replace: PVE would detach that.
func missingDrives(drives []plan.Drive, conf *pmxcfs.Conf) url.Values {
	params := url.Values{}
	for _, d := range drives {
		if conf != nil {
			if _, there := conf.Get(d.Key); there {
				continue
			}
		}
		params.Set(d.Key, d.Value)
		if d.Key == "efidisk0" { // PVE makes an empty one for SeaBIOS
			params.Set("bios", "ovmf")
		}
	}
	return params
}
