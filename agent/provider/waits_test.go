package provider

import (
	"sync"
	"testing"
)

func TestEachClientHasItsWaits(t *testing.T) {
	w := waits{limit: 2, now: map[string]int{}}
	for _, x := range []struct {
		client string
		want   bool
	}{{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"a", false}, {"b", true}, {"b", false}} {
		if got := w.enter(x.client); got != x.want {
			t.Errorf("client %s may wait: %v, want %v (%v)", x.client, got, x.want, w.now)
		}
	}
	w.leave("a")
	if !w.enter("a") || w.enter("a") || w.enter("b") {
		t.Errorf("one place of a was free: %v", w.now)
	}
}

func TestNoWaitsAtAll(t *testing.T) {
	w := waits{now: map[string]int{}}
	if w.enter("a") {
		t.Error("sync-waits-per-client 0 lets one wait")
	}
}

// TestWaitsForgetClients: an identity is whatever a certificate says.
func TestWaitsForgetClients(t *testing.T) {
	w := waits{limit: 3, now: map[string]int{}}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if w.enter("a") {
				w.leave("a")
			}
		})
	}
	all.Wait()
	if len(w.now) != 0 {
		t.Errorf("left: %v", w.now)
	}
}
