package status

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc/<pid>/stat: USER_HZ, 100 on every
// Linux that Proxmox VE runs on.
const clockTick = 10 * time.Millisecond

// process is a live QEMU process, held by a pidfd: the number may be given to
// another process once it has ended, the pidfd never means another.
type process struct {
	pid     int
	started time.Time
	fd      int
}

// findProcess looks for the process of a VM by its pid file. nil without error
// means that there is none: no pid file, a process that has ended, or a number
// that belongs to a stranger now.
func (t *Tracker) findProcess(pidFile string) (*process, error) {
	pid, err := readPID(pidFile)
	if err != nil || pid == 0 {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // ended, or a thread's number
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process %d of %s: %w", pid, pidFile, err)
	}
	p := &process{pid: pid, fd: fd}
	ours, err := t.verify(p, pidFile)
	if err != nil || !ours {
		_ = unix.Close(fd)
		return nil, err
	}
	return p, nil
}

// readPID returns 0 when there is no pid file, or one that is being written.
func readPID(pidFile string) (int, error) {
	var stat unix.Stat_t
	if err := unix.Stat(pidFile, &stat); errors.Is(err, unix.ENOENT) {
		return 0, nil // by far the cheapest way to learn the usual case
	}
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("pid file: %w", err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return 0, nil
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pid file %s: %.40q is no process id", pidFile, text)
	}
	return pid, nil
}

// verify reports whether the process was started with this pid file, and notes
// when. What is read of /proc is about our process if that is alive afterwards.
func (t *Tracker) verify(p *process, pidFile string) (bool, error) {
	cmdline, err := os.ReadFile(t.procFile(p.pid, "cmdline"))
	if err == nil && !startedWith(cmdline, pidFile) {
		return false, nil
	}
	var stat []byte
	if err == nil {
		stat, err = os.ReadFile(t.procFile(p.pid, "stat"))
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("process of %s: %w", pidFile, err)
	}
	if p.started, err = startTime(stat); err != nil {
		return false, fmt.Errorf("process %d of %s: %w", p.pid, pidFile, err)
	}
	return !exited(p.fd), nil
}

func (t *Tracker) procFile(pid int, name string) string {
	return filepath.Join(t.cfg.Proc, strconv.Itoa(pid), name)
}

// startedWith looks for "-pidfile <path>" in a command line. The path may be
// the same file by another name: /var/run is a link to /run.
func startedWith(cmdline []byte, pidFile string) bool {
	args := strings.Split(string(cmdline), "\x00")
	for i, arg := range args[:len(args)-1] {
		if arg == "-pidfile" && sameFile(args[i+1], pidFile) {
			return true
		}
	}
	return false
}

func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	if filepath.Base(a) != filepath.Base(b) || !filepath.IsAbs(a) {
		return false
	}
	dirA, errA := os.Stat(filepath.Dir(a))
	dirB, errB := os.Stat(filepath.Dir(b))
	return errA == nil && errB == nil && os.SameFile(dirA, dirB)
}

// startTime takes the time of start from /proc/<pid>/stat (proc(5), field 22:
// clock ticks since boot). The name in field 2 may contain anything.
func startTime(stat []byte) (time.Time, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	const field = 22 - 3 // the first one after the name is field 3
	if end < 0 || len(fields) <= field {
		return time.Time{}, errors.New("stat is cut short")
	}
	ticks, err := strconv.ParseInt(string(fields[field]), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("start time: %w", err)
	}
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return time.Time{}, fmt.Errorf("time since boot: %w", err)
	}
	age := time.Duration(sinceBoot.Nano()) - time.Duration(ticks)*clockTick
	return time.Now().Add(-age).Round(clockTick), nil
}

// exited reports whether the process of a pidfd has ended, without waiting.
func exited(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
