package scenario

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/pmxfuse"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // much is short-lived here
	goleak.VerifyTestMain(m)
}

var (
	update  = flag.Bool("update", false, "write the golden files anew")
	verbose = flag.Bool("agent-log", false, "print what the agents log")
)

// outside runs functions on goroutines outside of the bubble that calls it; stop waits for their ends.
func outside() (run func(func()), stop func()) {
	work := make(chan func(), 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for f := range work {
			wg.Go(f)
		}
	})
	return func(f func()) { work <- f }, func() {
		close(work)
		wg.Wait()
	}
}

// unmount takes away what a story may have left mounted.
func unmount(dir string) {
	mounts, err := filepath.Glob(filepath.Join(dir, "*/etc/pve"))
	for _, m := range mounts {
		_ = unix.Unmount(m, unix.MNT_FORCE|unix.MNT_DETACH) // usually it is unmounted
	}
	if err != nil {
		panic(err) // the pattern is ours
	}
}

// inVirtual runs a story in a world in virtual time.
func inVirtual(t *testing.T, steps []Step, change ...func(*VirtualConfig)) (report Report) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	run, stop := outside()
	defer stop()
	defer unmount(dir) // a story that ends in a panic would leave a process that waits for itself, and cannot be killed
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		if *verbose {
			log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		}
		cfg := VirtualConfig{Dir: dir, Nodes: 3, Log: log, Outside: run}
		for _, f := range change {
			f(&cfg)
		}
		w, err := NewVirtual(context.Background(), cfg)
		if missing, ok := errors.AsType[*pmxfuse.MissingError](err); ok {
			t.Skipf("skipped: %v", missing)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			for _, e := range w.Sim().SchemaErrors() {
				t.Errorf("a request that PVE's schema does not allow: %s", e)
			}
		}()
		for _, node := range w.Nodes() {
			if err := w.StartAgent(context.Background(), node); err != nil {
				t.Fatal(err)
			}
		}
		if report, err = Run(context.Background(), w, steps); err != nil {
			t.Error(err)
		}
	})
	return report
}
