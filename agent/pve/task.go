package pve

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

// TaskStatus is a task as GET /nodes/{node}/tasks/{upid}/status describes it.
type TaskStatus struct {
	UPID       UPID   `json:"upid"`
	Node       string `json:"node"`
	Type       string `json:"type"`
	ID         string `json:"id"`
	User       string `json:"user"`
	PID        Int    `json:"pid"`
	Start      Int    `json:"starttime"`  // Unix time
	Status     string `json:"status"`     // "running" or "stopped"
	ExitStatus string `json:"exitstatus"` // once stopped: "OK", "WARNINGS: n", or the error
}

// Running reports whether the task goes on.
func (s TaskStatus) Running() bool { return s.Status == "running" }

// Err is nil for a task that runs or succeeded, perhaps with warnings, else a *TaskError.
func (s TaskStatus) Err() error {
	if s.Running() || succeeded(s.ExitStatus) {
		return nil
	}
	return &TaskError{UPID: s.UPID, ExitStatus: s.ExitStatus}
}

// Task is an entry of a node's task list.
type Task struct {
	UPID   UPID   `json:"upid"`
	Node   string `json:"node"`
	Type   string `json:"type"`
	ID     string `json:"id"`
	User   string `json:"user"`
	Start  Int    `json:"starttime"` // Unix time
	End    Int    `json:"endtime"`   // Unix time; 0 while it runs
	Status string `json:"status"`    // "OK", "WARNINGS: n" or the error; "RUNNING" or "" while it runs
}

// Running reports whether the task had no end when the list was made.
func (t Task) Running() bool { return t.End == 0 }

// Err is nil for a task that runs or succeeded, else a *TaskError.
func (t Task) Err() error {
	if t.Running() || succeeded(t.Status) {
		return nil
	}
	return &TaskError{UPID: t.UPID, ExitStatus: t.Status}
}

var warnings = regexp.MustCompile(`^WARNINGS: \d+$`)

func succeeded(exit string) bool { return exit == "OK" || warnings.MatchString(exit) }

// TaskQuery filters a task list; zero fields do not.
type TaskQuery struct {
	VMID   int
	Type   string    // as "qmclone"
	Since  time.Time // started at or after this second
	Source string    // "archive" (ended ones, PVE's default), "active" or "all"
	Limit  int       // PVE's default is 50
}

// Tasks lists tasks of a node, latest first. Without Sys.Audit on the node PVE shows only those of our own token.
func (c *Client) Tasks(ctx context.Context, node string, q TaskQuery) ([]Task, error) {
	v := url.Values{}
	setInt(v, "vmid", q.VMID)
	setText(v, "typefilter", q.Type)
	setText(v, "source", q.Source)
	setInt(v, "limit", q.Limit)
	if !q.Since.IsZero() {
		v.Set("since", strconv.FormatInt(q.Since.Unix(), 10))
	}
	var out []Task
	err := c.Call(ctx, http.MethodGet, nodePath(node, "tasks"), v, &out)
	return out, err
}

// TaskStatus looks at a task.
func (c *Client) TaskStatus(ctx context.Context, u UPID) (TaskStatus, error) {
	path, err := taskPath(u, "status")
	if err != nil {
		return TaskStatus{}, err
	}
	var out TaskStatus
	if err := c.Call(ctx, http.MethodGet, path, nil, &out); err != nil {
		return TaskStatus{}, err
	}
	out.UPID = u
	return out, nil
}

func taskPath(u UPID, below string) (string, error) {
	t, err := ParseUPID(string(u))
	if err != nil {
		return "", err
	}
	return nodePath(t.Node, "tasks", string(u), below), nil
}

const (
	logPage = 1000   // lines per call
	logMax  = 100000 // lines altogether; more than anybody reads
	logTail = 10     // lines of a TaskError
)

// TaskLog returns all lines of a task's log.
func (c *Client) TaskLog(ctx context.Context, u UPID) ([]string, error) {
	var all []string
	for len(all) < logMax {
		lines, total, err := c.logLines(ctx, u, len(all), logPage)
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
		if len(lines) < logPage || len(all) >= total {
			break
		}
	}
	return all, nil
}

