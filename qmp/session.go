package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/pve-rigaud/pve-rigaud/qmp/internal/wire"
)

// Options bound one session. Zero fields take the value of
// [BackgroundOptions], but for RetryBusy and AllowAll, whose zero is meant.
type Options struct {
	Greeting  time.Duration // from connect to QEMU's greeting: longer means that somebody else is served
	Command   time.Duration // for each command
	Hold      time.Duration // from the greeting on: after that every command fails
	RetryBusy time.Duration // how long to try again when not even the queue has room; 0 gives up at once
	AllowAll  bool          // send forbidden commands, too: for tests and simulators
}

// BackgroundOptions are those of a read that nobody waits for: Greeting 250 ms,
// Command and Hold 500 ms, no retry.
func BackgroundOptions() Options {
	return Options{Greeting: 250 * time.Millisecond, Command: 500 * time.Millisecond, Hold: 500 * time.Millisecond}
}

// UserOptions are those of a user's request: Greeting 1 s, Command 500 ms,
// Hold 2 s, RetryBusy 500 ms.
func UserOptions() Options {
	return Options{
		Greeting: time.Second, Command: 500 * time.Millisecond,
		Hold: 2 * time.Second, RetryBusy: 500 * time.Millisecond,
	}
}

func (o Options) withDefaults() Options {
	d := BackgroundOptions()
	for _, field := range []struct{ value, fallback *time.Duration }{
		{&o.Greeting, &d.Greeting}, {&o.Command, &d.Command}, {&o.Hold, &d.Hold},
	} {
		if *field.value <= 0 {
			*field.value = *field.fallback
		}
	}
	return o
}

// Session is one conversation, ready for commands. Commands from several
// goroutines are run one after the other.
type Session struct {
	opts    Options
	conn    *wire.Conn
	in      *wire.Reader
	version goqmp.Version
	opened  time.Time // when the greeting came: from here on we keep others out

	mu  sync.Mutex // guards the conversation: one command at a time, and seq
	seq uint64
}

var _ goqmp.Monitor = (*Session)(nil)

// Open connects to the QMP socket at path, waits for the greeting and
// negotiates. The session ends with ctx at the latest; the caller closes it.
func Open(ctx context.Context, path string, opts Options) (*Session, error) {
	opts = opts.withDefaults()
	conn, err := wire.Dial(ctx, path, opts.RetryBusy)
	if err != nil {
		return nil, err
	}
	s := &Session{opts: opts, conn: conn}
	if err := s.greet(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	if err := s.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// greet waits for the greeting. No greeting is the only sign of a monitor that
// is in use: QEMU leaves further clients in the queue of its socket.
func (s *Session) greet(ctx context.Context) error {
	var hello wire.Message
	err := s.conn.Within(ctx, "greeting", time.Now().Add(s.opts.Greeting), func(rw io.ReadWriter) (err error) {
		s.in = wire.NewReader(rw)
		// QEMU sends an event to whoever is connected, also before it comes to greet: it takes the client that has just
		// gone for the one that is there.
		for hello, err = s.in.Next(); err == nil && hello.Event != ""; hello, err = s.in.Next() {
		}
		if err == nil && hello.Greeting == nil {
			err = fmt.Errorf("%w: no greeting", ErrProtocol)
		}
		return err
	})
	s.opened = time.Now()
	if errors.Is(err, context.DeadlineExceeded) {
		return &OpError{Op: "greeting", Path: s.conn.Path(), Err: fmt.Errorf("%w: no greeting: %w", ErrBusy, context.DeadlineExceeded)}
	}
	if err != nil {
		return err
	}
	greeting := struct{ Version *goqmp.Version }{&s.version}
	if err := json.Unmarshal(hello.Greeting, &greeting); err != nil {
		return &OpError{Op: "greeting", Path: s.conn.Path(), Err: fmt.Errorf("%w: %w", ErrProtocol, err)}
	}
	return nil
}

// Version is QEMU's, from its greeting.
func (s *Session) Version() goqmp.Version { return s.version }

// Held is how long the monitor has been ours.
func (s *Session) Held() time.Duration { return time.Since(s.opened) }

// Close ends the session and gives the monitor free. It may be called twice.
func (s *Session) Close() { s.conn.Close() }

// Execute runs one command. args is marshalled to its arguments (nil for
// none), the reply's "return" is unmarshalled into out unless that is nil. A
// refusal by QEMU is an [*Error] inside of the [*OpError]; after any other
// error of the conversation the session is closed.
func (s *Session) Execute(ctx context.Context, command string, args, out any) error {
	reply, err := s.execute(ctx, command, args)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return s.failed(command, fmt.Errorf("decode reply: %w", err))
	}
	return nil
}

func (s *Session) execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	var arguments json.RawMessage
	if args != nil {
		var err error
		if arguments, err = json.Marshal(args); err != nil {
			return nil, s.failed(command, fmt.Errorf("encode arguments: %w", err))
		}
	}
	if !s.opts.AllowAll {
		if err := permit(command, arguments); err != nil {
			return nil, s.failed(command, err)
		}
	}
	return s.exchange(ctx, command, arguments)
}

