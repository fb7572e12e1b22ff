package clustertest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

var (
	one   = netip.MustParseAddrPort("10.0.0.1:7946")
	other = netip.MustParseAddrPort("10.0.0.2:7946")
)

// arrive is how many of n packets do.
func arrive(t *testing.T, from, to *Transport, n int) (arrived int) {
	t.Helper()
	for range n {
		if _, err := from.WriteTo([]byte("x"), to.addr.String()); err != nil {
			t.Fatal(err)
		}
		select {
		case p := <-to.PacketCh():
			if string(p.Buf) != "x" || p.From.String() != from.addr.String() {
				t.Errorf("%q from %s", p.Buf, p.From)
			}
			arrived++
		default:
		}
	}
	return arrived
}

func TestPackets(t *testing.T) {
	var n Network
	a, b := n.Transport(one), n.Transport(other)
	for _, step := range []struct {
		name     string
		do       func()
		min, max int // of 1000 from a to b; all come from b to a unless both ways are cut
		back     int
	}{
		{"well", func() {}, 1000, 1000, 1000},
		{"one way", func() { n.Lose(1, one.Addr(), other.Addr()) }, 0, 0, 1000},
		{"a part", func() { n.Lose(0.3, one.Addr(), other.Addr()) }, 600, 800, 1000},
		{"cut", func() { n.Cut([]netip.Addr{one.Addr()}, []netip.Addr{other.Addr()}) }, 0, 0, 0},
		{"healed", func() { n.Heal([]netip.Addr{one.Addr()}, []netip.Addr{other.Addr()}) }, 1000, 1000, 1000},
		{"off", func() { n.Power(false, other.Addr()) }, 0, 0, 0},
		{"on", func() { n.Power(true, other.Addr()) }, 1000, 1000, 1000},
		{"stopped", func() { _ = b.Shutdown() }, 0, 0, 1000},
	} {
		step.do()
		before := n.Traffic(one)
		if got := arrive(t, a, b, 1000); got < step.min || got > step.max {
			t.Errorf("%s: %d arrive", step.name, got)
		}
		if got := arrive(t, b, a, 1000); got != step.back {
			t.Errorf("%s: %d come back", step.name, got)
		}
		if after := n.Traffic(one); after.Packets-before.Packets != 1000 || after.PacketBytes-before.PacketBytes != 29*1000 {
			t.Errorf("%s: traffic %+v, was %+v", step.name, after, before)
		}
	}
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Network
		a, b := n.Transport(one), n.Transport(other)
		conn, err := a.DialTimeout(other.String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		accepted := <-b.StreamCh()
		go func() { _, _ = conn.Write([]byte("hello")) }()
		buf := make([]byte, 5)
		if _, err := io.ReadFull(accepted, buf); err != nil || string(buf) != "hello" {
			t.Errorf("%q, %v", buf, err)
		}
		if accepted.RemoteAddr().String() != one.String() {
			t.Errorf("from %s", accepted.RemoteAddr())
		}
		n.Lose(1, other.Addr(), one.Addr())
		if _, err := conn.Write([]byte("lost")); err != nil {
			t.Error(err)
		}
		begin := time.Now()
		if err := accepted.SetReadDeadline(begin.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := accepted.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		begin = time.Now()
		if _, err := b.DialTimeout(one.String(), time.Second); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("cut, but connecting says %v after %v", err, time.Since(begin))
		}
		go func() {
			time.Sleep(time.Second)
			_ = b.Shutdown()
		}()
		if _, err := b.DialTimeout(one.String(), time.Hour); !errors.Is(err, net.ErrClosed) {
			t.Errorf("shut down, but connecting says %v", err)
		}
		n.Lose(0, other.Addr(), one.Addr())
		if _, err := a.DialTimeout(other.String(), time.Hour); err == nil {
			t.Error("connected to nobody")
		}
	})
}
