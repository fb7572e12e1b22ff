package main

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// placingAgent is a node service that knows decisions.
type placingAgent struct {
	fakeAgent
	explained *nodepb.ExplainResponse
	placed    *nodepb.PlaceResponse
	vm        string               // of the last ExplainRequest
	wish      *nodepb.PlaceRequest // the last one
}

func (a *placingAgent) Explain(_ context.Context, rq *nodepb.ExplainRequest) (*nodepb.ExplainResponse, error) {
	a.vm = rq.GetVm()
	return a.explained, a.err
}

func (a *placingAgent) Place(_ context.Context, rq *nodepb.PlaceRequest) (*nodepb.PlaceResponse, error) {
	a.wish = rq
	return a.placed, a.err
}

// decisions are one that was refused, and the one after it.
func decisions() []*nodepb.Placement {
	return []*nodepb.Placement{
		{
			Name: "web-1", DecidedBy: "pve2", AgeMs: 12_000, Node: "pve3", Act: "create", Policy: "web", Scorer: "crs",
			Wants: `4 CPUs, 8.0 GiB memory, vmbr0, a copy of replica of "debian-12"`, Warnings: []string{"the loss of pve1 could no longer be absorbed"},
			Rows: []*nodepb.PlacementRow{
				{Node: "pve1", Reasons: []string{"memory (needs 8.0 GiB, 3.1 free)"}, Score: 0.2, MemoryFree: 3*gibi + gibi/8, MemoryTotal: 64 * gibi},
				{Node: "pve2", Reasons: []string{"cordoned (new RAM)"}, Score: 0.5, MemoryFree: 40 * gibi, MemoryTotal: 64 * gibi},
				{Node: "pve3", Fits: true, Score: 0.75, MemoryFree: 32 * gibi, MemoryTotal: 128 * gibi},
			},
		},
		{
			Name: "web-1", DecidedBy: "pve1", AgeMs: 17_000, Act: "create", Scorer: "crs", Wants: "4 CPUs, 8.0 GiB memory",
			Refusal: "no node fits: pve1 memory (needs 8.0 GiB, 3.1 free), pve2 cordoned (new RAM), pve3 is offline",
			Rows: []*nodepb.PlacementRow{
				{Node: "pve1", Reasons: []string{"memory (needs 8.0 GiB, 3.1 free)"}, Score: 0.2, MemoryFree: 3*gibi + gibi/8, MemoryTotal: 64 * gibi},
				{Node: "pve2", Reasons: []string{"cordoned (new RAM)"}, Score: 0.5, MemoryFree: 40 * gibi, MemoryTotal: 64 * gibi},
				{Node: "pve3", Reasons: []string{"is offline"}},
			},
		},
	}
}

func TestExplainGolden(t *testing.T) {
	a := &placingAgent{explained: &nodepb.ExplainResponse{View: fine(), Placements: decisions(), Silent: []string{"pve4"}}}
	a.serve(t, a)
	for suffix, flags := range map[string][]string{".txt": nil, ".json": {"--json"}} {
		code, out, stderr := command(t, append([]string{"explain", "web-1", "--socket", a.socket}, flags...)...)
		if code != exitOK || stderr != "" || a.vm != "web-1" {
			t.Fatalf("exit code %d, asked for %q, %s", code, a.vm, stderr)
		}
		golden(t, "explain"+suffix, out)
	}
}

func TestExplainWhat(t *testing.T) {
	a := &placingAgent{}
	a.err = status.Error(codes.NotFound, "explain x: no agent that can be asked remembers a decision about it")
	a.serve(t, a)
	if code, _, stderr := command(t, "explain", "x", "--socket", a.socket); code != exitFailed || !strings.Contains(stderr, "remembers") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if code, _, stderr := command(t, "explain", "--socket", a.socket); code != exitUsage || !strings.Contains(stderr, "which VM?") {
		t.Errorf("no VM: exit code %d, %s", code, stderr)
	}
}

func TestPlaceGolden(t *testing.T) {
	dry := decisions()[0]
	dry.Act, dry.Name, dry.AgeMs = "dry run", "", 0
	a := &placingAgent{placed: &nodepb.PlaceResponse{View: fine(), Placement: dry}}
	a.serve(t, a)
	wish := []string{
		"place", "--cpu", "4", "--memory", "8Gi", "--image", "debian-12", "--dry-run", "--name", "web-1", "--tag", "web", "--tag", "prod",
		"--pool", "shop", "--policy", "web", "--node", "fast", "--disk", "40GiB", "--socket", a.socket,
	}
	want := &nodepb.PlaceRequest{
		Cpus: 4, Memory: 8 * gibi, Image: "debian-12", Name: "web-1", Tags: []string{"web", "prod"}, Pool: "shop", Policy: "web", Node: "fast", Disk: 40 * gibi,
	}
	for suffix, flags := range map[string][]string{".txt": nil, ".json": {"--json"}} {
		code, out, stderr := command(t, append(wish, flags...)...)
		if code != exitOK || stderr != "" || !proto.Equal(a.wish, want) {
			t.Fatalf("exit code %d, asked for %v, %s", code, a.wish, stderr)
		}
		golden(t, "place"+suffix, out)
	}
}

func TestPlaceWithAWrongSize(t *testing.T) {
	if code, _, stderr := command(t, "place", "--memory", "much"); code != exitUsage || !strings.Contains(stderr, `--memory: "much" is no size`) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "8Gi": 8 << 30, "8GiB": 8 << 30, "8G": 8 << 30, "1.5Gi": 3 << 29, "512Mi": 512 << 20, "4096": 4096, "1T": 1 << 40} {
		if got, err := size(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1Gi", "Gi", "8Xi", "8 Gi", "99999999999T", "8GiGi"} {
		if got, err := size(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
