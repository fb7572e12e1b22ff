// Command bench measures the agent's speed. What matters is printed as a ratio to a gRPC server that answers with a
// constant, loaded side by side in the same run, because these ratios hold on any machine; absolute figures are printed
// with their target and fail only at five times that, because machines differ.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds the whole run.
const limit = 15 * time.Minute

// constantCommand makes this program be the constant server instead.
const constantCommand = "constant-server"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	var err error
	if len(os.Args) > 1 && os.Args[1] == constantCommand {
		err = serveConstant(ctx)
	} else {
		err = run(ctx)
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // nothing can be done about a temporary directory that stays
	b := &bench{binary: dir + "/pve-rigaud"}
	if err := build(ctx, b.binary); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{b.storm, b.far, b.scale, b.creation, b.planning, b.placement, b.placing, b.hotplug} {
		if err := b.settled(ctx, part); err != nil {
			return err
		}
	}
	return errors.Join(b.failures...)
}

// attempts is how often a part is measured at most.
const attempts = 5

// settled measures a part, and again if it failed: on a shared machine somebody else's work can spoil a run, and a part
// that is really too slow fails each time.
func (b *bench) settled(ctx context.Context, part func(context.Context) error) error {
	before := len(b.failures)
	for attempt := 1; ; attempt++ {
		if err := part(ctx); err != nil || len(b.failures) == before || attempt == attempts {
			return err
		}
		fmt.Println("once more, in case the machine was busy with something else:")
		b.failures = b.failures[:before]
	}
}

// bench collects what has failed, so that every figure is printed before the run ends.
type bench struct {
	binary   string
	failures []error
}

// ratio prints a figure relative to the constant server's; it fails outside of its bound.
func (b *bench) ratio(what string, got, bound float64, atLeast bool) {
	sign, ok := "<=", got <= bound
	if atLeast {
		sign, ok = ">=", got >= bound
	}
	b.print(what, fmt.Sprintf("%.2fx", got), fmt.Sprintf("%s %.2fx", sign, bound), ok)
}

// slack is how much an absolute figure may miss its target before it fails.
const slack = 5

// figure prints an absolute figure.
func (b *bench) figure(what string, got, target float64, unit string) {
	b.print(what, fmt.Sprintf("%.1f %s", got, unit), fmt.Sprintf("%.0f %s (fails at %.0f)", target, unit, target*slack), got <= target*slack)
}

func (b *bench) print(what, got, want string, ok bool) {
	verdict := ""
	if !ok {
		verdict = "  FAILED"
		b.failures = append(b.failures, fmt.Errorf("%s: %s, want %s", what, got, want))
	}
	fmt.Printf("%-58s %12s   want %s%s\n", what, got, want, verdict)
}
