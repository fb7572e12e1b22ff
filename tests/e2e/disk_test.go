package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func (s *stage) tryDisk(id, disk, snapshot string) (*providerpb.GetDiskInfoResponse, error) {
	return s.agent.Provider.GetDiskInfo(s.ctx, &providerpb.GetDiskInfoRequest{VmId: id, DiskId: disk, SnapshotId: snapshot})
}

func (s *stage) disk(id, disk, snapshot string) *providerpb.GetDiskInfoResponse {
	s.Helper()
	d, err := s.tryDisk(id, disk, snapshot)
	if err != nil {
		s.Fatalf("disk %q of %s: %v", disk, id, err)
	}
	return d
}

// TestDisks: what there is to know of a disk, now and when a snapshot was taken.
func TestDisks(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", func(r *providerpb.CreateRequest) { r.UserData = []byte("#cloud-config\n") }))
	boot := s.disk(id, "", "")
	if boot.GetDiskId() != "scsi0" || !boot.GetIsBootable() || boot.GetFormat() != "qcow2" || len(boot.GetSnapshots()) != 0 || boot.GetBackingFile() != "" ||
		boot.GetVirtualSizeBytes() != s.sizeOf(id, "scsi0") || boot.GetActualSizeBytes() <= 0 || boot.GetActualSizeBytes() >= boot.GetVirtualSizeBytes() ||
		boot.GetPath() == "" || boot.GetMetadata()["storage_type"] != "dir" || boot.GetMetadata()["snapshot_tree"] != "" {
		t.Errorf("the boot disk: %v", boot)
	}
	if by := s.disk(id, boot.GetPath(), ""); by.GetDiskId() != "scsi0" {
		t.Errorf("by its volume: %v", by)
	}

	s.snapshot(id, "v1.0")
	s.snapshot(id, "v1.1")
	small := boot.GetVirtualSizeBytes()
	s.resize(id, "scsi0", "+1G")
	now, then := s.disk(id, "scsi0", ""), s.disk(id, "", "v1.0")
	if now.GetVirtualSizeBytes() != small+1<<30 || fmt.Sprint(now.GetSnapshots()) != "[v1_0 v1_1]" {
		t.Errorf("grown: %v", now)
	}
	if then.GetVirtualSizeBytes() != small || then.GetActualSizeBytes() != 0 || then.GetMetadata()["snapshot"] != "v1_0" {
		t.Errorf("before it was grown: %v", then)
	}
	tree := now.GetMetadata()["snapshot_tree"]
	if !strings.Contains(tree, `{"id":"v1_1","name":"v1.1","parent":"v1_0"`) || now.GetMetadata()["current_snapshot"] != "v1_1" {
		t.Errorf("the tree is %s", tree)
	}

	for _, cd := range []string{"ide2", "ide0", "sata9"} {
		_, err := s.tryDisk(id, cd, "")
		refused(t, err, codes.NotFound, cd, "scsi0")
	}
	_, err := s.tryDisk(id, "", "never-was")
	refused(t, err, codes.NotFound, "never-was")
	_, err = s.tryDisk("12345", "", "")
	refused(t, err, codes.NotFound, "12345")
	_, err = s.tryDisk("x", "", "")
	refused(t, err, codes.InvalidArgument, "vm id")

	s.sim.Fail(pvesim.Match("GET", "/nodes/*/storage/*/content"), 500, "storage is away", 1)
	if away := s.disk(id, "", ""); away.GetVirtualSizeBytes() != small+1<<30 || !strings.Contains(away.GetMetadata()["storage_error"], "storage is away") {
		t.Errorf("without its storage: %v", away)
	}
}

// resize grows a disk as an administrator does.
func (s *stage) resize(id, disk, by string) {
	s.Helper()
	rq, err := http.NewRequestWithContext(s.ctx, http.MethodPut, fmt.Sprintf("%s/api2/json/nodes/pve1/qemu/%d/resize", s.agent.Node.Daemon(), vmid(s, id)),
		strings.NewReader(url.Values{"disk": {disk}, "size": {by}}.Encode()))
	s.must(err)
	rq.Close = true
	rq.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rq.Header.Set("Authorization", "PVEAPIToken="+pvesim.TokenID+"="+pvesim.TokenSecret)
	before := s.sizeOf(id, disk)
	resp, err := http.DefaultClient.Do(rq)
	s.must(err)
	s.must(resp.Body.Close())
	s.eventually("the disk is larger", func() bool { return s.sizeOf(id, disk) > before })
}

// sizeOf is the size of a disk by its config, which the simulated PVE writes.
func (s *stage) sizeOf(id, key string) int64 {
	s.Helper()
	for _, option := range strings.Split(s.config(id)[key], ",") {
		if size, ok := strings.CutPrefix(option, "size="); ok {
			var n int64
			var unit string
			if _, err := fmt.Sscanf(size, "%d%s", &n, &unit); err != nil {
				s.Fatal(err)
			}
			return n << map[string]int{"K": 10, "M": 20, "G": 30}[unit]
		}
	}
	s.Fatalf("%s of %s has no size", key, id)
	return 0
}

// TestHardwareUpgrade raises the machine version of a VM that is off, and of no other.
func TestHardwareUpgrade(t *testing.T) {
	t.Parallel()
	for version, newest := range map[string]string{"7.4": "7.2", "8.4": "9.2+pve1", "9.1": "10.1"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := start(t, ofVersion(version))
			more := ",viommu=intel"
			if version == "7.4" {
				more = "" // not there yet
			}
			s.add(500, map[string]string{"machine": "pc-q35-4.1" + more})
			s.add(501, nil)
			upgrade := func(id string, target int32) error {
				r, err := s.agent.Provider.HardwareUpgrade(s.ctx, &providerpb.HardwareUpgradeRequest{Id: id, TargetVersion: target})
				if r.GetTask().GetId() != "" {
					t.Errorf("a task: %v", r)
				}
				return err
			}
			s.on("500")
			refused(t, upgrade("500", 0), codes.FailedPrecondition, "500", "it runs", "pc-q35-"+newest)
			s.off("500")
			for range 2 {
				s.must(upgrade("500", 0))
				if got := s.config("500")["machine"]; got != "pc-q35-"+newest+more {
					t.Errorf("the machine is %s", got)
				}
			}
			s.on("500")
			s.must(upgrade("500", 0)) // nothing is left to do
			refused(t, upgrade("500", 4), codes.FailedPrecondition, "older")
			refused(t, upgrade("500", 77), codes.FailedPrecondition, "newest is pc-q35-"+newest)
			refused(t, upgrade("500", -1), codes.InvalidArgument, "target_version")
			s.must(upgrade("501", 0))
			if got := s.config("501")["machine"]; got != "" {
				t.Errorf("a VM that has the newest at each start is now %s", got)
			}
		})
	}
}