func (s *Session) exchange(ctx context.Context, command string, arguments json.RawMessage) (json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn.Closed() {
		return nil, s.failed(command, s.whyClosed())
	}
	s.seq++
	request := wire.Request{Execute: command, ID: "rigaud-" + strconv.FormatUint(s.seq, 10)}
	if arguments != nil {
		request.Arguments = arguments
	}
	line, err := request.Encode()
	if err != nil {
		return nil, s.failed(command, err)
	}
	var reply json.RawMessage
	err = s.conn.Within(ctx, command, s.lockedDeadline(), func(rw io.ReadWriter) (err error) {
		if _, err := rw.Write(line); err != nil {
			return err
		}
		reply, err = s.lockedReply(command, request.ID)
		return err
	})
	return reply, err
}

// lockedDeadline is that of the next command.
func (s *Session) lockedDeadline() time.Time {
	deadline, end := time.Now().Add(s.opts.Command), s.opened.Add(s.opts.Hold)
	if end.Before(deadline) {
		return end
	}
	return deadline
}

// lockedReply skips events and whatever else comes until the reply to id. An
// error without an id is QEMU's answer to bytes it could not parse, so it is
// about our command as well.
func (s *Session) lockedReply(command, id string) (json.RawMessage, error) {
	want := strconv.AppendQuote(nil, id)
	for {
		m, err := s.in.Next()
		if err != nil {
			return nil, err
		}
		ours := bytes.Equal(m.ID, want)
		switch {
		case m.Error != nil && (ours || m.ID == nil):
			m.Error.Command = command
			return nil, m.Error
		case m.Return != nil && ours:
			return m.Return, nil
		}
	}
}

func (s *Session) whyClosed() error {
	if err := s.conn.Context().Err(); err != nil {
		return err
	}
	return ErrClosed
}

func (s *Session) failed(op string, err error) error {
	return &OpError{Op: op, Path: s.conn.Path(), Err: err}
}

// Raw gives go-qemu's typed commands, run in this session. They end with the
// context of Open.
func (s *Session) Raw() *raw.Monitor { return raw.NewMonitor(s) }

// Connect is for go-qemu's Monitor. A session is connected from the start.
func (s *Session) Connect() error {
	if s.conn.Closed() {
		return s.failed("connect", s.whyClosed())
	}
	return nil
}

// Disconnect is for go-qemu's Monitor: it closes the session.
func (s *Session) Disconnect() error {
	s.Close()
	return nil
}

// Events is for go-qemu's Monitor. A short session has none: it always answers
// qmp.ErrEventsNotSupported of go-qemu.
func (s *Session) Events(context.Context) (<-chan goqmp.Event, error) {
	return nil, goqmp.ErrEventsNotSupported
}

// Run is for go-qemu's Monitor. command is {"execute": NAME, "arguments": {}};
// it is taken apart, judged as in Execute, and sent with an id of ours. out is
// the reply with its "return".
func (s *Session) Run(command []byte) (out []byte, err error) {
	var request struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	dec := json.NewDecoder(bytes.NewReader(command))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&request); err != nil {
		return nil, s.failed("run", fmt.Errorf("%w: %w", ErrProtocol, err))
	}
	var args any
	if request.Arguments != nil {
		args = request.Arguments
	}
	reply, err := s.execute(s.conn.Context(), request.Execute, args)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Return json.RawMessage `json:"return"`
	}{reply})
}
