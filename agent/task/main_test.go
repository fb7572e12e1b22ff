package task

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pause lets time pass in a bubble, for what waits.
func pause() { time.Sleep(time.Second) }

// engine runs an engine of operations on a journal until stop is called.
func engine(t *testing.T, path string, handlers map[ops.Kind]ops.Handler, hook func(ops.Moment, ops.Event)) (e *ops.Engine, stop func()) {
	t.Helper()
	j, err := ops.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	e = ops.New(ops.Config{Journal: j, Log: slog.New(slog.DiscardHandler), Hook: hook})
	for k, h := range handlers {
		e.Handle(k, h)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-e.Ready()
	return e, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
}
