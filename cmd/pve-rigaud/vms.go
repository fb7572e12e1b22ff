package main

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// vmsObject is the JSON answer of `pve-rigaud vms`. Every key is always there.
type vmsObject struct {
	view
	RecordsError string     `json:"records_error"` // why what is said about records is incomplete; "" if it is not
	VMs          []vmObject `json:"vms"`           // by vmid
}

type vmObject struct {
	VMID     int32         `json:"vmid"` // 0: not given yet
	ID       string        `json:"id"`   // as clients know it; "" if it has none
	Name     string        `json:"name"`
	Node     string        `json:"node"` // "" if not known
	Type     string        `json:"type"` // qemu, lxc, or "" if not known
	Template bool          `json:"template"`
	Lock     string        `json:"lock"`   // what PVE is doing to it
	Power    string        `json:"power"`  // on, off, unknown
	Listed   bool          `json:"listed"` // .vmlist has it; if not, only a record has
	Record   *recordObject `json:"record"` // null: we did not make it, or records_error
	Stale    string        `json:"stale"`
	// Of --snapshots: oldest first, and the one that the VM as it is now comes from. Null and "" without it.
	Snapshots       []snapshotObject `json:"snapshots"`
	CurrentSnapshot string           `json:"current_snapshot"`
}

type recordObject struct {
	Owner      string  `json:"owner"`
	State      string  `json:"state"` // creating, ready
	Node       string  `json:"node"`  // that made it
	AgeSeconds float64 `json:"age_seconds"`
}

func askVMs(ctx context.Context, client nodepb.NodeClient, q *question) (any, func(io.Writer) error, error) {
	resp, err := client.VMs(ctx, &nodepb.VMsRequest{Node: q.node, Snapshots: q.snapshots})
	if err != nil {
		return nil, nil, err
	}
	if q.snapshots {
		return vmsOf(q, resp), snapshotsTable(resp).write, nil
	}
	return vmsOf(q, resp), vmsTable(resp).write, nil
}

func vmsOf(q *question, resp *nodepb.VMsResponse) vmsObject {
	out := vmsObject{view: viewOf(resp.GetView()), RecordsError: resp.GetRecordsError(), VMs: []vmObject{}}
	for _, v := range resp.GetVms() {
		o := vmObject{
			VMID: v.GetVmid(), ID: v.GetId(), Name: v.GetName(), Node: v.GetNode(), Type: v.GetType(), Template: v.GetTemplate(),
			Lock: v.GetLock(), Power: v.GetPower(), Listed: v.GetListed(), Stale: v.GetStale(),
			Snapshots: snapshotsOf(q, v), CurrentSnapshot: v.GetCurrentSnapshot(),
		}
		if r := v.GetRecord(); r != nil {
			o.Record = &recordObject{Owner: r.GetOwner(), State: r.GetState(), Node: r.GetNode(), AgeSeconds: seconds(r.GetAgeMs())}
		}
		out.VMs = append(out.VMs, o)
	}
	return out
}

func vmsTable(resp *nodepb.VMsResponse) *table {
	t := newTable("ID", "NAME", "NODE", "TYPE", "POWER", "RECORD", "OWNER", "NOTE")
	t.remark("stale", resp.GetView().GetStale())
	t.remark("incomplete", resp.GetRecordsError())
	for _, v := range resp.GetVms() {
		id, kind, state := v.GetId(), v.GetType(), v.GetRecord().GetState()
		if id == "" && v.GetVmid() != 0 {
			id = strconv.Itoa(int(v.GetVmid()))
		}
		if v.GetTemplate() {
			kind = "template"
		}
		if v.GetRecord() == nil && resp.GetRecordsError() != "" && kind != "lxc" { // we make no containers
			state = "?"
		}
		t.add(id, v.GetName(), v.GetNode(), kind, v.GetPower(), state, v.GetRecord().GetOwner(), vmNote(v))
	}
	return t
}

// vmNote is what else there is to know of a guest.
func vmNote(v *nodepb.VM) string {
	var notes []string
	if v.GetLock() != "" {
		notes = append(notes, "lock: "+v.GetLock())
	}
	if v.GetStale() != "" {
		notes = append(notes, "stale: "+v.GetStale())
	}
	return strings.Join(notes, ", ")
}
