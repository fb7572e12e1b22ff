package pmxcfs

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

var (
	// ErrNotFound says that a guest was not found where .vmlist puts it, or that .vmlist does not list it. It never
	// means that the guest does not exist: it may be on its way to another node. Only Absent decides that.
	ErrNotFound = errors.New("guest not found in /etc/pve")
	// ErrNoQuorum says that the cluster has no quorum here, so that what .vmlist says may be out of date.
	ErrNoQuorum = errors.New("no quorum")
	// ErrNotMounted says that the tree has no .version: pmxcfs is not mounted there, or its process died.
	ErrNotMounted = errors.New("pmxcfs not mounted? .version missing")
)

// FormatError says that a file was read whole but is not what its name promises: cut short, or garbage.
type FormatError struct {
	Path   string // the file
	Reason string // what is wrong with it
}

// Error names the file and the reason.
func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: not a valid file: %s", e.Path, e.Reason)
}

// StaleError says that the last good reading of the tree is too old to answer from.
type StaleError struct {
	Root string // the tree, such as /etc/pve
	Age  string // how old the last good reading is, "never read" if there was none
	Err  error  // why the latest attempt failed; names the path
}

// Error names the tree, the age and the reason.
func (e *StaleError) Error() string {
	return fmt.Sprintf("%s: last good reading: %s: %v", e.Root, e.Age, e.Err)
}

// Unwrap returns why the latest attempt failed.
func (e *StaleError) Unwrap() error { return e.Err }

// HangError says that a read of the tree has not come back: pmxcfs does not answer.
type HangError struct {
	Path string // what is being read
	Err  error  // the context's reason for giving up
}

// Error names the path.
func (e *HangError) Error() string {
	return fmt.Sprintf("read %s: no answer from pmxcfs: %v", e.Path, e.Err)
}

// Unwrap returns the context's reason.
func (e *HangError) Unwrap() error { return e.Err }

// missing reports that a path is not there: no such entry, or one of its parents is none or no directory.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// unmounted reports what the kernel says of a FUSE mount whose process is gone.
func unmounted(err error) bool {
	return errors.Is(err, syscall.ENOTCONN)
}
