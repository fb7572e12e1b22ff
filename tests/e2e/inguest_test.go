package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
)

// guest talks to the agent inside of a VM, to hear from the guest itself what it has.
type guest struct {
	*stage
	socket string
}

// guestOf is the guest of a VM that runs on a node's QEMU. It waits until its agent answers.
func (s *stage) guestOf(id string) guest {
	s.Helper()
	g := guest{stage: s, socket: filepath.Join(s.agent.Node.Run, strconv.Itoa(vmid(s, id))+".qga")}
	s.eventually("the guest agent of "+id+" answers", func() bool {
		return g.ask(func(a *qga.Session) error { return a.Ping(s.ctx) }) == nil
	})
	return g
}

// ask has one conversation.
func (g guest) ask(f func(*qga.Session) error) error {
	ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
	defer cancel()
	a, err := qga.Open(ctx, g.socket, qga.Options{Sync: 10 * time.Second, Command: 30 * time.Second, RetryBusy: 10 * time.Second})
	if err != nil {
		return err
	}
	defer a.Close()
	return f(a)
}

// run runs a program in the guest and returns what it said.
func (g guest) run(program string, args ...string) (string, error) {
	var out string
	err := g.ask(func(a *qga.Session) (err error) {
		out, err = g.exec(a, program, args...)
		return err
	})
	return out, err
}

func (g guest) exec(a *qga.Session, program string, args ...string) (string, error) {
	var started struct {
		PID int `json:"pid"`
	}
	if err := a.Execute(g.ctx, "guest-exec", map[string]any{"path": program, "arg": args, "capture-output": true}, &started); err != nil {
		return "", err
	}
	for {
		var status struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Out    string `json:"out-data"`
		}
		if err := a.Execute(g.ctx, "guest-exec-status", map[string]int{"pid": started.PID}, &status); err != nil {
			return "", err
		}
		if !status.Exited {
			continue
		}
		out, err := base64.StdEncoding.DecodeString(status.Out)
		if status.Code != 0 {
			err = errors.Join(err, fmt.Errorf("%s ended with %d", program, status.Code))
		}
		return strings.TrimSpace(string(out)), err
	}
}

// number runs a program in the guest that says a number.
func (g guest) number(program string, args ...string) int {
	g.Helper()
	out, err := g.run(program, args...)
	n, nan := strconv.Atoi(out)
	if err := errors.Join(err, nan); err != nil {
		g.Fatalf("%s %q in the guest: %v", program, args, err)
	}
	return n
}

// cpus counts the processors that the guest uses.
func (g guest) cpus() int {
	g.Helper()
	return g.number("/bin/grep", "-c", "^processor", "/proc/cpuinfo")
}

// memory is a line of the guest's /proc/meminfo, such as MemTotal, in MiB.
func (g guest) memory(line string) int {
	g.Helper()
	return g.number("/bin/awk", "/^"+line+":/ { print int($2 / 1024) }", "/proc/meminfo")
}
