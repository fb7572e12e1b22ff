// Package fault is the vocabulary in which the rooms of the agent say why something did not happen.
//
// A Reason says who can mend it: the caller (Invalid, NotFound, Exists), the state of one VM (Precondition,
// Aborted, Exhausted, Permission) or this endpoint (Unavailable, Internal). The gRPC edge turns a Reason into a
// status code in one table, and the operation journal keeps it across restarts. The distinction between one VM and
// the whole endpoint matters to the caller: ten failures of the second kind open the manager's circuit breaker for
// every VM behind it.
package fault

import (
	"errors"
	"fmt"
)

// Reason classifies a failure by what the caller can do about it.
type Reason string

// The reasons. Their text is stored in the operation journal, so it never changes.
const (
	Invalid      Reason = "invalid"      // the request itself is wrong and will stay wrong
	NotFound     Reason = "not-found"    // the thing named does not exist, without doubt
	Exists       Reason = "exists"       // the name or id is taken by something else
	Precondition Reason = "precondition" // the state of the VM, its storage or its node forbids it now
	Permission   Reason = "permission"   // PVE refuses this to the agent's token
	Aborted      Reason = "aborted"      // interrupted or outrun by another change; a repeat may succeed
	Exhausted    Reason = "exhausted"    // no space, no free id, no capacity
	Unavailable  Reason = "unavailable"  // this endpoint cannot work at all right now
	Internal     Reason = "internal"     // a defect of pve-rigaud
	Moved        Reason = "moved"        // another node has to be asked; never the end of an operation
)

// Error is a failure with its reason. Msg is complete in itself: it names the act and the thing.
type Error struct {
	Reason Reason
	Msg    string
	Err    error  // the cause, or nil
	Node   string // which node to ask, for Moved; "" when that is not known
}

// New makes an Error; causes given with %w stay reachable by errors.Is and errors.As.
func New(r Reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Reason: r, Msg: err.Error(), Err: err} // err itself, because a format may wrap several causes
}

// MovedTo makes an Error of reason Moved: node has to be asked.
func MovedTo(node, format string, args ...any) *Error {
	e := New(Moved, format, args...)
	e.Node = node
	return e
}

// Error returns the message.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Of returns the reason of the outermost Error in the chain of err, or Internal when there is none.
func Of(err error) Reason {
	var f *Error
	if errors.As(err, &f) {
		return f.Reason
	}
	return Internal
}

// Is reports whether err carries the reason r.
func Is(err error, r Reason) bool { return err != nil && Of(err) == r }
