package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func TestListVMs(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	s.must(s.sim.AddVM(500, "pve1", map[string]string{
		"smbios1": "uuid=" + uuid, "name": "many-disks", "memory": "2048", "cores": "4", "sockets": "2", "vcpus": "3",
		"boot":   "order=scsi1;ide2",
		"scsi0":  "local:500/vm-500-disk-0.qcow2,size=8M",
		"scsi1":  "shared:500/vm-500-disk-1.raw,size=20G",
		"ide2":   "local:iso/x.iso,media=cdrom",
		"ide0":   "local:500/vm-500-cloudinit.qcow2,media=cdrom",
		"net0":   "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=7",
		"net1":   "e1000=BC:24:11:00:00:02,bridge=vmbr1",
		"tags":   "a;b",
		"serial": "",
	}))
	s.must(s.sim.AddVM(501, "pve2", map[string]string{"smbios1": "uuid=" + uuid, "net0": "virtio=BC:24:11:00:00:04,bridge=vmbr0"}))
	s.must(s.sim.AddContainer(502, "pve1"))
	s.must(s.sim.AddVM(503, "pve1", map[string]string{"smbios1": "uuid=" + uuid, "net0": "virtio=BC:24:11:00:00:03,bridge=vmbr0"}))
	s.startAgent()
	s.on("503")
	s.eventually("the guest agent has answered", func() bool { return len(s.described("503").GetIps()) > 0 })
	s.described("500")

	want := []*providerpb.VMInfo{
		{
			Id: "500-01234567", Name: "many-disks", PowerState: "Off", Cpu: 3, MemoryMib: 2048,
			Disks: []*providerpb.DiskInfo{
				{Id: "scsi1", Path: "shared:500/vm-500-disk-1.raw", SizeGib: 20, Format: "raw"},
				{Id: "scsi0", Path: "local:500/vm-500-disk-0.qcow2", SizeGib: 1, Format: "qcow2"},
			},
			Networks: []*providerpb.NetworkInfo{{Name: "net0", Mac: "BC:24:11:00:00:01"}, {Name: "net1", Mac: "BC:24:11:00:00:02"}},
			ProviderRaw: map[string]string{
				"vmid": "500", "node": "pve1", "name": "many-disks", "status": "stopped", "cpus": "3", "cpus_max": "8", "memory_mib": "2048", "tags": "a,b",
			},
		},
		{
			Id: "503-01234567", Name: "vm-503", PowerState: "On", Cpu: 1, MemoryMib: 512, Ips: []string{"10.77.1.247"},
			Disks:    []*providerpb.DiskInfo{{Id: "scsi0", Path: "local:503/vm-503-disk-0.qcow2", SizeGib: 1, Format: "qcow2"}},
			Networks: []*providerpb.NetworkInfo{{Name: "net0", Mac: "BC:24:11:00:00:03", IpAddress: "10.77.1.247"}},
			ProviderRaw: map[string]string{
				"vmid": "503", "node": "pve1", "name": "vm-503", "status": "running", "cpus": "1", "cpus_max": "1", "memory_mib": "512",
				"hostname": "vm-503", "os": "Rigaud Test Guest 1",
			},
		},
	}
	far := &providerpb.VMInfo{
		Id: "501-01234567", Name: "vm-501", PowerState: "Off", Cpu: 1, MemoryMib: 512,
		Disks:    []*providerpb.DiskInfo{{Id: "scsi0", Path: "local:501/vm-501-disk-0.qcow2", SizeGib: 1, Format: "qcow2"}},
		Networks: []*providerpb.NetworkInfo{{Name: "net0", Mac: "BC:24:11:00:00:04"}},
		ProviderRaw: map[string]string{ // its node has no agent
			"vmid": "501", "node": "pve2", "name": "vm-501", "status": "stopped", "cpus": "1", "cpus_max": "1", "memory_mib": "512", "stale": "true",
		},
	}
	want = slices.Insert(want, 1, far)
	if d := cmp.Diff(want, s.list(), protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestListedIDsAreThoseOfCreate: the manager compares them byte by byte, and adopts a VM again that differs.
func TestListedIDsAreThoseOfCreate(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(grown)))
	var all []*providerpb.VMInfo
	s.silent("ListVMs", func() { all = s.list() })
	if len(all) != 1 || all[0].GetId() != id {
		t.Fatalf("listed %v, want %s alone: templates are not listed", all, id)
	}
	if d := all[0].GetDisks(); len(d) != 1 || d[0].GetSizeGib() != 2 || d[0].GetFormat() != "qcow2" {
		t.Errorf("disks %v", d)
	}
	s.must(s.delete(id))
	if all := s.list(); len(all) != 0 {
		t.Errorf("listed %v after the delete", all)
	}
}

// TestSizesThatNoConfigTells are asked for once, not for each VM: a config written by hand may lack them.
func TestSizesThatNoConfigTells(t *testing.T) {
	t.Parallel()
	s := raise(t)
	for id := 500; id < 505; id++ {
		s.must(s.sim.AddVM(id, "pve1", map[string]string{"scsi0": fmt.Sprintf("local:%d/vm-%d-disk-0.qcow2", id, id)}))
	}
	s.startAgent()
	contents := s.watch("GET", "/nodes/*/storage/*/content")
	for range 3 {
		all := s.list()
		if len(all) != 5 {
			t.Fatalf("listed %v", all)
		}
		for _, vm := range all {
			if d := vm.GetDisks(); len(d) != 1 || d[0].GetSizeGib() != 1 {
				t.Errorf("disks of %s: %v, want the size that the storage tells", vm.GetId(), d)
			}
		}
	}
	if got := contents(); len(got) != 1 {
		t.Errorf("the storage was asked %d times: %q", len(got), got)
	}
}

// TestListWithAVMInCreation: it has no uuid yet, or another one than it will have. The manager would adopt it, and then
// again under its final id.
func TestListWithAVMInCreation(t *testing.T) {
	t.Parallel()
	s := start(t, quick)
	for _, hold := range []string{"qmclone", "resize"} {
		release := s.sim.HoldTasks(hold)
		defer release()
		c := s.began(everyStep("web-" + hold))
		s.eventually("the agent knows its config", func() bool { return s.raw(s.described(c.GetId()))["vmid"] != "" })
		before := len(s.list())
		release()
		s.outcome(c.GetTask())
		if after := len(s.list()); after != before+1 {
			t.Errorf("%s: %d VMs listed during the creation, %d afterwards", hold, before, after)
		}
	}
}

// TestListWithAVMThatSomebodyMakes in PVE.
func TestListWithAVMThatSomebodyMakes(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	for _, lock := range []string{"clone", "create"} {
		s.set(500, map[string]string{"lock": lock})
		if all := s.list(); len(all) != 0 {
			t.Errorf("lock %s: listed %v", lock, all)
		}
	}
	s.set(500, map[string]string{"lock": "backup"})
	if all := s.list(); len(all) != 1 {
		t.Errorf("a locked VM is not listed: %v", all)
	}
}
