package pvesim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// fields are what every view of a task has.
func (u upid) fields(full string) map[string]any {
	user, token, isToken := strings.Cut(u.user, "!")
	out := map[string]any{
		"upid": full, "node": u.node, "pid": u.pid, "pstart": u.pstart, "starttime": u.start,
		"type": u.kind, "id": u.id, "user": user,
	}
	if isToken {
		out["tokenid"] = token
	}
	return out
}

// taskFor finds the task that a call names.
func (c *Cluster) taskFor(rq *request) (*Task, error) {
	name := rq.vars["upid"]
	u, ok := parseUPID(name)
	if !ok {
		return nil, paramError("upid", "unable to parse worker upid")
	}
	t, ok := c.workers.find(name)
	if !ok || u.node != rq.node.Name {
		return nil, paramError("upid", "no such task")
	}
	return t, nil
}

// ownTask lets everybody see his own tasks; others' need a privilege.
func ownTask(rq *request, t *Task, priv string) error {
	if t.upid.user == rq.who.authID() || (rq.who.token == "" && strings.HasPrefix(t.upid.user, rq.who.user+"!")) {
		return nil
	}
	return rq.who.check("/nodes/"+rq.node.Name, priv)
}

// taskStatus is GET .../tasks/{upid}/status.
func (c *Cluster) taskStatus(_ context.Context, rq *request) (any, error) {
	t, err := c.taskFor(rq)
	if err != nil {
		return nil, err
	}
	if err := ownTask(rq, t, "Sys.Audit"); err != nil {
		return nil, err
	}
	out := t.upid.fields(t.UPID)
	out["status"] = "running"
	if exit := t.Exit(); exit != "" {
		out["status"], out["exitstatus"] = "stopped", exit
	}
	return out, nil
}

// taskLog is GET .../tasks/{upid}/log.
func (c *Cluster) taskLog(_ context.Context, rq *request) (any, error) {
	t, err := c.taskFor(rq)
	if err != nil {
		return nil, err
	}
	if err := ownTask(rq, t, "Sys.Audit"); err != nil {
		return nil, err
	}
	t.mu.Lock()
	lines := slices.Clone(t.log)
	t.mu.Unlock()
	start, limit := rq.number("start", 0), rq.number("limit", 50)
	out := []any{}
	for i, line := range lines {
		if i >= start && (limit == 0 || i < start+limit) {
			out = append(out, map[string]any{"n": i + 1, "t": line})
		}
	}
	if len(lines) == 0 {
		out = append(out, map[string]any{"n": 1, "t": "no content"})
	}
	return page{out, max(len(lines), 1)}, nil
}

// stopTask is DELETE .../tasks/{upid}. Our workers cannot be killed half-way:
// it is accepted and does nothing.
func (c *Cluster) stopTask(_ context.Context, rq *request) (any, error) {
	t, err := c.taskFor(rq)
	if err != nil {
		return nil, err
	}
	return nil, ownTask(rq, t, "Sys.Modify")
}

// listTasks is GET /nodes/{node}/tasks.
func (c *Cluster) listTasks(_ context.Context, rq *request) (any, error) {
	source := rq.param("source")
	def(&source, "archive")
	all := c.Tasks()
	slices.Reverse(all)
	start, limit := rq.number("start", 0), rq.number("limit", 50)
	out := []any{}
	count := 0
	for _, wantRunning := range []bool{true, false} {
		if (wantRunning && source == "archive") || (!wantRunning && source == "active") {
			continue
		}
		for _, t := range all {
			if (t.Exit() == "") != wantRunning || !rq.wants(t) {
				continue
			}
			if count++; count > start && count <= start+limit {
				out = append(out, t.entry())
			}
		}
	}
	return page{out, count}, nil
}

// wants says whether a task passes the filters of a list.
func (rq *request) wants(t *Task) bool {
	u := t.upid
	user, _, _ := strings.Cut(u.user, "!")
	statuses := rq.param("statusfilter")
	switch {
	case u.node != rq.node.Name,
		rq.has("userfilter") && !strings.Contains(strings.ToLower(user), strings.ToLower(rq.param("userfilter"))),
		ownTask(rq, t, "Sys.Audit") != nil,
		rq.has("typefilter") && rq.param("typefilter") != u.kind,
		rq.has("vmid") && rq.param("vmid") != u.id,
		rq.has("since") && u.start < int64(rq.number("since", 0)),
		rq.has("until") && u.start > int64(rq.number("until", 0)),
		rq.flag("errors") && statusKind(t.Exit()) == "ok",
		statuses != "" && !rq.flag("errors") && !slices.Contains(strings.Split(statuses, ","), statusKind(t.Exit())):
		return false
	}
	return true
}

func (t *Task) entry() map[string]any {
	out := t.upid.fields(t.UPID)
	t.mu.Lock()
	defer t.mu.Unlock()
	out["status"] = "RUNNING"
	if t.exit != "" {
		out["status"], out["endtime"] = t.exit, t.end.Unix()
	}
	return out
}

// awaitTask is the "delay" of some calls: nothing when the task ended well in
// time, its error when it ended badly, else its UPID.
func (c *Cluster) awaitTask(ctx context.Context, id string, seconds int) (any, error) {
	t, ok := c.workers.find(id)
	if !ok {
		return nil, fmt.Errorf("task %s is not there", id)
	}
	timer := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-t.Done():
	case <-timer.C:
		return id, nil
	case <-ctx.Done():
		return id, nil
	}
	if exit := t.Exit(); statusKind(exit) == "error" {
		return nil, dief("%s", exit)
	}
	return nil, nil
}
