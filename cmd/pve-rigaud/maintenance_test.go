package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/node"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// movingAgent is an agent that says, one after the other, how far a drain is.
type movingAgent struct {
	fakeAgent

	mu     sync.Mutex // guards what follows
	steps  []*nodepb.DrainResponse
	err    error
	asked  string // what was asked for, in words
	cordon *nodepb.CordonRequest
}

func (a *movingAgent) next(what string) (*nodepb.DrainResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked += what + " "
	if a.err != nil {
		return nil, a.err
	}
	step := a.steps[0]
	if len(a.steps) > 1 {
		a.steps = a.steps[1:]
	}
	return step, nil
}

func (a *movingAgent) Cordon(_ context.Context, req *nodepb.CordonRequest) (*nodepb.CordonResponse, error) {
	a.cordon = req
	return &nodepb.CordonResponse{View: fine(), Changed: req.GetReason() != "" || req.GetUncordon()}, a.err
}

func (a *movingAgent) Drain(_ context.Context, req *nodepb.DrainRequest) (*nodepb.DrainResponse, error) {
	return a.next("drain " + req.String())
}

func (a *movingAgent) Restore(_ context.Context, req *nodepb.RestoreRequest) (*nodepb.DrainResponse, error) {
	return a.next("restore " + req.String())
}

func (a *movingAgent) Evacuation(context.Context, *nodepb.EvacuationRequest) (*nodepb.DrainResponse, error) {
	return a.next("look")
}

func (a *movingAgent) StopEvacuation(context.Context, *nodepb.StopEvacuationRequest) (*nodepb.DrainResponse, error) {
	return a.next("stop")
}

// open serves the agent's socket until the test ends.
func (a *movingAgent) open(t *testing.T) {
	t.Helper()
	pollEvery = time.Millisecond
	a.socket = shortDir(t) + "/agent.sock"
	s := node.NewServer(node.ServerConfig{Socket: a.socket, Service: a})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-s.Ready()
}

// evacuated is an answer about a node with a VM in each of the given states.
func evacuated(act, state, message string, states ...string) *nodepb.DrainResponse {
	resp := &nodepb.DrainResponse{View: fine(), Node: "pve2", Act: act, State: state, Message: message, Op: "0197-op"}
	for i, s := range states {
		m := &nodepb.Move{Vmid: int32(101 + i), Name: "vm" + string(rune('a'+i)), From: "pve2", To: "pve1", State: s, Running: true, Memory: 8 * gibi >> i, TookMs: 12_300, Ha: i == 1}
		switch s {
		case "planned", "moving":
			m.TookMs = 0
		case "stays":
			m.To, m.Reason, m.TookMs = "", "no node fits: pve1 memory (needs 2.0 GiB, 1.1 free)", 0
		case "failed":
			m.Reason, m.TookMs = "migration aborted:\nno space", 0
		}
		resp.Moves = append(resp.Moves, m)
	}
	return resp
}

func TestEvacuations(t *testing.T) {
	for _, test := range []struct {
		name, command string
		steps         []*nodepb.DrainResponse
		code          int
	}{
		{"drain-plan", "drain pve2 --dry-run --stopped", []*nodepb.DrainResponse{
			evacuated("drain", "planned", "VMs that do not run, and stay: 3", "planned", "planned"),
		}, exitOK},
		{"drain-plan-stays", "drain pve2 --dry-run", []*nodepb.DrainResponse{evacuated("drain", "planned", "", "planned", "planned", "stays")}, exitFailed},
		{"drain", "drain pve2 --parallel 1", []*nodepb.DrainResponse{
			evacuated("drain", "running", "", "planned", "planned"), evacuated("drain", "running", "", "moving", "planned"),
			evacuated("drain", "running", "", "moving", "planned"), evacuated("drain", "running", "", "moved", "moving"),
			evacuated("drain", "done", "", "moved", "moved"),
		}, exitOK},
		{"drain-failed", "drain pve2 --force", []*nodepb.DrainResponse{
			evacuated("drain", "running", "", "moving", "planned", "stays"),
			evacuated("drain", "failed", "pve2: 2 of 3 VMs were not moved", "moved", "failed", "stays"),
		}, exitFailed},
		{"drain-stopped", "drain pve2", []*nodepb.DrainResponse{
			evacuated("drain", "running", "", "moving", "planned"), evacuated("drain", "stopping", "stopped when asked to", "moving", "planned"),
			evacuated("drain", "stopped", "stopped when asked to", "moved", "planned"),
		}, exitFailed},
		{"restore", "restore pve2", []*nodepb.DrainResponse{evacuated("restore", "running", "", "moving"), evacuated("restore", "done", "", "moved")}, exitOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			for suffix, flags := range map[string][]string{".txt": nil, ".json": {"--json"}} {
				a := movingAgent{steps: test.steps}
				a.open(t)
				code, out, stderr := command(t, append(append(strings.Fields(test.command), "--socket", a.socket), flags...)...)
				if code != test.code || stderr != "" {
					t.Errorf("exit code %d, %s", code, stderr)
				}
				golden(t, test.name+suffix, out)
				if suffix == ".json" && !json.Valid([]byte(out)) {
					t.Error("no JSON")
				}
			}
		})
	}
}

