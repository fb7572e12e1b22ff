package forward

import (
	"testing"

	"google.golang.org/grpc"
)

// What a small request costs that is handled here, and one that goes on to
// another node, over TLS.
func BenchmarkCall(b *testing.B) {
	for _, vm := range []string{"here", "there"} {
		b.Run(vm, func(b *testing.B) {
			w := newWorld(b, newLoopback(b), "pve1", "pve2")
			w.owns("pve1", "here")
			w.owns("pve2", "there")
			manager := w.client("manager", "pve1")
			warm(b, manager, vm)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := call(b.Context(), manager, vm); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// warm connects everything that vm's calls need.
func warm(b *testing.B, manager *grpc.ClientConn, vm string) {
	b.Helper()
	if _, err := call(b.Context(), manager, vm); err != nil {
		b.Fatal(err)
	}
}
