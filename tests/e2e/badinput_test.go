package e2e

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// TestBadIDs are refused before anybody is asked, and never taken for a VM that does not exist.
func TestBadIDs(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	before := s.inventory()
	for _, id := range []string{
		"", " ", "abc", "0", "99", "-500", "+500", "0500", "500 ", " 500", "500\n", "500.0", "5e2", "0x1f4", "pve1:500", "pve1/500", "qemu/500",
		"500-", "500-0123", "500-0123abcg", "500-0123ABCD", "500-0123abcd-", "500-0123abcd0", "../500", "500/config", "٥٠٠",
		"1000000000", "99999999999999999999999999", strings.Repeat("5", 10000),
	} {
		s.silent("an id that is none", func() {
			want := []string{"vm id"}
			if len(id) < 60 && strings.TrimSpace(id) != "" {
				want = append(want, strings.Trim(strings.TrimSpace(id), "\n"))
			}
			_, err := s.describe(id)
			refused(t, err, codes.InvalidArgument, want...)
			refused(t, s.delete(id), codes.InvalidArgument, want...)
			for _, op := range []providerpb.PowerOp{powerOn, powerOff, reboot, graceful} {
				_, err := s.tryPower(id, op)
				refused(t, err, codes.InvalidArgument, want...)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
		})
	}
	s.nothingLeft(before)
}

// TestBadPayloads are refused with the name of what is wrong, and nothing is begun.
func TestBadPayloads(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	payload := map[string]func(*providerpb.CreateRequest, string){
		"class_json":     func(r *providerpb.CreateRequest, v string) { r.ClassJson = v },
		"image_json":     func(r *providerpb.CreateRequest, v string) { r.ImageJson = v },
		"networks_json":  func(r *providerpb.CreateRequest, v string) { r.NetworksJson = v },
		"disks_json":     func(r *providerpb.CreateRequest, v string) { r.DisksJson = v },
		"placement_json": func(r *providerpb.CreateRequest, v string) { r.PlacementJson = v },
	}
	refuse := func(what string, change func(*providerpb.CreateRequest), names ...string) {
		t.Helper()
		s.silent(what, func() {
			rq := request("web-01")
			change(rq)
			refused(t, s.tryCreate(rq), codes.InvalidArgument, names...)
		})
	}
	for name, set := range payload {
		for _, garbage := range []string{
			"{", "}", "nul", "garbage", `"text"`, "12", "true", `{"a":1}{"b":2}`, "\x00", "[1,2", `[[]]`, strings.Repeat("[", 100000),
		} {
			refuse("garbage in "+name, func(r *providerpb.CreateRequest) { set(r, garbage) }, name)
		}
	}
	for _, x := range []struct{ payload, value, field string }{
		{"class_json", "", "class_json"},
		{"class_json", "null", "class_json"},
		{"class_json", `{"CPU":"two","MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":0,"MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":-1,"MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":129,"MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":1.5,"MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":99999999999999999999,"MemoryMiB":512}`, "CPU"},
		{"class_json", `{"CPU":1}`, "MemoryMiB"},
		{"class_json", `{"CPU":1,"MemoryMiB":-4096}`, "MemoryMiB"},
		{"class_json", `{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":-1}}`, "SizeGiB"},
		{"class_json", `{"CPU":1,"MemoryMiB":512,"DiskDefaults":{"SizeGiB":1000000000}}`, "SizeGiB"},
		{"class_json", `{"CPU":1,"MemoryMiB":512,"DiskDefaults":[]}`, "DiskDefaults"},
		{"class_json", `{"CPU":1,"MemoryMiB":512,"Firmware":"openfirmware"}`, "Firmware"},
		{"image_json", "", "image_json"},
		{"image_json", "null", "image_json"},
		{"image_json", "{}", "image_json"},
		{"image_json", `{"TemplateName":9000}`, "TemplateName"},
		{"image_json", `{"TemplateName":""}`, "image_json"},
		{"disks_json", `[{"SizeGiB":0,"Name":"data"}]`, "SizeGiB"},
		{"disks_json", `{"SizeGiB":1}`, "disks_json"},
		{"networks_json", `[{"VLAN":"seven"}]`, "VLAN"},
	} {
		refuse(x.payload+" "+x.value, func(r *providerpb.CreateRequest) { payload[x.payload](r, x.value) }, x.payload, x.field)
	}
	for _, name := range []string{"", " ", "Web-01", "-web", "web-", "web_01", "web 01", "web/01", "../web", "web\n", "wéb", strings.Repeat("a", 254)} {
		refuse("the name "+name, func(r *providerpb.CreateRequest) { r.Name = name }, "name")
	}
	refuse("too much user-data", func(r *providerpb.CreateRequest) { r.UserData = bytes.Repeat([]byte("x"), 1<<20+1) }, "user_data")
	s.nothingLeft(before)
}

// TestUnimplemented: what a later version brings is answered so, and not with something that the manager believes.
func TestUnimplemented(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := s.agent.Provider
	for name, call := range map[string]func() error{
		"ExportDisk": func() error { _, err := p.ExportDisk(s.ctx, &providerpb.ExportDiskRequest{}); return err },
		"ImportDisk": func() error { _, err := p.ImportDisk(s.ctx, &providerpb.ImportDiskRequest{}); return err },
	} {
		refused(t, call(), codes.Unimplemented, name)
	}
	for name, call := range map[string]func() error{
		"SnapshotCreate":  func() error { _, err := p.SnapshotCreate(s.ctx, &providerpb.SnapshotCreateRequest{}); return err },
		"SnapshotDelete":  func() error { _, err := p.SnapshotDelete(s.ctx, &providerpb.SnapshotDeleteRequest{}); return err },
		"SnapshotRevert":  func() error { _, err := p.SnapshotRevert(s.ctx, &providerpb.SnapshotRevertRequest{}); return err },
		"GetDiskInfo":     func() error { _, err := p.GetDiskInfo(s.ctx, &providerpb.GetDiskInfoRequest{}); return err },
		"HardwareUpgrade": func() error { _, err := p.HardwareUpgrade(s.ctx, &providerpb.HardwareUpgradeRequest{}); return err },
	} {
		s.silent(name+" of nothing", func() { refused(t, call(), codes.InvalidArgument, "vm id") })
	}
}
