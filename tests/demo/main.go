// Command demo walks a VM through its life the way the VirtRigaud manager does: over gRPC, with the manager's own
// payloads, against a simulated PVE node whose VMs are real QEMU processes where QEMU is installed. It prints a table
// of steps and exits with 1 on any deviation.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// limit is how long the whole walk may take, on a machine that is busy with other things.
const limit = 5 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	begin := time.Now()
	r, err := rig.Start(ctx, rig.Config{
		Sim: pvesim.Config{Nodes: 1, VMs: 4, QEMU: pvesim.Auto},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return fmt.Errorf("start a simulated PVE node: %w", err)
	}
	defer func() {
		if cerr := r.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("stop: %w", cerr)
		}
	}()
	a, err := r.StartAgent(ctx, "pve1", nil)
	if err != nil {
		return err
	}
	fmt.Printf("One Proxmox VE node (simulated, VMs run as: %s), one agent on it, called over gRPC at %s.\n\n", r.Sim.Hypervisor(), a.Conn.Target())
	if !r.Real() {
		fmt.Printf("QEMU is not installed, so VMs are stand-ins. For real ones: %s\n\n", rig.InstallQEMU)
	}
	w := &walk{rig: r, agent: a, out: os.Stdout}
	err = w.all(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nAll as it should be, in %.1f s.\n", time.Since(begin).Seconds())
	return nil
}
