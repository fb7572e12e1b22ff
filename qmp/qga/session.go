// Package qga holds one short conversation with the QEMU guest agent of a VM,
// over the VM's agent socket.
//
// The agent speaks QMP's JSON without greeting, negotiation and events. Its
// socket serves one client at a time, QEMU accepts a client whether or not a
// guest listens, and what an earlier client left unread or half written is
// still in the pipe. So each session begins with guest-sync-delimited, and an
// agent that does not answer it in time is silent: not installed, not started
// yet, paused, or hung. Everything the agent says is the guest's word.
package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/internal/wire"
)

// ErrSilent means that no guest agent answered guest-sync-delimited in time. It is
// context.DeadlineExceeded, too.
var ErrSilent error = silentError{}

type silentError struct{}

func (silentError) Error() string        { return "the guest agent is silent" }
func (silentError) Is(target error) bool { return target == context.DeadlineExceeded }

// delimiter is no byte of UTF-8: it resets the parser of the agent, and stands
// before the agent's reply to guest-sync-delimited.
const delimiter = 0xFF

// Options bound one session. Zero fields take the value named at them.
type Options struct {
	Sync      time.Duration // for the agent's first sign of life, 500 ms
	Command   time.Duration // for each command, 2 s
	RetryBusy time.Duration // how long to try again when not even the queue has room; 0 gives up at once
}

func (o Options) withDefaults() Options {
	if o.Sync <= 0 {
		o.Sync = 500 * time.Millisecond
	}
	if o.Command <= 0 {
		o.Command = 2 * time.Second
	}
	return o
}

// Session is one conversation, ready for commands. Commands from several
// goroutines are run one after the other.
type Session struct {
	opts Options
	conn *wire.Conn

	mu sync.Mutex // guards the conversation: one command at a time, and in
	in *bufio.Reader
}

// Open connects to the agent socket at path and synchronizes. A silent agent
// is ErrSilent; a socket in use is either qmp.ErrBusy or ErrSilent, which
// cannot be told apart. The session ends with ctx at the latest; the caller
// closes it.
func Open(ctx context.Context, path string, opts Options) (*Session, error) {
	opts = opts.withDefaults()
	conn, err := wire.Dial(ctx, path, opts.RetryBusy)
	if err != nil {
		return nil, err
	}
	s := &Session{opts: opts, conn: conn}
	if err := s.sync(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// sync puts both ends at the start of a message.
func (s *Session) sync(ctx context.Context) error {
	id := rand.Int64N(1 << 53) // the agent's parser may know doubles only
	request := wire.Request{Execute: "guest-sync-delimited", Arguments: map[string]int64{"id": id}}
	line, err := request.Encode()
	if err != nil {
		return &qmp.OpError{Op: "sync", Path: s.conn.Path(), Err: err}
	}
	err = s.conn.Within(ctx, "sync", time.Now().Add(s.opts.Sync), func(rw io.ReadWriter) error {
		s.in = bufio.NewReader(rw)
		if _, err := rw.Write(append([]byte{delimiter}, line...)); err != nil {
			return err
		}
		return await(s.in, id)
	})
	if errors.Is(err, qmp.ErrTimeout) {
		return &qmp.OpError{Op: "sync", Path: s.conn.Path(), Err: ErrSilent}
	}
	return err
}

// await discards everything up to the reply to the sync of this id: remains of
// other conversations, the agent's complaint about the delimiter, and replies
// to the syncs of clients that gave up.
func await(in *bufio.Reader, id int64) error {
	want := strconv.AppendInt(nil, id, 10)
	for left := wire.MaxMessage; ; {
		line, err := readLine(in, left)
		if err != nil {
			return err
		}
		left -= len(line)
		mark := bytes.LastIndexByte(line, delimiter)
		if mark < 0 {
			continue
		}
		m, err := wire.Parse(line[mark+1:])
		if err == nil && bytes.Equal(m.Return, want) {
			return nil
		}
	}
}

// readLine reads one line of at most limit bytes.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(line) > limit {
			return nil, wire.ErrTooLong
		}
	}
}

// Close ends the session. It may be called twice.
func (s *Session) Close() { s.conn.Close() }

// Execute runs one command. args is marshalled to its arguments (nil for
// none), the reply's "return" is unmarshalled into out unless that is nil. A
// refusal by the agent is a [*qmp.Error] inside of a [*qmp.OpError]; after any
// other error of the conversation the session is closed.
func (s *Session) Execute(ctx context.Context, command string, args, out any) error {
	line, err := wire.Request{Execute: command, Arguments: args}.Encode()
	if err != nil {
		return s.failed(command, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn.Closed() {
		return s.failed(command, qmp.ErrClosed)
	}
	var m wire.Message
	err = s.conn.Within(ctx, command, time.Now().Add(s.opts.Command), func(rw io.ReadWriter) (err error) {
		if _, err := rw.Write(line); err != nil {
			return err
		}
		m, err = s.lockedReply(command)
		return err
	})
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return s.failed(command, fmt.Errorf("decode reply: %w", err))
	}
	return nil
}

func (s *Session) lockedReply(command string) (wire.Message, error) {
	line, err := readLine(s.in, wire.MaxMessage)
	if err != nil {
		return wire.Message{}, err
	}
	m, err := wire.Parse(line)
	if err != nil {
		return wire.Message{}, err
	}
	if m.Error != nil {
		m.Error.Command = command
		return wire.Message{}, m.Error
	}
	return m, nil
}

func (s *Session) failed(op string, err error) error {
	return &qmp.OpError{Op: op, Path: s.conn.Path(), Err: err}
}
