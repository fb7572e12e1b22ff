// Package ops carries out long operations so that each one ends, whatever happens to the agent meanwhile.
//
// An operation is an entry in a journal on the local disk: its subject, its parameters, the steps it has begun and
// ended with the UPIDs of their PVE tasks, and its result. A handler describes the work as named steps; after a
// crash the engine calls the handler again, which skips the steps that ended and looks at the world before it
// repeats the one that was under way. Every change of an operation is also an event with a sequence number: the
// node's event log, of which audit trails and progress displays are views.
package ops

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
)

// Kind names what an operation does. Its text is part of task references, so it never changes.
type Kind string

// The kinds of operation a reference may name; those a later version adds are carried unchanged.
const (
	Create         Kind = "create"
	Delete         Kind = "delete"
	Power          Kind = "power"
	Reconfigure    Kind = "reconfigure"
	Clone          Kind = "clone"
	SnapshotCreate Kind = "snapshot"
	SnapshotDelete Kind = "unsnapshot"
	SnapshotRevert Kind = "revert"
	ImagePrepare   Kind = "image"
	ExportDisk     Kind = "export"
	ImportDisk     Kind = "import"
	Replica        Kind = "replica" // of a template; no client asks for it
	Migrate        Kind = "migrate"
	Drain          Kind = "drain"
	Restore        Kind = "restore"
)

// State says how far an operation is.
type State string

// The states of an operation. Only Running ones are resumed.
const (
	Running State = "running"
	Done    State = "done"
	Failed  State = "failed"
)

// Subject is what an operation is about.
type Subject struct {
	Owner string `json:"owner,omitempty"` // identity of the client that asked
	Name  string `json:"name,omitempty"`  // the VM's name
	ID    string `json:"id,omitempty"`    // the id handed out for the VM, "<vmid>-<uuid8>"
	// Snapshot is PVE's name of the VM's snapshot that this is about; "" if it is about none.
	Snapshot string `json:"snapshot,omitempty"`
}

// Step is one named piece of an operation.
type Step struct {
	Name  string    `json:"name"`
	UPID  string    `json:"upid,omitempty"` // the PVE task this step waits for, once known
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended,omitzero"` // zero: under way, or interrupted
}

// Failure is the end of an operation that did not succeed.
type Failure struct {
	Reason  fault.Reason `json:"reason"`
	Message string       `json:"message"`
}

// Op is an operation as the journal has it.
type Op struct {
	ID      string          `json:"id"` // UUID v7: sorts by time
	Kind    Kind            `json:"kind"`
	Key     string          `json:"key"` // two operations with one key never run at the same time
	Subject Subject         `json:"subject"`
	Params  json.RawMessage `json:"params,omitempty"` // what was asked; removed at the end
	Memo    json.RawMessage `json:"memo,omitempty"`   // what the handler has decided and must remember
	Steps   []Step          `json:"steps,omitempty"`
	State   State           `json:"state"`
	Failure *Failure        `json:"failure,omitempty"`
	Created time.Time       `json:"created"`
	Updated time.Time       `json:"updated"`
	// Reported is when a poll first carried the failure to a client; zero before.
	Reported time.Time `json:"reported,omitzero"`
}

// Err returns the failure as an error with its reason, or nil.
func (o Op) Err() error {
	if o.Failure == nil {
		return nil
	}
	return fault.New(o.Failure.Reason, "%s", o.Failure.Message)
}

func (o Op) clone() Op {
	o.Steps = slices.Clone(o.Steps)
	if o.Failure != nil {
		f := *o.Failure
		o.Failure = &f
	}
	return o
}

func (o *Op) step(name string) *Step {
	for i := range o.Steps {
		if o.Steps[i].Name == name {
			return &o.Steps[i]
		}
	}
	return nil
}

// Ref is a task reference as clients get it. It says on its own which kind of operation it stands for, on which
// node and VM, so that it stays answerable when the journal that knew it is gone.
type Ref struct {
	Kind    Kind
	Node    string
	Subject string // the VM's id, "<id>/<snapshot>" for an operation on a snapshot, or what the kind works on
	Op      string // id of the operation
}

// String encodes the reference: four fields separated by '/', each escaped like a URL path segment.
func (r Ref) String() string {
	return strings.Join([]string{
		url.PathEscape(string(r.Kind)), url.PathEscape(r.Node), url.PathEscape(r.Subject), url.PathEscape(r.Op),
	}, "/")
}

// ErrMalformedRef is the error of ParseRef.
var ErrMalformedRef = errors.New("malformed task reference")

// ParseRef decodes a reference; a kind this version does not know is not an error.
func ParseRef(s string) (Ref, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 {
		return Ref{}, fmt.Errorf("%w %q: expected kind/node/subject/operation", ErrMalformedRef, s)
	}
	for i, p := range parts {
		v, err := url.PathUnescape(p)
		if err != nil || v == "" {
			return Ref{}, fmt.Errorf("%w %q: field %d is empty or badly escaped", ErrMalformedRef, s, i+1)
		}
		parts[i] = v
	}
	return Ref{Kind: Kind(parts[0]), Node: parts[1], Subject: parts[2], Op: parts[3]}, nil
}
