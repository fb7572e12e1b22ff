package main

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// imageAgent is a node service that knows images.
type imageAgent struct {
	fakeAgent
	images *nodepb.ImagesResponse
	asked  string // name of the last request
}

func (a *imageAgent) Images(_ context.Context, req *nodepb.ImagesRequest) (*nodepb.ImagesResponse, error) {
	a.asked = req.GetName()
	return a.images, a.err
}

// manyImages has a replica in each state.
func manyImages() []*nodepb.Image {
	const hour = 3600_000
	return []*nodepb.Image{
		{Name: "debian-12", Source: "not recorded", AgeMs: 90 * 24 * hour, Wanted: 1, Replicas: []*nodepb.Replica{
			{Node: "pve1", Vmid: 9100, State: "ready", Shared: true, Bytes: 8 * gibi, AgeMs: 90 * 24 * hour, Clones: 12},
		}},
		{Name: "gone", Source: "template 9900", Wanted: 3, AgeMs: 24 * hour},
		{Name: "ubuntu", Source: `templates named "ubuntu": Ubuntu 22.04`, AgeMs: 50 * hour, Wanted: 3, Checksum: "sha256:0123", Replicas: []*nodepb.Replica{
			{Node: "pve1", Vmid: 9000, State: "ready", Bytes: 2*gibi + gibi/4, AgeMs: 50 * hour},
			{Node: "pve2", Vmid: 10007, State: "stale", Bytes: 2 * gibi, AgeMs: 60 * hour, Clones: 2, Reason: "template 9000, which it is a copy of, was rebuilt or has changed; kept for the VMs that share its disks"},
			{Node: "pve2", Vmid: 10012, State: "making", AgeMs: 12_000, Done: 0.427},
			{Node: "pve3", State: "failed", Reason: "storage local has 1.0 GiB left, and 4.5 GiB are needed"},
		}},
	}
}

func TestImagesGolden(t *testing.T) {
	a := &imageAgent{images: &nodepb.ImagesResponse{View: fine(), Images: manyImages()}}
	a.serve(t, a)
	for suffix, flags := range map[string][]string{".txt": nil, ".json": {"--json"}} {
		code, out, stderr := command(t, append([]string{"images", "--socket", a.socket}, flags...)...)
		if code != exitOK || stderr != "" || a.asked != "" {
			t.Fatalf("exit code %d, asked for %q, %s", code, a.asked, stderr)
		}
		golden(t, "images"+suffix, out)
	}
}

func TestOneImage(t *testing.T) {
	a := &imageAgent{images: &nodepb.ImagesResponse{View: fine(), Images: manyImages()[:1]}}
	a.serve(t, a)
	if code, _, stderr := command(t, "images", "debian-12", "--socket", a.socket); code != exitOK || a.asked != "debian-12" {
		t.Errorf("exit code %d, asked for %q, %s", code, a.asked, stderr)
	}
	a.err = status.Error(codes.NotFound, `there is no image "x", and no template of that name`)
	code, out, stderr := command(t, "images", "x", "--socket", a.socket)
	if want := "pve-rigaud images: the agent answers NotFound: there is no image \"x\", and no template of that name\n"; code != exitFailed || out != "" || stderr != want {
		t.Errorf("exit code %d, %q, %q", code, out, stderr)
	}
	if code, _, stderr := command(t, "images", "a", "b"); code != exitUsage {
		t.Errorf("two names: exit code %d, %s", code, stderr)
	}
}
