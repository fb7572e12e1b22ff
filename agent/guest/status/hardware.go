package status

import (
	"context"
	"errors"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// Hardware is what a running VM has at this moment, as its QEMU counts it.
type Hardware struct {
	CPUs      int // vCPUs (query-cpus-fast)
	MemoryMiB int // what the balloon leaves to the guest (query-balloon); 0 without a balloon device
}

// Hardware asks the QEMU of a VM what it has, in one short session on behalf of a user. It fails when there is none, or
// when it does not answer.
func (t *Tracker) Hardware(ctx context.Context, vmid int) (Hardware, error) {
	var h Hardware
	err := t.cfg.Gate.Do(ctx, t.path(vmid, ".qmp"), qmp.User, func(s *qmp.Session) (err error) {
		h, err = readHardware(ctx, s)
		return err
	})
	if err != nil {
		return Hardware{}, fmt.Errorf("hardware of VM %d: %w", vmid, err)
	}
	return h, nil
}

func readHardware(ctx context.Context, s *qmp.Session) (Hardware, error) {
	var cpus []struct{}
	if err := s.Execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return Hardware{}, err
	}
	var balloon struct{ Actual int64 }
	err := s.Execute(ctx, "query-balloon", nil, &balloon)
	if refused, ok := errors.AsType[*qmp.Error](err); ok && refused.Class == qmp.ClassDeviceNotActive {
		err = nil
	}
	return Hardware{CPUs: len(cpus), MemoryMiB: int(balloon.Actual >> 20)}, err
}
