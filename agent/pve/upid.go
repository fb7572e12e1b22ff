package pve

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// UPID names a task of a cluster: "UPID:node:pid:pstart:starttime:type:id:user:". The empty UPID means that PVE did
// the work before it answered.
type UPID string

// Task types that only file a request with the HA manager: their OK does not say that the VM started or stopped.
const (
	taskHAStart = "hastart"
	taskHAStop  = "hastop"
	taskHAMove  = "hamigrate"
)

// TaskID is what a UPID says.
type TaskID struct {
	Node   string    // the node that runs the task
	PID    int       // of the worker process
	PStart int64     // its start, in clock ticks since boot
	Start  time.Time // second resolution
	Type   string    // as qmstart, qmclone, hastart
	ID     string    // what it works on, mostly a VMID; may be empty
	User   string    // user@realm or user@realm!token
}

// upidPattern is strict: three hex fields of eight digits (pstart may have nine after 497 days), no blanks, and no
// slash, because a UPID becomes a part of a URL path and of a file name.
var upidPattern = regexp.MustCompile(`^UPID:([a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?):([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):([^:\s/[:cntrl:]]+):([^:\s/[:cntrl:]]*):([^:\s/[:cntrl:]]+):$`)

// maxUPID is far above what PVE makes: a node name of 63, three hex fields, a type, an id and a user of 64.
const maxUPID = 512

// ParseUPID reads a UPID.
func ParseUPID(s string) (TaskID, error) {
	if len(s) > maxUPID {
		return TaskID{}, fmt.Errorf("pve: a UPID has %d characters at most, not %d", maxUPID, len(s))
	}
	m := upidPattern.FindStringSubmatch(s)
	if m == nil {
		return TaskID{}, fmt.Errorf("pve: %q is not a UPID", s)
	}
	// The pattern leaves only hex digits, few enough for the sizes asked for.
	pid, _ := strconv.ParseInt(m[2], 16, 64)
	pstart, _ := strconv.ParseInt(m[3], 16, 64)
	start, _ := strconv.ParseInt(m[4], 16, 64)
	return TaskID{
		Node: m[1], PID: int(pid), PStart: pstart, Start: time.Unix(start, 0),
		Type: m[5], ID: m[6], User: m[7],
	}, nil
}

// UPID writes the id as PVE does.
func (t TaskID) UPID() UPID {
	return UPID(fmt.Sprintf("UPID:%s:%08X:%08X:%08X:%s:%s:%s:", t.Node, t.PID, t.PStart, t.Start.Unix(), t.Type, t.ID, t.User))
}

// IsHARequest reports whether the task only files a request with the HA manager (hastart, hastop, hamigrate). When such a task
// is OK the VM may not have changed yet, and it may change on another node.
func IsHARequest(u UPID) bool {
	t, err := ParseUPID(string(u))
	return err == nil && (t.Type == taskHAStart || t.Type == taskHAStop || t.Type == taskHAMove)
}
