package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childKind and childDir make the test program start one machine and wait.
const (
	childKind = "KVM_TEST_CHILD"
	childDir  = "KVM_TEST_DIR"
)

// child starts a machine, says its process id and waits to be killed.
func child(kind, dir string) error {
	var h Hypervisor = NewFake(FakeConfig{})
	if kind == "real" {
		r, err := NewReal(context.Background(), RealConfig{})
		if err != nil {
			return err
		}
		h = r
	}
	p, err := h.Start(context.Background(), Spec{
		VMID: 100, Name: "orphan", UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", RunDir: dir,
	})
	if err != nil {
		return err
	}
	fmt.Println(p.PID())
	<-p.Done()
	return nil
}

// Machines end when the program that simulates their node is killed: nobody
// would end them later.
func TestMachinesEndWithTheirNode(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"real", "fake"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if kind == "real" {
				newReal(t, RealConfig{})
			}
			node := exec.CommandContext(t.Context(), os.Args[0])
			node.Env = append(os.Environ(), childKind+"="+kind, childDir+"="+shortDir(t))
			out, err := node.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(pidfd) }()
			if err := node.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = node.Wait() // killed
			if err := awaitExit(pidfd, time.Minute); err != nil {
				_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
				t.Errorf("the machine outlives its node: %v", err)
			}
		})
	}
}

// awaitExit waits until the process of a pidfd has ended.
func awaitExit(pidfd int, patience time.Duration) error {
	for until := time.Now().Add(patience); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(time.Until(until).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
}
