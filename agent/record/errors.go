package record

import (
	"errors"
	"fmt"
	"time"
)

// deadAfter is how long a file may stay half written before its writer counts as dead.
const deadAfter = 60 * time.Second

var (
	// ErrLost says that a claim is no longer ours: a higher generation exists, or the file is not the one we made. Stop.
	ErrLost = errors.New("claim lost to another operation")
	// ErrNotMounted says that the directory above ours is missing: /etc/pve is not mounted.
	ErrNotMounted = errors.New("directory missing: pmxcfs not mounted?")
)

// errNoVersion is what a record without the field "v" is refused for.
var errNoVersion = errors.New(`no version ("v")`)

// ExistsError says that owner and name are claimed already.
type ExistsError struct {
	Record Record // the highest generation
}

// Error names the VM and what is known of it.
func (e *ExistsError) Error() string {
	r := e.Record
	vm := "no vm yet"
	if r.VMID != 0 {
		vm = "vm " + r.ID().String()
	}
	return fmt.Sprintf("a record for %q exists: %s, %s, by operation %q on node %s", r.Name, vm, r.State, r.Op, r.Node)
}

// IncompleteError says that the file which holds a claim is being written, or was when its writer died.
type IncompleteError struct {
	Incomplete
}

// Error names the file and its age.
func (e *IncompleteError) Error() string {
	return fmt.Sprintf("%s: being written since %s", e.Path, e.ModTime.Format(time.RFC3339))
}

// Incomplete is a record file that is not written to its end.
type Incomplete struct {
	Path       string
	Hash       string // of owner and name, which only the file would tell
	Generation int
	ModTime    time.Time // by the clock of the node that wrote it
}

// Dead reports whether it has been so for more than 60 s, so that its writer died: it may be taken over then.
func (i Incomplete) Dead(now time.Time) bool { return now.Sub(i.ModTime) > deadAfter }

// FormatError says that a file is whole but no record.
type FormatError struct {
	Path string
	Err  error
}

// Error names the file and the reason.
func (e *FormatError) Error() string { return fmt.Sprintf("%s: not a record: %v", e.Path, e.Err) }

// Unwrap returns the reason.
func (e *FormatError) Unwrap() error { return e.Err }

// RangeError says that no VMID is left to give out.
type RangeError struct {
	Range   Range
	Highest int // the highest VMID ever given out
}

// Error says what to do about it.
func (e *RangeError) Error() string {
	return fmt.Sprintf("vmid-range %d-%d is used up (numbers are given out upward, never twice; the highest so far is %d): "+
		"set a vmid-range that reaches further, on every node", e.Range.Min, e.Range.Max, e.Highest)
}
