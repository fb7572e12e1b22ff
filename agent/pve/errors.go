package pve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Error is an answer of PVE that is not a success.
type Error struct {
	Method  string
	Path    string            // below /api2/json, without the query
	Status  int               // HTTP status; PVE uses 595 to 599 for a node it could not reach
	Message string            // the body's message, else the reason of the status line; "" when PVE gave neither
	Params  map[string]string // what is wrong with which parameter (status 400), else nil
}

// Error names the call and says what PVE said.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pve: %s %s: %d", e.Method, e.Path, e.Status)
	if e.Message != "" {
		b.WriteString(" " + e.Message)
	}
	for _, k := range slices.Sorted(maps.Keys(e.Params)) {
		fmt.Fprintf(&b, "; %s: %s", k, e.Params[k])
	}
	return b.String()
}

// TaskError is the end of a task that failed.
type TaskError struct {
	UPID       UPID
	ExitStatus string   // what PVE says about it, as "VM 100 already running"
	Log        []string // the last lines of its log, oldest first; nil when they could not be read
}

// Error names the task and says what PVE said.
func (e *TaskError) Error() string {
	t, err := ParseUPID(string(e.UPID))
	if err != nil {
		return fmt.Sprintf("pve: task %s: %s", e.UPID, e.ExitStatus)
	}
	return fmt.Sprintf("pve: task %s of %s on %s: %s (%s)", t.Type, t.ID, t.Node, e.ExitStatus, e.UPID)
}

// TransportError is a call that got no usable answer.
type TransportError struct {
	Method string
	Path   string
	Sent   bool // the request may have reached PVE
	Err    error
}

// Error names the call and what went wrong.
func (e *TransportError) Error() string {
	if e.Sent && e.Method != http.MethodGet {
		return fmt.Sprintf("pve: %s %s: %v (it may have been carried out)", e.Method, e.Path, e.Err)
	}
	return fmt.Sprintf("pve: %s %s: %v", e.Method, e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *TransportError) Unwrap() error { return e.Err }

// WaitError is the end of a wait, not of the task: the task goes on.
type WaitError struct {
	UPID UPID
	Last error // the last failed look at the task, or nil
	Err  error // why the wait ended: the context's error
}

// Error names the task and why nobody waits for it any more.
func (e *WaitError) Error() string {
	if e.Last != nil {
		return fmt.Sprintf("pve: wait for task %s: %v, and its state is unknown: %v", e.UPID, e.Err, e.Last)
	}
	return fmt.Sprintf("pve: wait for task %s: %v", e.UPID, e.Err)
}

// Unwrap returns why the wait ended.
func (e *WaitError) Unwrap() error { return e.Err }

// ErrClosed is returned by the calls of a closed Client.
var ErrClosed = errors.New("client is closed")

// Uncertain reports whether what was asked for may have been done, or may still be done, although err came back: the
// connection broke or the time ran out after the request was sent, or a task ended without saying how. Look at the
// state before trying again.
func Uncertain(err error) bool {
	if _, ok := errors.AsType[*WaitError](err); ok {
		return true
	}
	if task, ok := errors.AsType[*TaskError](err); ok {
		return endUnknown(task.ExitStatus)
	}
	if lost, ok := errors.AsType[*TransportError](err); ok {
		return lost.Sent && lost.Method != http.MethodGet
	}
	if said, ok := errors.AsType[*Error](err); ok {
		return said.Method != http.MethodGet && outcomeLost(said.Status)
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// outcomeLost reports whether a gateway of PVE passed the request on and then lost the answer. 595 is not among them:
// it is a connection that was never made.
func outcomeLost(status int) bool {
	return status > statusNoConnection && status <= 599 || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// endUnknown reports whether PVE found a worker gone and no result in its log.
func endUnknown(exit string) bool {
	return exit == "" || exit == "unexpected status" || strings.HasPrefix(exit, "unable to get last line") ||
		strings.HasPrefix(exit, "unable to read tail") || strings.HasPrefix(exit, "interrupted by signal")
}

var permissionPattern = regexp.MustCompile(`Permission check failed \(([^,()]+), ([^()]+)\)`)

// PermissionDetail returns the object and the privilege that PVE names when it refuses something, as "/vms/100" and
// "VM.PowerMgmt"; of alternatives it names all, as "VM.Config.Disk|VM.Config.CPU". ok is false when err is something
// else or PVE named nothing.
func PermissionDetail(err error) (path, privilege string, ok bool) {
	m := permissionPattern.FindStringSubmatch(message(err))
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// message is what PVE said in err.
func message(err error) string {
	if task, ok := errors.AsType[*TaskError](err); ok {
		return task.ExitStatus
	}
	if said, ok := errors.AsType[*Error](err); ok {
		return said.Message
	}
	return ""
}

// errNoVolumeID is a caller's mistake.
var errNoVolumeID = errors.New("a volume id has the form storage:name")
