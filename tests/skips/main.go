// Command skips runs `go test -json` with its own arguments and prints what
// `go test` would print, followed by what was skipped and the commands that
// would enable it. Tests say that themselves, with a message of the form
//
//	skipped: needs WHAT; enable with: COMMAND
//
// A skipped test that does not is a failure, because nobody could act on it.
// With PVE_RIGAUD_NO_SKIP=1 every skipped test is a failure.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:], os.Getenv("PVE_RIGAUD_NO_SKIP") == "1")
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string, noSkip bool) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	events, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("read from go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	rep := newReport(out)
	readErr := rep.read(events)
	waitErr := cmd.Wait()
	return errors.Join(rep.close(noSkip), readErr, failed(waitErr))
}

// failed words the end of go test, whose output has told the rest.
func failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("go test: %w", err)
}
