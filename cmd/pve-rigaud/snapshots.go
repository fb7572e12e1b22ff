package main

import (
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// snapshotObject is one snapshot in the JSON answer of `pve-rigaud vms --snapshots`. Every key is always there.
type snapshotObject struct {
	ID          string  `json:"id"`   // PVE's name
	Name        string  `json:"name"` // as it was asked for
	Parent      string  `json:"parent"`
	AgeSeconds  float64 `json:"age_seconds"` // 0 if not known
	Memory      bool    `json:"memory"`
	State       string  `json:"state"` // prepare, delete: not whole
	Description string  `json:"description"`
}

// snapshotsOf are a VM's snapshots; nil if they were not asked for.
func snapshotsOf(q *question, v *nodepb.VM) []snapshotObject {
	if !q.snapshots {
		return nil
	}
	out := []snapshotObject{}
	for _, s := range v.GetSnapshots() {
		out = append(out, snapshotObject{
			ID: s.GetId(), Name: s.GetName(), Parent: s.GetParent(), AgeSeconds: seconds(s.GetAgeMs()), Memory: s.GetMemory(),
			State: s.GetState(), Description: s.GetDescription(),
		})
	}
	return out
}

// snapshotsTable shows the snapshots of each VM as a tree: one that was taken after another stands below it.
func snapshotsTable(resp *nodepb.VMsResponse) *table {
	t := newTable("ID", "NAME", "NODE", "SNAPSHOT", "ASKED FOR AS", "AGE", "MEMORY", "NOTE")
	t.remark("stale", resp.GetView().GetStale())
	for _, v := range resp.GetVms() {
		tree := snapshotTree{table: t, vm: v, shown: map[string]bool{}}
		known := map[string]bool{}
		for _, s := range v.GetSnapshots() {
			known[s.GetId()] = true
		}
		for _, s := range v.GetSnapshots() {
			if !known[s.GetParent()] || s.GetParent() == s.GetId() {
				tree.add(s, 0)
			}
		}
		for _, s := range v.GetSnapshots() { // of a circle, should somebody have made one
			tree.add(s, 0)
		}
	}
	return t
}

// snapshotTree writes the snapshots of one VM.
type snapshotTree struct {
	table *table
	vm    *nodepb.VM
	shown map[string]bool
}

// add adds a snapshot, and below it those that were taken after it.
func (t *snapshotTree) add(s *nodepb.Snapshot, depth int) {
	if t.shown[s.GetId()] {
		return
	}
	t.shown[s.GetId()] = true
	age, memory := "", "no"
	if s.GetAgeMs() > 0 {
		age = span(s.GetAgeMs())
	}
	if s.GetMemory() {
		memory = "yes"
	}
	branch := strings.Repeat(". ", depth) + s.GetId()
	t.table.add(t.vm.GetId(), t.vm.GetName(), t.vm.GetNode(), branch, s.GetName(), age, memory, t.note(s))
	for _, next := range t.vm.GetSnapshots() {
		if next.GetParent() == s.GetId() {
			t.add(next, depth+1)
		}
	}
}

// note is what else there is to know of a snapshot.
func (t *snapshotTree) note(s *nodepb.Snapshot) string {
	var notes []string
	if s.GetId() == t.vm.GetCurrentSnapshot() {
		notes = append(notes, "the VM comes from here")
	}
	if s.GetState() != "" {
		notes = append(notes, "not whole: "+s.GetState())
	}
	if t.vm.GetStale() != "" {
		notes = append(notes, "stale: "+t.vm.GetStale())
	}
	return strings.Join(notes, ", ")
}
