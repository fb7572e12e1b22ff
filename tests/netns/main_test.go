//go:build netns || soak

package netns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario"
)

var logs = flag.String("logs", "", "a directory where the logs of the agents are kept")

// missing is why no world can be made here.
var missing *MissingError

func TestMain(m *testing.M) {
	ctx := context.Background()
	if Inside() {
		if err := Furnish(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		goleak.VerifyTestMain(m)
	}
	code, err := Enter(ctx)
	if errors.As(err, &missing) {
		os.Exit(m.Run()) // in which everything is skipped
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// needWorlds skips a test where no world can be made.
func needWorlds(t *testing.T) {
	t.Helper()
	if missing != nil {
		t.Skipf("skipped: %v", missing)
	}
}

// tell runs a story in a world of its own, with three nodes whose agents run.
func tell(t *testing.T, text string) scenario.Report {
	t.Helper()
	steps, err := scenario.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	report, err := scenario.Run(t.Context(), w, InRealTime(steps))
	if err != nil {
		t.Error(err)
	}
	for _, v := range append(report.Violations, report.Broken...) {
		t.Error(v)
	}
	t.Logf("%d faults %v; %s", report.Total(), report.Faults, report.Scores)
	return report
}

// newWorld makes a world whose simulated cluster is changed a bit.
func newWorld(t *testing.T, change ...func(*pvesim.Config)) *World {
	t.Helper()
	cfg := Config{Nodes: 3, Log: slog.New(slog.DiscardHandler), Change: change}
	if *logs != "" {
		cfg.Logs = filepath.Join(*logs, filepath.Base(t.Name()))
	}
	w, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if t.Failed() && *logs == "" {
			showLogs(t, w)
		}
	})
	for _, node := range w.Nodes() {
		if err := w.StartAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// logTail is how much of an agent's log is shown of a failure.
const logTail = 20_000

func showLogs(t *testing.T, w *World) {
	t.Helper()
	for _, node := range w.Nodes() {
		f, err := os.Open(filepath.Join(w.Logs(), node+".log"))
		if err != nil {
			t.Error(err)
			continue
		}
		if info, err := f.Stat(); err == nil && info.Size() > logTail {
			_, _ = f.Seek(-logTail, io.SeekEnd) // from the beginning then
		}
		b, err := io.ReadAll(f)
		t.Logf("the end of the log of %s (all of it with -logs DIR):\n%s", node, b)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Error(err)
		}
	}
}
