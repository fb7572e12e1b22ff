package pvesim

import (
	"fmt"
	"regexp"
	"strconv"
)

// upid is the name of a task: UPID:node:pid:pstart:starttime:type:id:user:
type upid struct {
	node, kind, id, user string
	pid, pstart          int64
	start                int64
}

func (u upid) String() string {
	return fmt.Sprintf("UPID:%s:%08X:%08X:%08X:%s:%s:%s:", u.node, u.pid, u.pstart, u.start, u.kind, u.id, u.user)
}

var upidText = regexp.MustCompile(`^UPID:([a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?):([0-9A-Fa-f]{8}):` +
	`([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):([^:\s]+):([^:\s]*):([^:\s]+):$`)

func parseUPID(s string) (upid, bool) {
	m := upidText.FindStringSubmatch(s)
	if m == nil {
		return upid{}, false
	}
	var n [3]int64
	for i := range n {
		v, err := strconv.ParseInt(m[i+2], 16, 64)
		if err != nil {
			return upid{}, false
		}
		n[i] = v
	}
	return upid{node: m[1], pid: n[0], pstart: n[1], start: n[2], kind: m[5], id: m[6], user: m[7]}, true
}
