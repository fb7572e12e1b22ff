package forward

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// A new address is used at once; calls on the old connection may end.
func TestAddressChanges(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		w.owns("pve2", "slow")
		w.owns("pve2", "slower")
		pve1, pve2 := w.agents["pve1"], w.agents["pve2"]
		pve2.on(func(_ context.Context, vm string) error {
			switch vm {
			case "slow":
				time.Sleep(time.Minute)
			case "slower":
				time.Sleep(2 * time.Minute)
			}
			return nil
		})
		slow := make(chan error)
		for _, vm := range []string{"slow", "slower"} {
			go func() {
				slow <- pve1.forward.Call(t.Context(), "pve2", unaryCall, about(vm), &testpb.SimpleResponse{})
			}()
		}
		synctest.Wait()
		m.mu.Lock()
		m.listeners["new:9443"] = m.listeners["pve2:9443"]
		m.mu.Unlock()
		m.fail("pve2:9443", refused)
		pve1.moveAddress("pve2", "new:9443")
		for range 3 {
			if err := pve1.ask(t, "pve2"); err != nil {
				t.Error(err)
			}
		}
		if l := pve1.forward.Links()[0]; l.Addr != "new:9443" || pve1.dials.Load() != 2 {
			t.Errorf("got %+v, %d dials", l, pve1.dials.Load())
		}
		for range 2 {
			if err := <-slow; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if open := m.open("pve2:9443"); open != 0 {
			t.Errorf("%d connections to the old address", open)
		}

		// Back-off is an address's, not a node's, and so is an attempt under way.
		pve1.moveAddress("pve2", "nobody:9443")
		_ = peerError(t, pve1.ask(t, "pve2"))
		pve1.moveAddress("pve2", "new:9443")
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		m.fail("dark:9443", blackout)
		pve1.moveAddress("pve2", "dark:9443")
		go func() { slow <- pve1.ask(t, "pve2") }()
		synctest.Wait()
		pve1.moveAddress("pve2", "new:9443")
		start := time.Now()
		if err := pve1.ask(t, "pve2"); err != nil || time.Since(start) != 0 {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		_ = peerError(t, <-slow)
		if l := pve1.forward.Links()[0]; !l.Since.IsZero() {
			t.Errorf("an old address makes the node fail: %+v", l)
		}
		// What an old attempt comes to in the end is not used.
		pve2.slowChecks(connectTimeout / 2)
		m.mu.Lock()
		m.listeners["newer:9443"] = m.listeners["pve2:9443"]
		m.mu.Unlock()
		pve1.moveAddress("pve2", "newer:9443")
		go func() { slow <- pve1.ask(t, "pve2") }()
		synctest.Wait()
		pve1.moveAddress("pve2", "new:9443")
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		if err := <-slow; err != nil { // it has taken the address that counts now
			t.Error(err)
		}
		synctest.Wait()
		if open := m.open("newer:9443"); open != 0 {
			t.Errorf("%d connections to an address that was given up", open)
		}
	}, "pve1", "pve2")
}

// That an old connection ends is no news of a node that has a new one.
func TestOldConnectionEnds(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve1, pve2 := w.agents["pve1"], w.agents["pve2"]
		pve2.on(hang)
		slow := make(chan error)
		go func() { slow <- pve1.ask(t, "pve2") }()
		synctest.Wait()
		pve2.on(nil)
		m.mu.Lock()
		m.listeners["new:9443"] = m.listeners["pve2:9443"]
		m.mu.Unlock()
		pve1.moveAddress("pve2", "new:9443")
		if err := pve1.ask(t, "pve2"); err != nil {
			t.Error(err)
		}
		m.cut("pve2:9443")
		if down := peerError(t, <-slow); !down.Sent || !down.Since.IsZero() {
			t.Errorf("got %+v", down)
		}
		if l := pve1.forward.Links()[0]; !l.Since.IsZero() {
			t.Errorf("got %+v", l)
		}
		if err := pve1.ask(t, "pve2"); err != nil || pve1.dials.Load() != 2 {
			t.Errorf("got %v, %d dials", err, pve1.dials.Load())
		}
	}, "pve1", "pve2")
}

