package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// The ways a conversation ends without an answer. Packages qmp and qga
// re-export them; their meaning for callers is documented there.
var (
	ErrBusy   = errors.New("monitor is in use by another client")
	ErrGone   = errors.New("nobody answers there any more")
	ErrClosed = errors.New("session is closed")
	// ErrTooLong means that one message exceeds MaxMessage.
	ErrTooLong = errors.New("message is too long")
	// ErrProtocol means bytes that are no message of this protocol.
	ErrProtocol = errors.New("not a message of this protocol")
	// ErrTimeout is a deadline of ours, not of the caller's context. It also
	// is context.DeadlineExceeded for errors.Is.
	ErrTimeout error = timeoutError{}
)

type timeoutError struct{}

func (timeoutError) Error() string        { return "no answer in time" }
func (timeoutError) Timeout() bool        { return true }
func (timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Error is the refusal of one command, as QEMU or the guest agent said it
// (QAPI schema, introspection: "error": {"class", "desc"}).
type Error struct {
	Command string `json:"-"`     // the command that was refused
	Class   string `json:"class"` // QapiErrorClass, mostly "GenericError"
	Desc    string `json:"desc"`  // for people, changes between QEMU versions
}

// Error names the command, the class when it says something, and QEMU's words.
func (e *Error) Error() string { return e.Command + ": " + e.words() }

func (e *Error) words() string {
	if e.Class == "" || e.Class == "GenericError" {
		return e.Desc
	}
	return e.Class + ": " + e.Desc
}

// OpError says which act on which socket failed.
type OpError struct {
	Op   string // "connect", "greeting", "negotiate", "sync" or the name of a command
	Path string // of the unix socket
	Err  error
}

// Error is "qmp <op> <path>: <reason>".
func (e *OpError) Error() string {
	why := e.Err.Error()
	if refused := new(Error); errors.As(e.Err, &refused) && refused.Command == e.Op {
		why = refused.words() // the command is named already
	}
	return fmt.Sprintf("qmp %s %s: %s", e.Op, e.Path, why)
}

// Unwrap gives the reason.
func (e *OpError) Unwrap() error { return e.Err }

// reason says what an error of the socket means. ctx is the caller's: when it
// has ended, that is the reason and not the closed socket that follows from it.
func reason(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w: its queue is full", ErrBusy)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%w: connection closed by the other side", ErrGone)
	case errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	for _, gone := range []syscall.Errno{syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return fmt.Errorf("%w: %w", ErrGone, gone)
		}
	}
	return err
}
