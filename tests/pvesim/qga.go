package pvesim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"
)

// This file is PVE's own client of a VM's sockets. It is written on its own
// and shares nothing with the agent's.

func (m *machine) socket(kind string) string {
	return filepath.Join(m.node.Run, strconv.Itoa(m.vmid)+"."+kind)
}

// dial connects to one of a VM's sockets and sets a deadline for all of it.
func (c *Cluster) dial(ctx context.Context, path string) (net.Conn, error) {
	deadline := time.Now().Add(c.cfg.AgentWait)
	d := net.Dialer{Deadline: deadline}
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, conn.SetDeadline(deadline)
		}
		// Others may hold the socket: PVE tries until its time is up.
		if time.Now().After(deadline) || ctx.Err() != nil || !isBusy(err) {
			return nil, fmt.Errorf("connect: %w", err)
		}
		c.pause(ctx, 20*time.Millisecond)
	}
}

// qmpAnswers opens VMID.qmp as PVE does before it asks for the status, and
// says whether anybody greets.
func (c *Cluster) qmpAnswers(ctx context.Context, m *machine) bool {
	conn, err := c.dial(ctx, m.socket("qmp"))
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	return err == nil && bytes.Contains(line, []byte(`"QMP"`))
}

// agentError is an error that the guest agent answered.
type agentError struct{ desc string }

func (e *agentError) Error() string { return e.desc }

// agentCall sends one command to the guest agent. A command without a reply
// (guest-shutdown) has reply == false.
func (c *Cluster) agentCall(ctx context.Context, m *machine, command string, args any, reply bool) (json.RawMessage, error) {
	conn, err := c.dial(ctx, m.socket("qga"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	in := bufio.NewReader(conn)
	if err := agentSync(conn, in); err != nil {
		return nil, err
	}
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	b, err := json.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if !reply {
		return nil, nil
	}
	return agentReply(in)
}

// agentSync empties what an earlier client left: the agent sends 0xFF before
// its answer.
func agentSync(conn net.Conn, in *bufio.Reader) error {
	id := time.Now().UnixNano() & 0x7fffffff
	if _, err := fmt.Fprintf(conn, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	for {
		if _, err := in.ReadBytes(0xff); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		raw, err := agentReply(in)
		if err == nil && string(raw) == strconv.FormatInt(id, 10) {
			return nil
		}
		var refused *agentError
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
}

func agentReply(in *bufio.Reader) (json.RawMessage, error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	var msg struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(bytes.Trim(line, "\xff\n"), &msg); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if msg.Error != nil {
		return nil, &agentError{msg.Error.Desc}
	}
	return msg.Return, nil
}

// agentRuns pings the agent; a task's log gets a line when it is silent.
func (c *Cluster) agentRuns(ctx context.Context, m *machine, t *Task) bool {
	_, err := c.agentCall(ctx, m, "guest-ping", nil, true)
	if err != nil && t != nil {
		t.logf("QEMU Guest Agent is not running - VM %d qga command 'guest-ping' failed - got timeout", m.vmid)
	}
	return err == nil
}

func (c *Cluster) agentShutdown(ctx context.Context, m *machine) error {
	_, err := c.agentCall(ctx, m, "guest-shutdown", nil, false)
	return err
}
