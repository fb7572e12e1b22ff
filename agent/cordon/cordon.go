// Package cordon keeps which nodes take no new VMs, and what a drain has moved away from them, in small files in the
// cluster file system, under /etc/pve/priv/pve-rigaud/nodes/: so that it outlives the node, every agent sees it, and any
// agent may cordon any node, also one that is down.
//
// A node has up to two files. <node>.json is its cordon, written by whichever agent is asked; without the file there is
// none. <node>.moved.json is what was moved away, written by the node's own agent alone: two writers of one file could
// lose each other's words, because nothing locks them.
//
// A file is written beside its place and renamed into it, so that a reader sees the old one or the new one. One that is
// no cordon all the same is taken for a cordon without a reason: somebody wanted to keep VMs away.
package cordon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// version is what "v" of a file is. A file of a later version counts as far as it can be read.
const version = 1

// Cordon keeps new VMs away from a node.
type Cordon struct {
	Node   string    // the node it is about
	Since  time.Time // when it was made; zero if its file cannot be read
	By     string    // the node whose agent was asked
	Reason string    // for people; may be empty
	// Draining says that the node is being emptied, or has been and did not get its VMs back.
	Draining bool
}

// Why says in words why the node takes no new VMs.
func (c Cordon) Why() string {
	text := "cordoned"
	if c.Draining {
		text = "being drained"
	}
	if c.Reason != "" {
		text += " (" + c.Reason + ")"
	}
	return text
}

// Moved is a VM that a drain has moved away.
type Moved struct {
	VMID    int       `json:"vmid"`
	ID      string    `json:"id"` // "<vmid>-<first 8 digits of its SMBIOS uuid>"
	Name    string    `json:"name"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	Running bool      `json:"running"` // it ran then
	At      time.Time `json:"at"`
}

// cordonFile is <node>.json.
type cordonFile struct {
	V        int       `json:"v"`
	Node     string    `json:"node"`
	Since    time.Time `json:"since"`
	By       string    `json:"by"`
	Reason   string    `json:"reason,omitempty"`
	Draining bool      `json:"draining,omitempty"`
}

// movedFile is <node>.moved.json.
type movedFile struct {
	V     int     `json:"v"`
	Moved []Moved `json:"moved"`
}

// decode reads the file of node.
func decode(node string, raw []byte) (Cordon, error) {
	var f cordonFile
	err := json.Unmarshal(raw, &f)
	if err == nil && (f.V == 0 || f.Node != node) {
		err = fmt.Errorf("version %d, of node %q", f.V, f.Node)
	}
	if err != nil {
		return Cordon{Node: node, Reason: "the file of its cordon cannot be read, cordon or uncordon it anew"}, err
	}
	return Cordon{Node: f.Node, Since: f.Since, By: f.By, Reason: f.Reason, Draining: f.Draining}, nil
}

func encode(c Cordon) ([]byte, error) {
	return encodeFile(cordonFile{V: version, Node: c.Node, Since: c.Since.UTC(), By: c.By, Reason: c.Reason, Draining: c.Draining})
}

func encodeFile(v any) ([]byte, error) {
	raw, err := json.MarshalIndent(v, "", " ")
	return append(raw, '\n'), err
}

// Moved returns what drains have moved away from a node and nothing has brought back, in the order in which it was moved.
// It blocks for as long as the file system does.
func (s *Store) Moved(node string) ([]Moved, error) {
	raw, err := s.dir.read(node + movedSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.dir.mounted()
	}
	var f movedFile
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was moved away from node %s: %w", node, err)
	}
	return f.Moved, nil
}

// SetMoved writes down what was moved away from a node; only the agent of that node may. An empty list removes the file.
// It blocks for as long as the file system does.
func (s *Store) SetMoved(node string, moved []Moved) error {
	if err := checkName(node); err != nil {
		return err
	}
	err := s.dir.drop(node + movedSuffix)
	if len(moved) > 0 {
		var raw []byte
		if raw, err = encodeFile(movedFile{V: version, Moved: moved}); err == nil {
			err = s.dir.replace(node+movedSuffix, raw, s.now())
		}
	}
	if err != nil {
		return fmt.Errorf("write down what was moved away from node %s: %w", node, err)
	}
	return nil
}
