package provider

import (
	"fmt"
	"log/slog"
	"strconv"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// large is a VM as a large cluster has many of: long names, two disks, two NICs and a dual-stack guest.
func large(vmid int) *providerpb.VMInfo {
	id := strconv.Itoa(vmid)
	return &providerpb.VMInfo{
		Id: id + "-01234567", Name: "production-database-replica-" + id, PowerState: "On", Cpu: 8, MemoryMib: 65536,
		Ips: []string{"192.168.100.200", "2001:db8:1234:5678:9abc:def0:1234:5678"},
		Disks: []*providerpb.DiskInfo{
			{Id: "scsi0", Path: "ceph-fast:vm-" + id + "-disk-0", SizeGib: 100, Format: "raw"},
			{Id: "scsi1", Path: "ceph-slow:vm-" + id + "-disk-1", SizeGib: 2000, Format: "raw"},
		},
		Networks: []*providerpb.NetworkInfo{{Name: "net0", Mac: "BC:24:11:00:00:01", IpAddress: "192.168.100.200"}, {Name: "net1", Mac: "BC:24:11:00:00:02"}},
		ProviderRaw: map[string]string{
			"vmid": id, "node": "proxmox-rack12-07", "name": "production-database-replica-" + id, "status": "running", "cpus": "8", "cpus_max": "8",
			"memory_mib": "65536", "os": "Debian GNU/Linux 12 (bookworm)", "hostname": "production-database-replica-" + id + ".example.com",
			"tags": "production,database,team-storage,backup-daily",
		},
	}
}

// TestAListFitsIntoAnAnswer: a gRPC client takes 4 MiB, and an answer above that is no answer.
func TestAListFitsIntoAnAnswer(t *testing.T) {
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	for n, kept := range map[int]bool{5000: true, 9000: false} {
		resp := &providerpb.ListVMsResponse{}
		for i := range n {
			resp.Vms = append(resp.Vms, large(10000+i))
		}
		resp.Vms[7].ProviderRaw["stale"] = "true"
		before := proto.Size(resp)
		s.fit(t.Context(), resp)
		after := proto.Size(resp)
		t.Logf("%d VMs: %d bytes before, %d after", n, before, after)
		if after > 4<<20-4096 {
			t.Errorf("%d VMs: %d bytes", n, after)
		}
		v := resp.GetVms()[n-1]
		if want := large(10000 + n - 1); v.GetId() != want.GetId() || v.GetName() != want.GetName() || v.GetPowerState() != "On" || len(v.GetDisks()) != 2 {
			t.Errorf("%d VMs: what matters for adoption is gone: %v", n, v)
		}
		if whole := len(v.GetProviderRaw()) > 1; whole != kept {
			t.Errorf("%d VMs: the details of a VM are %v", n, v.GetProviderRaw())
		}
		if resp.GetVms()[7].GetProviderRaw()["stale"] != "true" {
			t.Errorf("%d VMs: a stale one does not say so any more", n)
		}
	}
}

func TestByID(t *testing.T) {
	vm := func(id, from string) *providerpb.VMInfo {
		return &providerpb.VMInfo{Id: id, ProviderRaw: map[string]string{"node": from}}
	}
	got := byID([]*providerpb.VMInfo{vm("10000-b", "1"), vm("999-a", "1"), vm("10000-b", "2"), vm("10000-a", "1"), vm("100-c", "3")})
	text := ""
	for _, v := range got {
		text += fmt.Sprint(v.GetId(), "@", v.GetProviderRaw()["node"], " ")
	}
	if want := "100-c@3 999-a@1 10000-a@1 10000-b@1 "; text != want {
		t.Errorf("%s, want %s", text, want)
	}
}
