package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dirEnv tells a process that it is in namespaces of its own, and which directory is for its files.
const dirEnv = "PVE_RIGAUD_NETNS_DIR"

// MissingError says why this machine or user cannot make such a world.
type MissingError struct {
	Needs  string // for people
	Enable string // a command
}

// Error names what is needed and the command that helps.
func (e *MissingError) Error() string { return "needs " + e.Needs + "; enable with: " + e.Enable }

// possible returns a [*MissingError] for the first thing that is missing.
func possible() error {
	if os.Geteuid() != 0 {
		return &MissingError{Needs: "root", Enable: "sudo -E make scenarios"}
	}
	for _, need := range [][2]string{{"ip", "iproute2"}, {"nft", "nftables"}} {
		if _, err := exec.LookPath(need[0]); err != nil {
			return &MissingError{Needs: need[1], Enable: "apt-get install " + need[1]}
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return &MissingError{Needs: "/dev/fuse", Enable: "modprobe fuse"}
	}
	return nil
}

// Inside reports whether this process was started by [Enter].
func Inside() bool { return os.Getenv(dirEnv) != "" }

// Enter builds the program and runs this test binary once more, with the same arguments, in namespaces of its own. It
// returns the exit code when that has ended and its files are removed. A [*MissingError] says that it cannot be done here.
func Enter(ctx context.Context) (code int, err error) {
	if err := possible(); err != nil {
		return 0, err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("/tmp", "pr") // short: paths of unix sockets are limited
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(ctx, program(dir)); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// The kernel watches the thread that starts the process, not the process that it is part of.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// program is where the agent's program is.
func program(dir string) string { return filepath.Join(dir, "pve-rigaud") }

func build(ctx context.Context, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/pve-rigaud/pve-rigaud/cmd/pve-rigaud")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}
	return nil
}

// Furnish prepares the namespaces that this process is in: nothing that is mounted from now on is seen outside.
func Furnish(ctx context.Context) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := letGo(); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Names of network namespaces are below /run.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return run(ctx, "ip", "link", "set", "lo", "up")
}

// letGo unmounts our copies of the views that other simulated clusters have mounted: those could not end otherwise.
func letGo() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read from
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || !strings.Contains(lines.Text(), " - fuse.pmxcfs ") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount our copy of %s: %w", fields[4], err)
		}
	}
	return lines.Err()
}

// run runs a command, and has what it says in the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
