package qmptest_test

import (
	"bufio"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func itoa(n int) string { return strconv.Itoa(n) }

// client is a connection without manners.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dialRaw(t *testing.T, path string) client {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client{c, bufio.NewReader(c)}
}

func (c client) send(t *testing.T, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func (c client) line(t *testing.T) string {
	t.Helper()
	line, err := c.in.ReadString('\n')
	if err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return strings.TrimSpace(line)
}

func replay(t *testing.T, script qmptest.Conversation) (r *qmptest.Replay, path string) {
	t.Helper()
	path = filepath.Join(shortDir(t), "100.qmp")
	r, err := qmptest.NewReplay(path, script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, path
}

// TestReplayOfAll sends the whole recording as it was sent.
func TestReplayOfAll(t *testing.T) {
	for name, script := range map[string]qmptest.Conversation{
		"qmp": qmptest.RecordedQMP(), "agent": qmptest.RecordedAgent(),
	} {
		t.Run(name, func(t *testing.T) {
			r, path := replay(t, script)
			c := dialRaw(t, path)
			for _, l := range script {
				if l.Dir == ">" {
					c.send(t, l.Text+"\n")
					continue
				}
				if got, want := c.line(t), strings.ReplaceAll(l.Text, "\u00ff", "\xff"); got != want {
					t.Errorf("got  %.200s\nwant %.200s", got, want)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReplayPutsIDs(t *testing.T) {
	script, err := qmptest.RecordedQMP().Select("query-status", "balloon", "balloon")
	if err != nil {
		t.Fatal(err)
	}
	_, path := replay(t, script)
	c := dialRaw(t, path)
	c.line(t)
	for _, step := range []struct{ send, want string }{
		{`{"execute": "qmp_capabilities", "id": 7}`, `{"return": {}, "id": 7}`},
		{`{"execute": "query-status", "id": "x"}`, `{"return": {"status": "running", "running": true}, "id": "x"}`},
		{`{"execute": "balloon", "arguments": {"value": 402653184}, "id": "y"}`, `{"return": {}, "id": "y"}`},
		{`{"execute": "balloon", "arguments": {"value": "abc"}, "id": "z"}`, `{"id": "z", "error": {"class": "GenericError", "desc": "Invalid parameter type for 'value', expected: integer"}}`},
	} {
		c.send(t, step.send+"\n")
		if got := c.line(t); got != step.want {
			t.Errorf("%s:\ngot  %s\nwant %s", step.send, got, step.want)
		}
	}
}

func TestReplayNoticesOthers(t *testing.T) {
	script, err := qmptest.RecordedQMP().Select("balloon")
	if err != nil {
		t.Fatal(err)
	}
	for name, send := range map[string][]string{
		"another command":  {`{"execute": "qmp_capabilities"}`, `{"execute": "query-status"}`},
		"another argument": {`{"execute": "qmp_capabilities"}`, `{"execute": "balloon", "arguments": {"value": 1}}`},
		"no argument":      {`{"execute": "qmp_capabilities"}`, `{"execute": "balloon"}`},
		"no negotiation":   {`{"execute": "balloon", "arguments": {"value": 402653184}}`},
		"garbage":          {`{"execute": "qmp_capabilities"}`, `garbage`},
		"more than expected": {
			`{"execute": "qmp_capabilities"}`, `{"execute": "balloon", "arguments": {"value": 402653184}}`, `{"execute": "quit"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, path := replay(t, script)
			c := dialRaw(t, path)
			for _, line := range send {
				c.send(t, line+"\n")
			}
			for {
				if _, err := c.in.ReadString('\n'); err != nil {
					break
				}
			}
			if err := r.Close(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(send[len(send)-1])) {
				t.Errorf("%v, want it to name %s", err, send[len(send)-1])
			}
		})
	}
}

func TestSelect(t *testing.T) {
	if _, err := qmptest.RecordedQMP().Select("query-machines"); err == nil || !strings.Contains(err.Error(), "query-machines") {
		t.Errorf("%v, want the command that was not recorded", err)
	}
	if _, err := qmptest.ReadConversation(strings.NewReader(`{"dir": "?", "line": ""}`)); err == nil {
		t.Error("a direction that does not exist")
	}
	if _, err := qmptest.ReadConversation(strings.NewReader("{}\n{")); err == nil {
		t.Error("no JSON")
	}
	c, err := qmptest.ReadConversation(strings.NewReader(`{"dir": "#", "line": "a remark"}` + "\n" + `{"dir": "<", "line": "x"}`))
	if err != nil || len(c) != 1 {
		t.Errorf("%v, %v; want one line", c, err)
	}
}
