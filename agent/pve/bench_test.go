package pve

import (
	"net/http"
	"testing"
)

// BenchmarkGet is one warm call: its allocations are ours, net/http's and those of the server beside it.
func BenchmarkGet(b *testing.B) {
	var body string
	for _, e := range recorded(b, "reads.txt") {
		if e.title == "status stopped" {
			body = e.body
		}
	}
	c := serve(b, func(w http.ResponseWriter, _ *http.Request) { ok(w, body) })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Status(b.Context(), "pve1", 100); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKindOf(b *testing.B) {
	err := &Error{Status: 500, Message: "NUMA needs to be enabled for memory hotplug"}
	b.ReportAllocs()
	for b.Loop() {
		if KindOf(err) != KindOther {
			b.Fatal(err)
		}
	}
}
