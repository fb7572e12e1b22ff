package kvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// RealConfig says which QEMU to run.
type RealConfig struct {
	Binary string // "" means qemu-system-x86_64 in $PATH
	// ConsoleDir, if set, gets <VMID>.log with what the guest wrote on serial0.
	ConsoleDir string
	Log        *slog.Logger // nil: nothing is logged
}

// Real runs machines in qemu-system-x86_64 with TCG: KVM is not used, so that
// the same happens on every machine.
type Real struct {
	cfg  RealConfig
	name string
}

// NewReal finds QEMU and asks for its version. The error is a [*MissingError]
// if it is not installed.
func NewReal(ctx context.Context, cfg RealConfig) (*Real, error) {
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	binary, err := exec.LookPath(cfg.Binary)
	if err != nil {
		return nil, &MissingError{Package: "qemu-system-x86", Err: err}
	}
	cfg.Binary = binary
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", binary, err)
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "QEMU emulator version "), " ")
	return &Real{cfg: cfg, name: fmt.Sprintf("real (%s %s)", filepath.Base(binary), strings.TrimSpace(version))}, nil
}

// Name is "real", with the program and its version.
func (r *Real) Name() string { return r.name }

// Start starts QEMU. It returns when QEMU's main loop answers.
func (r *Real) Start(ctx context.Context, spec Spec) (Process, error) {
	spec = spec.withDefaults()
	p, err := r.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %d: %w", spec.VMID, err)
	}
	return p, nil
}

func (r *Real) start(ctx context.Context, spec Spec) (*realProcess, error) {
	consoleLog := ""
	if r.cfg.ConsoleDir != "" {
		consoleLog = filepath.Join(r.cfg.ConsoleDir, strconv.Itoa(spec.VMID)+".log")
	}
	args, err := commandLine(spec, consoleLog)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := connected()
	if err != nil {
		return nil, err
	}
	p := &realProcess{
		spec: spec, log: r.cfg.Log.With(slog.Int("vmid", spec.VMID)),
		cmd: exec.Command(r.cfg.Binary, args...), //nolint:noctx // the machine outlives the call
		end: make(chan struct{}), done: make(chan struct{}),
	}
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	// A session of its own: Ctrl-C is for the simulated node, which then stops
	// its machines in order. SIGKILL to the node ends them too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	err = p.run()
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return p, p.await(ctx, ours)
}

// connected makes the two ends of the private monitor.
func connected() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make private monitor: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "monitor")
	theirs = os.NewFile(uintptr(fds[1]), "monitor of QEMU")
	ours, err = net.FileConn(file) // a copy
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make private monitor: %w", err), theirs.Close())
	}
	return ours, theirs, nil
}

// realProcess is one QEMU.
type realProcess struct {
	spec    Spec
	log     *slog.Logger
	cmd     *exec.Cmd
	monitor *monitor
	said    tail
	end     chan struct{} // closed when QEMU has ended
	done    chan struct{} // closed when nothing of it is left
}

// run starts QEMU and a goroutine that waits for its end. That one keeps its
// thread, because Pdeathsig is sent when the thread that forked ends.
func (p *realProcess) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			defer close(p.end)
			_ = p.cmd.Wait() // how it ended is in p.cmd.ProcessState
		}
	}()
	return <-started
}

// await waits until QEMU's main loop answers, and leaves nothing behind if it
// does not.
func (p *realProcess) await(ctx context.Context, conn net.Conn) error {
	m, err := openMonitor(ctx, conn, p.spec.OnEvent)
	if err != nil {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.end
		p.clean()
		return p.explain(err)
	}
	p.monitor = m
	go p.supervise()
	// Answered by the main loop, after the pid file was written.
	if _, err = p.Execute(ctx, "query-status", nil); err == nil {
		err = p.setBalloon(ctx)
	}
	if err != nil {
		return p.explain(errors.Join(err, p.Kill()))
	}
	return nil
}

// explain adds what QEMU said before it ended.
func (p *realProcess) explain(err error) error {
	if said := p.said.String(); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// setBalloon is part of each start on a real node, too.
func (p *realProcess) setBalloon(ctx context.Context) error {
	if p.spec.BalloonMiB <= 0 || p.spec.BalloonMiB >= p.spec.MemoryMiB {
		return nil
	}
	_, err := p.Execute(ctx, "balloon", map[string]int64{"value": int64(p.spec.BalloonMiB) << 20})
	return err
}

// supervise cleans up when QEMU has ended.
func (p *realProcess) supervise() {
	<-p.end
	p.monitor.close()
	p.clean()
	p.log.Debug("qemu has ended", slog.String("how", p.cmd.ProcessState.String()), slog.String("said", p.said.String()))
	close(p.done)
}

// clean removes what QEMU leaves: the VNC socket, and everything when it was
// killed. The rest of one that quits may be its successor's by now.
func (p *realProcess) clean() {
	left := []string{"vnc"}
	if !p.cmd.ProcessState.Success() {
		left = append(left, "qmp", "qga", "serial0", "pid")
	}
	for _, kind := range left {
		if err := os.Remove(p.spec.path(kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.log.Warn("a file of an ended machine stays", slog.Any("err", err))
		}
	}
}

func (p *realProcess) PID() int { return p.cmd.Process.Pid }

func (p *realProcess) Done() <-chan struct{} { return p.done }

func (p *realProcess) Execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return p.monitor.execute(ctx, command, args)
}

func (p *realProcess) Powerdown(ctx context.Context) error { return p.do(ctx, "system_powerdown") }

func (p *realProcess) Reset(ctx context.Context) error { return p.do(ctx, "system_reset") }

func (p *realProcess) Pause(ctx context.Context) error { return p.do(ctx, "stop") }

func (p *realProcess) Resume(ctx context.Context) error { return p.do(ctx, "cont") }

func (p *realProcess) do(ctx context.Context, command string) error {
	_, err := p.Execute(ctx, command, nil)
	return err
}

func (p *realProcess) Quit(ctx context.Context) error {
	// QEMU may end before its reply is read.
	if err := p.do(ctx, "quit"); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("quit: %w", ctx.Err())
	}
}

func (p *realProcess) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill machine %d: %w", p.spec.VMID, err)
	}
	<-p.done
	return nil
}

// tail keeps the last KiB of what is written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	t.buf = t.buf[max(0, len(t.buf)-1024):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
