package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long an agent may take to get ready, and to end after SIGTERM: it may be in the middle of something.
const (
	readyTime = 30 * time.Second
	stopTime  = 30 * time.Second
)

// process is an agent.
type process struct {
	node string
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
	err  error         // how it ended; valid then
}

// start starts the agent of a node and waits until it tells systemd's socket that it is ready. It writes into the log.
func (w *World) start(ctx context.Context, node string) (*process, error) {
	n := w.sim.Node(node)
	path := filepath.Join(filepath.Dir(n.State), "notify")
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ready, err := lc.ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(w.logs, node+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errors.Join(err, ready.Close())
	}
	defer func() { _ = log.Close() }() // the process has its own
	p := &process{node: node, cmd: exec.Command(w.program, "agent", "--config", n.AgentYAML), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := w.net.inside(node, p.cmd.Start); err != nil {
		return nil, errors.Join(err, ready.Close())
	}
	go func() {
		defer close(p.done)
		p.err = errors.Join(p.cmd.Wait(), ready.Close())
	}()
	if err := awaitReady(ready); err != nil {
		p.kill()
		return nil, fmt.Errorf("agent of %s: %w (%w)", node, err, p.err)
	}
	return p, nil
}

func awaitReady(sock net.PacketConn) error {
	if err := sock.SetReadDeadline(time.Now().Add(readyTime)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := sock.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("wait for READY=1: %w", err)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return nil
		}
	}
}

// lives reports whether the process has not ended yet.
func (p *process) lives() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill is kill -9, and returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// stop ends the process as systemd does.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		p.kill()
		return fmt.Errorf("agent of %s: still there %s after SIGTERM", p.node, stopTime)
	}
	if p.err != nil {
		return fmt.Errorf("agent of %s: %w", p.node, p.err)
	}
	return nil
}
