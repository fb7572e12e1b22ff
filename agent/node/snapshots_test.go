package node

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

func TestVMsWithSnapshots(t *testing.T) {
	l := newLab(t)
	section := func(name, parent string, ago int64, more string) string {
		return fmt.Sprintf("\n[%s]\nparent: %s\nsnaptime: %d\n%s", name, parent, now.Unix()-ago, more)
	}
	l.guests([]guest{
		{100, "pve1", "qemu", conf("web", uuidA, "parent: v1_2") + section("v1_2", "base", 60, "vmstate: local:100/vm-100-state-v1_2.raw\n") +
			"\n[base]\n#by hand\nsnaptime: " + fmt.Sprint(now.Unix()-3600) + "\n" + "\n[odd]\nsnapstate: prepare\n"},
		{101, "pve2", "lxc", ""},
		{102, "pve1", "qemu", conf("none", uuidB)},
	})
	l.look()
	resp, err := l.service().VMs(t.Context(), &nodepb.VMsRequest{Snapshots: true})
	if err != nil || len(resp.GetVms()) != 3 {
		t.Fatal(resp, err)
	}
	want := []*nodepb.Snapshot{
		{Id: "odd", Name: "odd", State: "prepare"},
		{Id: "base", Name: "base", AgeMs: 3600_000, Description: "by hand"},
		{Id: "v1_2", Name: "v1.2", Parent: "base", AgeMs: 60_000, Memory: true},
	}
	if diff := cmp.Diff(want, resp.GetVms()[0].GetSnapshots(), protocmp.Transform()); diff != "" || resp.GetVms()[0].GetCurrentSnapshot() != "v1_2" {
		t.Errorf("comes from %s, snapshots (-want +got):\n%s", resp.GetVms()[0].GetCurrentSnapshot(), diff)
	}
	for _, vm := range resp.GetVms()[1:] {
		if len(vm.GetSnapshots()) != 0 || vm.GetCurrentSnapshot() != "" {
			t.Errorf("%v", vm)
		}
	}
	if vm := l.vms("").GetVms()[0]; len(vm.GetSnapshots()) != 0 || vm.GetCurrentSnapshot() != "" {
		t.Errorf("not asked for: %v", vm)
	}
}
