package pvesim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
)

// control is the HTTP control API: "POST /do" with commands of [Cluster.Do],
// one a line, which are carried out in order; the answer is what they print.
// The first one that fails ends it: 400 with its error as the last line.
type control struct {
	c *Cluster

	mu     sync.Mutex // guards what follows
	url    string
	server *http.Server
	busy   sync.WaitGroup
}

// Control is the base URL of the control API, "" without Config.Control.
func (c *Cluster) Control() string {
	c.control.mu.Lock()
	defer c.control.mu.Unlock()
	return c.control.url
}

func (ctl *control) open(ctx context.Context) error {
	c := ctl.c
	if c.cfg.Control == "" {
		return nil
	}
	ln, err := c.cfg.Network.Listen(ctx, "tcp", c.cfg.Control)
	if err != nil {
		return fmt.Errorf("control API: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /do", ctl.do)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: c.cfg.IdleTimeout, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	ctl.mu.Lock()
	ctl.url, ctl.server = "http://"+ln.Addr().String(), srv
	ctl.mu.Unlock()
	c.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.log.ErrorContext(ctx, "control API ended", "err", err)
		}
	})
	return nil
}

func (ctl *control) close() {
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	if ctl.server != nil {
		_ = ctl.server.Close()
		ctl.server = nil
	}
}

func (ctl *control) do(w http.ResponseWriter, r *http.Request) {
	ctl.busy.Add(1)
	defer ctl.busy.Done()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var out strings.Builder
	status := http.StatusOK
	for _, line := range strings.Split(string(body), "\n") {
		text, err := ctl.c.Do(r.Context(), line)
		out.WriteString(text)
		if err != nil {
			status = http.StatusBadRequest
			fmt.Fprintf(&out, "%s\n", strings.TrimSpace(err.Error()))
			break
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, out.String()) // the client may be gone
}
