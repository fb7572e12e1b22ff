package guest

import (
	"context"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// move takes the VM that was made here, because what it is made from is here, to the node that it is for. All its disks
// are on shared storages. If it cannot go there any more it stays: a VM on another node than the best is what was asked
// for, and none is not.
func (m *making) move(ctx context.Context, s *ops.StepRun) error {
	there, err := m.moved(ctx)
	if there {
		m.arrived(ctx)
	}
	if there || err != nil {
		return err
	}
	if !s.Again {
		if err := m.cfg.Admission.Admit(ctx, m.order.Target, m.run.Op().Key, m.order.Want); err != nil {
			m.stays(ctx, err)
			return nil
		}
	}
	err = m.runTask(ctx, s, nil, m.held(func(ctx context.Context) (pve.UPID, error) {
		return m.cfg.PVE.Migrate(ctx, m.cfg.Node, m.vmid(), pve.MigrateParams{Target: m.order.Target})
	}))
	if ctx.Err() != nil {
		return err
	}
	there, looked := m.moved(ctx)
	if there {
		m.arrived(ctx)
	}
	if there || looked != nil {
		return looked
	}
	if err == nil {
		err = fmt.Errorf("PVE has moved it, but its config is not there")
	}
	m.stays(ctx, err)
	return nil
}

// arrived tells the node that the VM is there: it keeps no room for it any more but what the VM itself takes.
func (m *making) arrived(ctx context.Context) {
	m.cfg.Admission.Release(ctx, m.order.Target, m.run.Op().Key)
}

// stays notes that the VM is left on this node.
func (m *making) stays(ctx context.Context, why error) {
	m.log.WarnContext(ctx, "VM stays on the node where it was made", "vm", m.vmid(), "name", m.order.Name, "node", m.cfg.Node, "meant for", m.order.Target, "err", why)
	m.cfg.Admission.Release(ctx, m.order.Target, m.run.Op().Key)
	m.cfg.Admission.Hold(m.run.Op().Key, m.vmid(), m.order.Want)
}

// moved reports whether the config of the VM is on the node that it is for.
func (m *making) moved(ctx context.Context) (bool, error) {
	conf, err := m.confOn(ctx, m.order.Target, m.vmid())
	return conf != nil, err
}

// confThere reads the config where the VM is by now; nil when it is on neither node.
func (m *making) confThere(ctx context.Context) (*pmxcfs.Conf, error) {
	if m.order.Target != "" {
		if conf, err := m.confOn(ctx, m.order.Target, m.vmid()); conf != nil || err != nil {
			return conf, err
		}
	}
	return m.confHere(ctx, m.vmid())
}
