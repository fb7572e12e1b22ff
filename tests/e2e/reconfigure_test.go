package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
)

// hot makes a class whose VMs are made for plugging CPUs, with room for four times as many.
func hot(cpus, mib int) string {
	return fmt.Sprintf(`{"CPU":%d,"MemoryMiB":%d,"PerformanceProfile":{"CPUHotAddEnabled":true}}`, cpus, mib)
}

// plain makes a class of nothing but vCPUs and memory.
func plain(cpus, mib int) string { return fmt.Sprintf(`{"CPU":%d,"MemoryMiB":%d}`, cpus, mib) }

// desired is what the manager sends with Reconfigure: the class, and what else the VM is to be. A VM that was cloned has no
// image.
func desired(class string, more ...string) string {
	return fmt.Sprintf(`{"Name":"web-01","Class":%s,"Image":{"TemplateName":"","Path":"","URL":"","Format":"","Checksum":"","ChecksumType":""},`+
		`"Networks":null,"UserData":null,"MetaData":null,"Placement":null,"Tags":null%s}`, class, strings.Join(more, ""))
}

// disks is the part of desired about data disks.
func disks(json string) string { return `,"Disks":` + json }

func (s *stage) reconfigure(id, desired string) error {
	s.Helper()
	r, err := s.agent.Provider.Reconfigure(s.ctx, &providerpb.ReconfigureRequest{Id: id, DesiredJson: desired})
	if err == nil && r.GetTask().GetId() != "" {
		s.Errorf("reconfigure %s: answered with a task, which the manager takes for success", id)
	}
	return err
}

// says checks config keys of a VM as they stand in its file; "" means that a key is not there.
func (s *stage) says(id string, want map[string]string) {
	s.Helper()
	conf, got := s.config(id), map[string]string{}
	for k := range want {
		got[k] = conf[k]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("the config of %s (-want +got):\n%s", id, diff)
	}
}

// runs checks what the stand-in of a VM has.
func (s *stage) runs(id string, vcpus, mib int) {
	s.Helper()
	q, ok := s.sim.QEMU(vmid(s, id))
	if !ok {
		s.Fatalf("%s does not run", id)
	}
	if got := q.VCPUs(); got != vcpus {
		s.Errorf("%s runs with %d vCPUs, want %d", id, got, vcpus)
	}
	if got := q.Balloon() >> 20; got != int64(mib) {
		s.Errorf("the guest of %s has %d MiB, want %d", id, got, mib)
	}
}

// shows checks what Describe and ListVMs say of a VM.
//
// What is written beside PVE's API is counted in the simulated /etc/pve a moment later, so that this is waited for.
func (s *stage) shows(id, cpus, mib, pending string) {
	s.Helper()
	s.eventually(fmt.Sprintf("%s is described with %s vCPUs, %s MiB, pending %q", id, cpus, mib, pending), func() bool {
		raw := s.raw(s.described(id))
		return raw["cpus"] == cpus && raw["memory_mib"] == mib && raw["pending"] == pending
	})
	s.eventually(fmt.Sprintf("%s is listed with %s vCPUs and %s MiB", id, cpus, mib), func() bool {
		list, err := s.agent.Provider.ListVMs(s.ctx, &providerpb.ListVMsRequest{})
		s.must(err)
		return slices.ContainsFunc(list.GetVms(), func(vm *providerpb.VMInfo) bool {
			return vm.GetId() == id && fmt.Sprint(vm.GetCpu()) == cpus && fmt.Sprint(vm.GetMemoryMib()) == mib
		})
	})
}

// TestReconfigureOfARunningVM: more and less of both, in one VM's life, and what each leaves in the config.
func TestReconfigureOfARunningVM(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(hot(1, 2048))))
	s.on(id)
	s.runs(id, 1, 2048)

	s.must(s.reconfigure(id, desired(hot(4, 1024))))
	s.runs(id, 4, 1024)
	s.says(id, map[string]string{"cores": "4", "vcpus": "4", "memory": "2048", "balloon": "1024", "shares": "0"})
	s.shows(id, "4", "1024", "memory")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(hot(4, 1024)))) })

	s.must(s.reconfigure(id, desired(hot(2, 2048))))
	s.runs(id, 2, 2048)
	s.says(id, map[string]string{"cores": "4", "vcpus": "2", "memory": "2048", "balloon": "", "shares": ""})
	s.shows(id, "2", "2048", "")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(hot(2, 2048)))) })

	s.must(s.reconfigure(id, desired(hot(6, 4096)))) // more than there is room for
	s.runs(id, 4, 2048)
	s.says(id, map[string]string{"cores": "4", "vcpus": "4", "memory": "2048"})
	s.shows(id, "4", "2048", "cores,memory,vcpus")
	if got := s.raw(s.described(id))["next_start"]; got != "cores becomes 16 (now 4), memory becomes 4096 (now 2048), vcpus becomes 6 (now 4)" {
		t.Errorf("in words: %s", got)
	}
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(hot(6, 4096)))) })
	s.off(id)
	s.on(id)
	s.runs(id, 6, 4096)
	s.eventually("nothing waits any more", func() bool { return s.raw(s.described(id))["pending"] == "" })
	s.shows(id, "6", "4096", "")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(hot(6, 4096)))) })
}

