package kvm

import (
	"context"
	"errors"
	"fmt"
)

// ErrNone is what a start fails with where there is no hypervisor.
var ErrNone = errors.New("no virtual machines can run here")

// None starts nothing: for where there can be no processes.
type None struct{}

// Start fails with [ErrNone].
func (None) Start(_ context.Context, spec Spec) (Process, error) {
	return nil, fmt.Errorf("machine %d: %w", spec.VMID, ErrNone)
}

// Name is "none".
func (None) Name() string { return "none" }