// TestInterrupt: Ctrl-C stops the drain, and the command waits for what is under way.
func TestInterrupt(t *testing.T) {
	a := movingAgent{steps: []*nodepb.DrainResponse{evacuated("drain", "running", "", "moving", "planned")}}
	a.open(t)
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		for {
			a.mu.Lock()
			looked, stopped := strings.Contains(a.asked, "look"), strings.Contains(a.asked, "stop ")
			if stopped {
				a.steps = []*nodepb.DrainResponse{evacuated("drain", "stopped", "stopped when asked to", "moved", "planned")}
			}
			a.mu.Unlock()
			if stopped {
				return
			}
			if looked {
				interrupt()
			}
		}
	}()
	var out, stderr strings.Builder
	code := run(ctx, []string{"drain", "pve2", "--socket", a.socket}, func(string) (string, bool) { return "", false }, &out, &stderr)
	if code != exitFailed || stderr.Len() > 0 || !strings.Contains(out.String(), "stopping: no further move begins") ||
		!strings.Contains(out.String(), "VM 101 (vma): moved to pve1 in 12s\ndrain of node pve2 stopped: 1 of 2 moved") ||
		!strings.Contains(out.String(), "To go on: pve-rigaud drain pve2\nTo undo it: pve-rigaud restore pve2\n") {
		t.Errorf("exit code %d, %s%s", code, &out, &stderr)
	}
}

func TestCordonCommands(t *testing.T) {
	a := movingAgent{}
	a.open(t)
	for args, want := range map[string]string{
		"cordon pve2 --reason disks": "node pve2 is cordoned\n",
		"cordon pve2":                "node pve2 was cordoned already\n",
		"uncordon pve2":              "node pve2 takes new VMs again\n",
	} {
		code, out, stderr := command(t, append(strings.Fields(args), "--socket", a.socket)...)
		if code != exitOK || out != want || stderr != "" || a.cordon.GetNode() != "pve2" || a.cordon.GetUncordon() != strings.HasPrefix(args, "un") {
			t.Errorf("%s: exit code %d, %q, %q, %v", args, code, out, stderr, a.cordon)
		}
	}
	code, out, _ := command(t, "uncordon", "pve2", "--json", "--socket", a.socket)
	if code != exitOK || !strings.Contains(out, `"changed": true`) || !json.Valid([]byte(out)) {
		t.Errorf("exit code %d, %s", code, out)
	}
}

func TestMaintenanceIsRefused(t *testing.T) {
	a := movingAgent{err: status.Error(codes.FailedPrecondition, "node pve2 cannot be emptied, nothing was begun")}
	a.open(t)
	for _, name := range []string{"drain", "restore", "cordon"} {
		code, out, stderr := command(t, name, "pve2", "--socket", a.socket)
		want := "pve-rigaud " + name + ": the agent answers FailedPrecondition: node pve2 cannot be emptied, nothing was begun\n"
		if code != exitFailed || out != "" || stderr != want {
			t.Errorf("%s: exit code %d, %q, %q", name, code, out, stderr)
		}
	}
	for args, says := range map[string]string{
		"drain": "Its name is missing", "drain a b": `unexpected argument "b"`, "drain a --parallel 0": "--parallel: at least 1", "cordon a --force": "unknown flag",
	} {
		if code, _, stderr := command(t, strings.Fields(args)...); code != exitUsage || !strings.Contains(stderr, says) {
			t.Errorf("%s: exit code %d, %s", args, code, stderr)
		}
	}
	if code, out, _ := command(t, "drain", "--help"); code != exitOK || !strings.Contains(out, "--dry-run") {
		t.Errorf("exit code %d, %s", code, out)
	}
}
