package qmptest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// ProcessConfig says what process to start.
type ProcessConfig struct {
	Dir  string   // where <VMID>.pid is written
	VMID int      //
	Args []string // further arguments of the command line
}

// Process is a process that looks like a VM's and does nothing: its command
// line is "... kvm -id <VMID> -pidfile <Dir>/<VMID>.pid ...", and the pid file
// is there. It ends with the program that started it.
type Process struct {
	cmd     *exec.Cmd
	stdin   io.Closer // its end is the process's
	pidFile string
	done    chan struct{}
}

// StartProcess starts one. The caller ends it.
func StartProcess(cfg ProcessConfig) (*Process, error) {
	pidFile := filepath.Join(cfg.Dir, strconv.Itoa(cfg.VMID)+".pid")
	args := append([]string{"-c", "read x", "kvm", "-id", strconv.Itoa(cfg.VMID), "-pidfile", pidFile}, cfg.Args...)
	cmd := exec.Command("/bin/sh", args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start process of %d: %w", cfg.VMID, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start process of %d: %w", cfg.VMID, err)
	}
	p := &Process{cmd: cmd, stdin: stdin, pidFile: pidFile, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is of no interest
	}()
	p.awaitCommandLine()
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, p.PID()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("start process of %d: %w", cfg.VMID, err), p.Close())
	}
	return p, nil
}

// awaitCommandLine waits until the process shows its command line. Start returns when exec has closed the parent's files,
// and the kernel sets up the new program's arguments only after that; QEMU writes its pid file itself, later.
func (p *Process) awaitCommandLine() {
	for {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
		if err != nil || len(line) > 0 {
			return
		}
		select {
		case <-p.done:
			return
		default:
			runtime.Gosched()
		}
	}
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// PIDFile is the path of the pid file.
func (p *Process) PIDFile() string { return p.pidFile }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal, SIGSTOP for instance.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the process and leaves the pid file, as SIGKILL does to QEMU.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
	_ = p.stdin.Close()
}

// Close ends the process and removes the pid file.
func (p *Process) Close() error {
	p.Kill()
	if err := os.Remove(p.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
