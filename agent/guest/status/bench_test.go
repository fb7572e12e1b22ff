package status_test

import (
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// BenchmarkState is the way of nearly all states: nothing is due to be read.
func BenchmarkState(b *testing.B) {
	dir := shortDir(b)
	startProcess(b, dir, vmid)
	startQEMU(b, qmptest.Config{Dir: dir, VMID: vmid, Guest: guest("web-1", "10.0.0.5")})
	tracker := run(b, status.Config{RunDir: dir})
	until(b, tracker, user, "the guest's word", func(st status.State) bool { return st.HostName != "" })
	for _, bench := range []struct {
		name string
		vmid int
	}{{"running", vmid}, {"stopped", 101}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tracker.State(b.Context(), bench.vmid, user); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("50 callers", func(b *testing.B) {
		b.SetParallelism(25)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := tracker.State(b.Context(), vmid, user); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