// logLines reads lines of a log from the one with index start, and how many there are.
func (c *Client) logLines(ctx context.Context, u UPID, start, limit int) ([]string, int, error) {
	path, err := taskPath(u, "log")
	if err != nil {
		return nil, 0, err
	}
	var rows []struct {
		Text string `json:"t"`
	}
	into := &envelope{Data: &rows}
	v := url.Values{"start": {strconv.Itoa(start)}, "limit": {strconv.Itoa(limit)}}
	if err := c.call(ctx, request{method: http.MethodGet, path: path, params: v}, into); err != nil {
		return nil, 0, err
	}
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = r.Text
	}
	return lines, int(into.Total), nil
}

// tail returns the last lines of a log, or nil: they explain an error, they are not worth another one.
func (c *Client) tail(ctx context.Context, u UPID) []string {
	lines, total, err := c.logLines(ctx, u, 0, logTail)
	if err == nil && total > len(lines) {
		lines, _, err = c.logLines(ctx, u, total-logTail, logTail)
	}
	if err != nil {
		c.cfg.Log.DebugContext(ctx, "read the log of a failed task", "upid", u, "error", err)
		return nil
	}
	return lines
}

// Wait waits for the end of a task: it looks at once, and then in pauses that grow from PollMin to PollMax. It
// returns nil when the task ended with OK or warnings, a *TaskError when it failed, a *WaitError when ctx ended
// first; the empty UPID has ended already. A look that fails because PVE cannot be reached or refuses our credentials
// is repeated until ctx ends, because the task does not stop for that; any other failed look, such as KindNoTask, is
// returned. When IsHARequest, nil says only that the request was filed.
func (c *Client) Wait(ctx context.Context, u UPID) error {
	if u == "" {
		return nil
	}
	var last error
	for pause := c.cfg.PollMin; ; pause = min(pause+pause/2, c.cfg.PollMax) {
		st, err := c.TaskStatus(ctx, u)
		switch {
		case err == nil && !st.Running():
			return c.ended(ctx, st)
		case ctx.Err() != nil:
			return &WaitError{UPID: u, Last: last, Err: context.Cause(ctx)}
		case err != nil && !passing(err):
			return fmt.Errorf("wait for task %s: %w", u, err)
		}
		last = err
		if !sleep(ctx, pause) {
			return &WaitError{UPID: u, Last: last, Err: context.Cause(ctx)}
		}
	}
}

func (c *Client) ended(ctx context.Context, st TaskStatus) error {
	if succeeded(st.ExitStatus) {
		return nil
	}
	return &TaskError{UPID: st.UPID, ExitStatus: st.ExitStatus, Log: c.tail(ctx, st.UPID)}
}

// passing reports whether the same look may succeed later. Credentials are among it: they are refused, too, while
// PVE's own configuration file system restarts.
func passing(err error) bool {
	switch KindOf(err) {
	case KindUnreachable, KindTimeout, KindAuth:
		return true
	}
	return false
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Pauses of RetryLocked. PVE itself has waited ten seconds for the lock before it says so.
const (
	lockPauseMin = 200 * time.Millisecond
	lockPauseMax = 2 * time.Second
	lockPatience = time.Minute // when the caller sets no deadline
)

// RetryLocked calls do until it returns anything but KindLockTimeout, with pauses that grow to 2 s, within ctx's
// deadline or, if it has none, for a minute. PVE fails a change so when something else holds the VM's lock file, as
// `qm cleanup` does for up to 30 s after a rollback; nothing was changed then. When the time is over the last error of
// do is returned. do starts the change and, if it is a task, waits for it. A VM whose config says `lock:` is another
// matter (KindLocked) and not retried.
func RetryLocked(ctx context.Context, do func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lockPatience)
		defer cancel()
	}
	for pause := lockPauseMin; ; pause = min(2*pause, lockPauseMax) {
		err := do(ctx)
		if KindOf(err) != KindLockTimeout {
			return err
		}
		if end, _ := ctx.Deadline(); time.Until(end) <= pause || !sleep(ctx, pause) {
			return err
		}
	}
}