// open is how many connections to an address are.
func (m *memory) open(addr string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, c := range m.conns[addr] {
		select {
		case <-c.closed:
		default:
			n++
		}
	}
	return n
}

// A connection that nobody needs is closed, one that is needed is not.
func TestIdleConnection(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve1 := w.agents["pve1"]
		for range 5 {
			if err := pve1.ask(t, "pve2"); err != nil {
				t.Error(err)
			}
			time.Sleep(idleTime - time.Second)
		}
		if n := pve1.dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
		w.agents["pve2"].on(func(context.Context, string) error {
			time.Sleep(3 * idleTime)
			return nil
		})
		if err := pve1.ask(t, "pve2"); err != nil || pve1.dials.Load() != 1 {
			t.Errorf("got %v, %d dials", err, pve1.dials.Load())
		}
		w.agents["pve2"].on(nil)
		if err := pve1.ask(t, "pve2"); err != nil || pve1.dials.Load() != 1 {
			t.Errorf("got %v, %d dials", err, pve1.dials.Load())
		}
		time.Sleep(2 * idleTime)
		if open := m.open("pve2:9443"); open != 0 {
			t.Errorf("%d connections", open)
		}
		w.agents["pve2"].on(nil)
		if err := pve1.ask(t, "pve2"); err != nil || pve1.dials.Load() != 2 {
			t.Errorf("got %v, %d dials", err, pve1.dials.Load())
		}
	}, "pve1", "pve2")
}

// At its end Run fails what is under way and leaves nothing behind.
func TestRunEnds(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		pve1 := w.agents["pve1"]
		w.agents["pve2"].on(hang)
		m.fail("pve3:9443", blackout)
		waiting, connecting := make(chan error), make(chan error)
		go func() { waiting <- pve1.ask(t, "pve2") }()
		go func() { connecting <- pve1.ask(t, "pve3") }()
		synctest.Wait()
		start := time.Now()
		pve1.stop()
		if open := m.open("pve2:9443") + m.open("pve3:9443"); open != 0 {
			t.Errorf("%d connections", open)
		}
		if down := peerError(t, <-waiting); !down.Sent || !errors.Is(down, errStopped) {
			t.Errorf("got %+v", down)
		}
		_ = peerError(t, <-connecting)
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
		if down := peerError(t, pve1.ask(t, "pve2")); down.Sent || !errors.Is(down, errStopped) {
			t.Errorf("got %+v", down)
		}
		// That is not the nodes' fault.
		for _, l := range pve1.forward.Links() {
			if !l.Since.IsZero() {
				t.Errorf("got %+v", l)
			}
		}
	}, "pve1", "pve2", "pve3")
}

func TestBeforeRun(t *testing.T) {
	f := New(Config{
		Node: "pve1", Address: func(string) (string, bool) { return "192.0.2.1:1", true },
		Client: func(context.Context) string { return "" },
	})
	err := f.Call(t.Context(), "pve2", unaryCall, about("vm"), &testpb.SimpleResponse{})
	if down := peerError(t, err); !errors.Is(down, errStopped) || down.Sent {
		t.Errorf("got %v", err)
	}
	select {
	case <-f.Ready():
		t.Error("ready before Run")
	default:
	}
	if f.String() != "forwarding" {
		t.Errorf("it is called %s", f)
	}
}

// A dialler that does not listen to its context delays nobody, and what it comes
// with in the end is closed.
func TestDialIsTooLate(t *testing.T) {
	inMemory(t, func(t *testing.T, w *world, m *memory) {
		w.owns("pve2", "vm")
		m.fail("pve2:9443", deaf)
		start := time.Now()
		if down := peerError(t, w.agents["pve1"].ask(t, "pve2")); down.Sent || time.Since(start) >= soon {
			t.Errorf("got %+v after %v", down, time.Since(start))
		}
		time.Sleep(time.Minute)
		m.mu.Lock()
		made := len(m.conns["pve2:9443"])
		m.mu.Unlock()
		if open := m.open("pve2:9443"); made != 1 || open != 0 {
			t.Errorf("%d connections, %d open", made, open)
		}
	}, "pve1", "pve2")
}
