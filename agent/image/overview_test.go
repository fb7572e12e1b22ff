package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// overviewText is what is told of images, a line for each template.
func (l *lab) overviewText(name string, alone bool) string {
	l.Helper()
	images, err := l.Overview(l.Context(), name, alone)
	l.must(err)
	var lines []string
	for _, i := range images {
		lines = append(lines, fmt.Sprintf("%s (%s) wanted %d", i.GetName(), i.GetSource(), i.GetWanted()))
		for _, r := range i.GetReplicas() {
			line := fmt.Sprintf("  %s %d %s %d GiB, %d clones", r.GetNode(), r.GetVmid(), r.GetState(), r.GetBytes()>>30, r.GetClones())
			if r.GetShared() {
				line += ", shared"
			}
			if r.GetDone() > 0 {
				line += fmt.Sprintf(", %.1f done", r.GetDone())
			}
			if r.GetReason() != "" {
				line += ": " + r.GetReason()
			}
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func TestOverview(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *Config) {
		c.Replicas = EveryNode
		c.Call = func(_ context.Context, node, _ string, _, resp proto.Message) error {
			if node != "pve2" {
				return errors.New("it does not answer")
			}
			proto.Merge(resp, &nodepb.ImagesResponse{Images: []*nodepb.Image{{Name: "ubuntu", Replicas: []*nodepb.Replica{
				{Node: "pve1", Vmid: 9000, State: "ready"}, {Node: "pve2", Vmid: 10005, State: "making", Done: 0.5},
			}}, {Name: "unheard of"}}})
			return nil
		}
	})
	l.recordUbuntu()
	l.put(9000, "pve1", templateConf(9000, "ubuntu-tmpl", "local", uuidB)) // rebuilt
	l.put(9100, "pve2", templateConf(9100, "shared", "ceph", uuidA))
	l.put(9200, "pve1", templateConf(9200, "double", "local", uuidA))
	l.put(9201, "pve1", templateConf(9201, "double", "local", uuidB))
	l.put(100, "pve3", "scsi0: local:10000/base-10000-disk-0.qcow2/100/vm-100-disk-0.qcow2,size=2G\n")
	l.refresh()
	l.noteFailure("double", errors.New("no room"))
	const stale = "template 9000, which it is a copy of, was rebuilt or has changed; kept for the VMs that share its disks"
	for name, want := range map[string]string{
		"": `double (not recorded) wanted 3
  pve1 9200 ready 2 GiB, 0 clones
  pve1 9201 ready 2 GiB, 0 clones
shared (not recorded) wanted 1
  pve2 9100 ready 2 GiB, 0 clones, shared
ubuntu () wanted 3
  pve1 9000 ready 2 GiB, 0 clones
  pve2 10005 making 0 GiB, 0 clones, 0.5 done
  pve3 10000 stale 2 GiB, 1 clones: ` + stale,
		"shared": `shared (not recorded) wanted 1
  pve2 9100 ready 2 GiB, 0 clones, shared`,
		"nobody": "",
	} {
		if diff := cmp.Diff(want, l.overviewText(name, false)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", name, diff)
		}
	}
	if text := l.overviewText("ubuntu", true); strings.Contains(text, "making") {
		t.Errorf("its own part has what another node makes: %s", text)
	}
	l.noteFailure("ubuntu", errors.New("no room"))
	l.put(9000, "pve1", "")
	l.put(9001, "pve2", templateConf(9001, "ubuntu-tmpl", "local", uuidA))
	l.refresh()
	if text := l.overviewText("ubuntu", true); !strings.Contains(text, "pve1 0 failed 0 GiB, 0 clones: no room") {
		t.Errorf("what could not be made here is not told: %s", text)
	}
}

// What fails is left alone for longer each time, and at once tried again when it went well.
func TestResting(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *Config) { c.Every = time.Hour })
	if l.resting("x") {
		t.Error("before it was tried")
	}
	l.noteFailure("x", errors.New("no room"))
	if !l.resting("x") || l.resting("y") {
		t.Error("after a failure")
	}
	for range 100 {
		l.noteFailure("x", errors.New("no room"))
	}
	if f := l.failed["x"]; !l.resting("x") || f.times != 101 {
		t.Errorf("after many failures: %+v", f)
	}
	l.noteFailure("x", nil)
	if l.resting("x") {
		t.Error("after it went well")
	}
}

// TestWanted: of the nodes that can have a replica as many make one as are missing, and all agree which.
func TestWanted(t *testing.T) {
	t.Parallel()
	for replicas, want := range map[int]int{0: 0, 1: 0, 2: 0, 3: 1, 5: 1, EveryNode: 1} {
		makers := 0
		for _, node := range []string{"pve1", "pve2", "pve3"} {
			l := newLab(t, func(c *Config) { c.Replicas = replicas })
			l.recordUbuntu() // on pve1 and pve3
			l.cfg.Node = node
			set, err := l.Resolve(t.Context(), "ubuntu")
			l.must(err)
			if l.wanted(l.world(), set) {
				makers++
			}
		}
		if makers != want {
			t.Errorf("with %d wanted, %d nodes make one, want %d", replicas, makers, want)
		}
	}
	makers := 0
	for _, node := range []string{"pve1", "pve2", "pve3"} {
		l := newLab(t, func(c *Config) { c.Replicas = 2 })
		l.put(9000, "pve1", templateConf(9000, "ubuntu", "local", uuidA))
		l.refresh()
		l.cfg.Node = node
		set, err := l.Resolve(t.Context(), "ubuntu")
		l.must(err)
		if l.wanted(l.world(), set) {
			makers++
		}
	}
	if makers != 1 {
		t.Errorf("one of three nodes has it, two are wanted, %d make one", makers)
	}
	two := map[string]bool{}
	for _, node := range []string{"pve1", "pve2", "pve3"} {
		l := newLab(t, func(c *Config) {
			c.Replicas = 2
			c.Cordoned = func(node string) string { return map[string]string{"pve2": "cordoned"}[node] }
		})
		l.put(9000, "pve1", templateConf(9000, "ubuntu", "local", uuidA))
		l.refresh()
		l.cfg.Node = node
		set, err := l.Resolve(t.Context(), "ubuntu")
		l.must(err)
		two[node] = l.wanted(l.world(), set)
	}
	if diff := cmp.Diff(map[string]bool{"pve1": false, "pve2": false, "pve3": true}, two); diff != "" {
		t.Errorf("with a node cordoned (-want +got):\n%s", diff)
	}
}

// A node that is gone has no replica that counts; one that is being restarted does.
func TestWantedWithoutANode(t *testing.T) {
	t.Parallel()
	for after, want := range map[time.Duration]bool{time.Minute: false, 3 * time.Minute: true} {
		l := newLab(t, func(c *Config) {
			c.Replicas = 2
			c.Now = func() time.Time { return time.Now().Add(after) }
		})
		l.recordUbuntu() // on pve1 and pve3
		l.off = "pve3"
		l.refresh()
		l.cfg.Node = "pve2"
		set, err := l.Resolve(t.Context(), "ubuntu")
		l.must(err)
		if got := l.wanted(l.world(), set); got != want {
			t.Errorf("%s after pve3 went: wanted on pve2: %v", after, got)
		}
		if _, onDemand, err := l.Source(t.Context(), "ubuntu"); err != nil || onDemand != want {
			t.Errorf("%s after pve3 went: on demand: %v, %v", after, onDemand, err)
		}
	}
}
