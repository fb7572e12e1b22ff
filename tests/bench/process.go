package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

func build(ctx context.Context, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/pve-rigaud/pve-rigaud/cmd/pve-rigaud")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}
	return nil
}

// process is a server in a process of its own, so that its memory and its garbage collector are its own.
type process struct {
	cmd    *exec.Cmd
	client providerpb.ProviderClient
	conn   *grpc.ClientConn
	notify net.PacketConn // where it tells systemd how it is
	ready  time.Duration  // from the start of the process to READY=1
}

// startAgent starts the agent of a node and waits until it tells systemd's socket that it is ready.
func (b *bench) startAgent(ctx context.Context, r *rig.Rig, node string) (*process, error) {
	creds, err := r.Credentials()
	if err != nil {
		return nil, err
	}
	n := r.Sim.Node(node)
	return start(ctx, n.GRPC, creds, n.State, b.binary, "agent", "--config", n.AgentYAML)
}

// start runs a program that notifies readiness as systemd services do.
func start(ctx context.Context, addr string, creds credentials.TransportCredentials, dir, program string, args ...string) (*process, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "notify")
	var lc net.ListenConfig
	sock, err := lc.ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "LOG_LEVEL=error")
	cmd.Stderr = os.Stderr
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	p := &process{cmd: cmd, notify: sock}
	if err := awaitReady(sock); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", filepath.Base(program), err), p.stop())
	}
	p.ready = time.Since(begin)
	if p.conn, err = grpc.NewClient(addr, grpc.WithTransportCredentials(creds)); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	p.client = providerpb.NewProviderClient(p.conn)
	return p, nil
}

// readyWait is how long a server may take to get ready; it notices a process that died, too.
const readyWait = 30 * time.Second

func awaitReady(sock net.PacketConn) error {
	if err := sock.SetReadDeadline(time.Now().Add(readyWait)); err != nil {
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

// stop ends the process and waits for it.
func (p *process) stop() error {
	if p.conn != nil {
		if err := p.conn.Close(); err != nil {
			return err
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return errors.Join(p.cmd.Wait(), p.notify.Close())
}

// killed waits for the end of a process that SIGKILL ends.
func (p *process) killed() error {
	if err := errors.Join(p.conn.Close(), p.notify.Close()); err != nil {
		return err
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = p.cmd.Wait() // it says that it was killed
	return nil
}

// residentMiB reads the memory the process has in RAM.
func (p *process) residentMiB() (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // only read from
	for s := bufio.NewScanner(f); s.Scan(); {
		if kib, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(kib, "kB")))
			return float64(n) / 1024, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/<pid>/status")
}
