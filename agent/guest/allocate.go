package guest

import (
	"context"
	"fmt"
	"net/url"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
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
	again := func(err error) bool { return passing(err) || pve.KindOf(err) == pve.KindDigest }
	err := ops.Retry(ctx, again, m.pveTask(s, nil, m.held(m.allocateCall)).Attempt)
	if fault.Is(err, fault.Aborted) {
		return fault.New(fault.Aborted, "%s: %w", m.act(fmt.Sprintf("make disks of VM %d", m.vmid())), err)
	}
	if err != nil {
		return explain(m.act(fmt.Sprintf("make disks of VM %d", m.vmid())), err)
	}
	return m.noteVolumes(ctx)
}

// allocateCall asks for the disks that are missing. An earlier call whose answer was lost may still be at it: the digest
// has PVE refuse to make them twice.
func (m *making) allocateCall(ctx context.Context) (pve.UPID, error) {
	conf, err := m.confHere(ctx, m.vmid())
	if err != nil {
		return "", err
	}
	if conf == nil {
		return "", fault.New(fault.Aborted, "VM %d is no longer on node %s", m.vmid(), m.cfg.Node)
	}
	params, err := missingDrives(m.order.VM.Drives, conf)
	if err != nil || len(params) == 0 {
		return "", err
	}
	params.Set("digest", conf.Digest())
	return m.cfg.PVE.ConfigTask(ctx, m.cfg.Node, m.vmid(), params)
}

// missingDrives are the config keys of drives that conf does not have yet. A key that the source has given to something
// else meanwhile is not ours to replace: PVE would detach that.
func missingDrives(drives []plan.Drive, conf *pmxcfs.Conf) (url.Values, error) {
	params := url.Values{}
	for _, d := range drives {
		if have, there := conf.Get(d.Key); there {
			if serial, _ := pmxcfs.Props(have).Get("serial"); serial != d.Serial {
				return nil, fault.New(fault.Aborted, "the source has %s at %s since the request was planned; ask again", have, d.Key)
			}
			continue
		}
		params.Set(d.Key, d.Value)
		if d.Key == "efidisk0" { // PVE makes an empty one for SeaBIOS
			params.Set("bios", "ovmf")
		}
	}
	return params, nil
}
