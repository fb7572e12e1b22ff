// Package realqemu starts real QEMU processes and real guest agents for tests
// that say the same of the real thing and of its stand-in, package qmptest.
package realqemu

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what to start. Zero fields take the value named at them.
type Config struct {
	Dir       string // for <VMID>.pid, <VMID>.qmp and <VMID>.qga; short, see unix(7)
	VMID      int
	Name      string   // vm-<VMID>
	Sockets   int      // of one core each, 1; one CPU is plugged
	MemoryMiB int      // 64
	Args      []string // further arguments
}

// VM is a QEMU process, without disks, whose firmware has not begun to run
// (run state prelaunch). It was started with Proxmox VE's conventions.
type VM struct {
	PID     int
	PIDFile string
	QMP     string // path of the socket
	Agent   string // path of the socket; no guest is behind it
	fd      int
}

// Start starts one and returns when its sockets answer. The test is skipped if
// there is no QEMU; at its end the process is gone.
func Start(tb testing.TB, cfg Config) *VM {
	tb.Helper()
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		tb.Skip("skipped: needs qemu-system-x86_64; enable with: apt-get install qemu-system-x86")
	}
	base := filepath.Join(cfg.Dir, strconv.Itoa(cfg.VMID))
	vm := &VM{PIDFile: base + ".pid", QMP: base + ".qmp", Agent: base + ".qga", fd: -1}
	// -daemonize: the command returns when all sockets are there.
	cmd := exec.CommandContext(tb.Context(), program, vm.args(cfg)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("start qemu: %v: %s", err, out)
	}
	tb.Cleanup(vm.Kill)
	text, err := os.ReadFile(vm.PIDFile)
	if err != nil {
		tb.Fatal(err)
	}
	if vm.PID, err = strconv.Atoi(string(bytes.TrimSpace(text))); err != nil {
		tb.Fatal(err)
	}
	if vm.fd, err = unix.PidfdOpen(vm.PID, 0); err != nil {
		tb.Fatalf("pidfd of qemu: %v", err)
	}
	return vm
}

func (vm *VM) args(cfg Config) []string {
	if cfg.Name == "" {
		cfg.Name = "vm-" + strconv.Itoa(cfg.VMID)
	}
	sockets, memory := max(cfg.Sockets, 1), cfg.MemoryMiB
	if memory == 0 {
		memory = 64
	}
	return append([]string{
		"-name", cfg.Name + ",debug-threads=on", "-no-shutdown",
		"-chardev", "socket,id=qmp,path=" + vm.QMP + ",server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-pidfile", vm.PIDFile, "-daemonize",
		"-smp", fmt.Sprintf("1,sockets=%d,cores=1,maxcpus=%d", sockets, sockets),
		"-nodefaults", "-display", "none", "-S", "-cpu", "qemu64", "-m", strconv.Itoa(memory),
		"-chardev", "socket,path=" + vm.Agent + ",server=on,wait=off,id=qga0",
		"-device", "virtio-serial,id=qga0", "-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
		"-device", "virtio-balloon-pci,id=balloon0", "-machine", "accel=tcg,type=pc",
	}, cfg.Args...)
}

// Hang stops the process (SIGSTOP) and returns when it has stopped, or lets it
// go on.
func (vm *VM) Hang(tb testing.TB, hung bool) {
	tb.Helper()
	sig := unix.SIGCONT
	if hung {
		sig = unix.SIGSTOP
	}
	if err := unix.PidfdSendSignal(vm.fd, sig, nil, 0); err != nil {
		tb.Fatalf("signal qemu: %v", err)
	}
	// The signal is taken by any thread, and until then the others go on.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for hung && !vm.stopped(tb) {
		<-tick.C
	}
}

// stopped reports whether all threads have stopped.
func (vm *VM) stopped(tb testing.TB) bool {
	tb.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", vm.PID))
	if err != nil || len(threads) == 0 {
		tb.Fatalf("threads of qemu: %v, %d", err, len(threads))
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has ended
		}
		if err != nil {
			tb.Fatal(err)
		}
		if end := bytes.LastIndexByte(stat, ')'); !bytes.HasPrefix(stat[end+1:], []byte(" T")) {
			return false
		}
	}
	return true
}

// Kill ends the process and returns when it is gone. Its files stay.
func (vm *VM) Kill() {
	if vm.fd < 0 {
		return
	}
	_ = unix.PidfdSendSignal(vm.fd, unix.SIGKILL, nil, 0) // it may have ended
	await(vm.fd)
	_ = unix.Close(vm.fd)
	vm.fd = -1
}

// await waits until the process of a pidfd has ended.
func await(fd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != nil && err != unix.EINTR { //nolint:errorlint // an errno
			return
		}
	}
}

// StartAgent runs a guest agent of this machine behind the socket at path. The
// test is skipped if there is none.
func StartAgent(tb testing.TB, path string) {
	tb.Helper()
	program, err := exec.LookPath("qemu-ga")
	if err != nil {
		tb.Skip("skipped: needs qemu-ga; enable with: apt-get install qemu-guest-agent")
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	socket.SetUnlinkOnClose(false)
	file, err := socket.File()
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	// Handed over as by systemd, the socket takes connections from now on.
	cmd := exec.CommandContext(tb.Context(), "/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"`, "sh",
		program, "-m", "unix-listen", "-p", path, "-t", filepath.Dir(path), "-f", path+".pid")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start qemu-ga: %v", err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