// TestReconfigureWaitsForTheNextStart where a VM was not made for changes while it runs.
func TestReconfigureWaitsForTheNextStart(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(plain(2, 1024))))
	s.on(id)
	s.must(s.reconfigure(id, desired(plain(4, 2048))))
	s.runs(id, 2, 1024)
	s.says(id, map[string]string{"cores": "2", "vcpus": "2", "memory": "1024"})
	s.shows(id, "2", "1024", "cores,memory,vcpus")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(plain(4, 2048)))) })
	s.must(s.reconfigure(id, desired(plain(1, 1024)))) // changed his mind
	s.shows(id, "2", "1024", "cores,vcpus")

	s.off(id)
	s.eventually("nothing waits any more", func() bool { return s.raw(s.described(id))["pending"] == "" })
	s.shows(id, "1", "1024", "")
	s.must(s.reconfigure(id, desired(plain(3, 2048)))) // stopped: at once
	s.shows(id, "3", "2048", "")
	s.silent("a repeat", func() { s.must(s.reconfigure(id, desired(plain(3, 2048)))) })
	s.on(id)
	s.runs(id, 3, 2048)
}

// TestReconfigureOfDisks: each of them is found again by its name, and one that cannot be as it is wished keeps no other
// part from being so.
func TestReconfigureOfDisks(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.create(request("web-01", class(hot(1, 1024))))
	s.on(id)
	root := `,"DiskDefaults":{"Type":"thin","SizeGiB":3}}`
	grown := strings.TrimSuffix(hot(1, 1024), "}") + root
	want := desired(grown, disks(`[{"Name":"data","SizeGiB":2,"Type":"thin"},{"Name":"logs","SizeGiB":1,"Type":""}]`))
	s.must(s.reconfigure(id, want))
	conf := s.config(id)
	for key, parts := range map[string][]string{"scsi0": {"size=3G"}, "scsi1": {"serial=data", "size=2G"}, "scsi2": {"serial=logs", "size=1G"}} {
		for _, part := range parts {
			if !strings.Contains(conf[key], part) {
				t.Errorf("%s is %q, want %s", key, conf[key], part)
			}
		}
	}
	s.silent("a repeat", func() { s.must(s.reconfigure(id, want)) })

	err := s.reconfigure(id, desired(strings.Replace(grown, `"CPU":1`, `"CPU":2`, 1), disks(`[{"Name":"data","SizeGiB":4},{"Name":"logs","SizeGiB":3},{"Name":"new","SizeGiB":1}]`)))
	s.must(err)
	conf = s.config(id)
	if !strings.Contains(conf["scsi1"], "size=4G") || !strings.Contains(conf["scsi2"], "size=3G") || !strings.Contains(conf["scsi3"], "serial=new") || conf["vcpus"] != "2" {
		t.Errorf("after growing: %v", conf)
	}

	// Smaller than it is: the disk stays, everything else is done. A class with a smaller root disk is no error.
	err = s.reconfigure(id, desired(hot(3, 1024)[:len(hot(3, 1024))-1]+`,"DiskDefaults":{"SizeGiB":1}}`, disks(`[{"Name":"data","SizeGiB":1},{"Name":"logs","SizeGiB":5}]`)))
	refused(t, err, codes.FailedPrecondition, "Disks[0].SizeGiB", "scsi1", "cannot shrink", "done:", "3 vCPUs", "scsi2 to 5 GiB")
	s.runs(id, 3, 1024)
	if conf = s.config(id); !strings.Contains(conf["scsi1"], "size=4G") || !strings.Contains(conf["scsi2"], "size=5G") {
		t.Errorf("after a disk that cannot shrink: %v", conf)
	}
	s.must(s.delete(id))
}

// TestReconfigureToWhatWasMade: what the manager repeats of a Create is no change, field by field.
func TestReconfigureToWhatWasMade(t *testing.T) {
	t.Parallel()
	s := start(t)
	var want map[string]any
	s.must(json.Unmarshal([]byte(payloads.Desired), &want))
	delete(want, "Placement") // names a node and a storage that are not here
	part := func(v any) string {
		raw, err := json.Marshal(v)
		s.must(err)
		return string(raw)
	}
	c := request("web-01", class(part(want["Class"])))
	c.ImageJson, c.NetworksJson, c.DisksJson = part(want["Image"]), part(want["Networks"]), part(want["Disks"])
	user, _ := want["UserData"].(map[string]any)
	meta, _ := want["MetaData"].(map[string]any)
	c.UserData, c.MetaData = []byte(fmt.Sprint(user["CloudInitData"])), []byte(fmt.Sprint(meta["MetaDataYAML"]))
	c.Tags = []string{"vrdrive", "env:test"}
	id := s.create(c)
	s.silent("a repeat of what was made", func() { s.must(s.reconfigure(id, part(want))) })
	s.on(id)
	s.silent("the same while it runs", func() { s.must(s.reconfigure(id, part(want))) })

	want["Tags"] = []string{"env:test", "Blue"}
	want["Networks"] = nil
	s.must(s.reconfigure(id, part(want)))
	if got := s.config(id)["tags"]; got != "blue;env-test" {
		t.Errorf("tags %q", got)
	}
	s.silent("a repeat", func() { s.must(s.reconfigure(id, part(want))) })
}
