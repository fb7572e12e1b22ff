package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

const (
	gossip = 7946
	delay  = time.Millisecond
)

// pair is a network of two hosts with a process each.
func pair(t *testing.T) (*Network, *Process, *Process) {
	t.Helper()
	n := New(Config{Delay: delay, Planes: map[uint16]string{gossip: "gossip"}, Seed: 1})
	a := n.AddHost("a", netip.MustParseAddr("127.9.9.1")).Process("client")
	b := n.AddHost("b", netip.MustParseAddr("127.9.9.2")).Process("server")
	return n, a, b
}

func listen(t *testing.T, p *Process, addr string) net.Listener {
	t.Helper()
	l, err := p.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// connect makes a stream from a to b.
func connect(t *testing.T, a, b *Process) (near, far net.Conn) {
	t.Helper()
	l := listen(t, b, ":0")
	near, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// receive reads within d; "" and the error if there is nothing.
func receive(t *testing.T, c net.Conn, d time.Duration) (string, error) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func wantText(t *testing.T, c net.Conn, d time.Duration, want string) {
	t.Helper()
	if got, err := receive(t, c, d); got != want || err != nil {
		t.Errorf("received %q, err %v, want %q", got, err, want)
	}
}

func wantNothing(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	if got, err := receive(t, c, d); got != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("received %q, err %v, want nothing", got, err)
	}
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestConn is what the standard library asks of a net.Conn, in real time.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := New(Config{Delay: 50 * time.Microsecond})
		a := n.AddHost("a", netip.MustParseAddr("127.9.9.1")).Process("client")
		b := n.AddHost("b", netip.MustParseAddr("127.9.9.2")).Process("server")
		l, err := b.Listen(context.Background(), "tcp", ":80")
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = a.Dial(context.Background(), "tcp", l.Addr().String()); err != nil {
			return nil, nil, nil, err
		}
		c2, err = l.Accept()
		return c1, c2, func() { _, _, _ = c1.Close(), c2.Close(), l.Close() }, err
	})
}

func TestStreamTakesItsTimeAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := pair(t)
		begun := time.Now()
		near, far := connect(t, a, b)
		if took := time.Since(begun); took != 2*delay {
			t.Errorf("connected after %v, want a round trip", took)
		}
		send(t, near, "hello")
		wantNothing(t, far, delay/2)
		wantText(t, far, time.Second, "hello")
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := receive(t, far, time.Second); got != "" || !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %q, %v", got, err)
		}
		_, err := far.Write([]byte("x"))
		wantErrno(t, err, syscall.EPIPE)
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed connection: %v", err)
		}
	})
}

func TestBytesWaitWhileALinkIsCut(t *testing.T) {
	for name, c := range map[string]struct{ there, back bool }{"both": {true, true}, "there": {true, false}, "back": {false, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b := pair(t)
				near, far := connect(t, a, b)
				n.Set("a", "b", "", Link{Cut: c.there})
				n.Set("b", "a", "", Link{Cut: c.back})
				send(t, near, "ping")
				send(t, far, "pong")
				for _, end := range []struct {
					conn net.Conn
					cut  bool
					text string
				}{{far, c.there, "ping"}, {near, c.back, "pong"}} {
					if end.cut {
						wantNothing(t, end.conn, time.Minute)
					} else {
						wantText(t, end.conn, time.Minute, end.text)
					}
				}
				n.Heal()
				if c.there {
					wantText(t, far, time.Second, "ping")
				}
				if c.back {
					wantText(t, near, time.Second, "pong")
				}
				if f := n.Faults(); len(f) != 0 {
					t.Errorf("left: %v", f)
				}
			})
		})
	}
}

func TestAWriterIsHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		near, far := connect(t, a, b)
		n.Cut("a", "b", "", true)
		big := bytes.Repeat([]byte("x"), streamBuffer+100)
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		wrote, err := near.Write(big)
		if wrote != streamBuffer || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v", wrote, err)
		}
		_ = near.SetWriteDeadline(time.Time{})
		done := make(chan error)
		go func() {
			_, err := near.Write(big[wrote:])
			done <- err
		}()
		n.Cut("a", "b", "", false)
		got, err := io.ReadAll(io.LimitReader(far, int64(len(big))))
		if err := errors.Join(err, <-done); err != nil || len(got) != len(big) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
}

func TestConnecting(t *testing.T) {
	for name, c := range map[string]struct {
		before func(n *Network, server *Process)
		after  func(n *Network, server *Process) // ten seconds later
		want   syscall.Errno                     // 0: connected
		took   time.Duration
	}{
		"closed port":     {want: syscall.ECONNREFUSED, took: 2 * delay, before: func(*Network, *Process) {}},
		"cut":             {want: syscall.ETIMEDOUT, took: connectTimeout, before: func(n *Network, _ *Process) { n.Cut("a", "b", "", true) }},
		"cut one way":     {want: syscall.ETIMEDOUT, took: connectTimeout, before: func(n *Network, _ *Process) { n.Set("b", "a", "", Link{Cut: true}) }},
		"off":             {want: syscall.EHOSTUNREACH, took: noNeighbour, before: func(_ *Network, s *Process) { s.Host().PowerOff() }},
		"cut, then heals": {took: 10*time.Second + 2*delay, before: func(n *Network, s *Process) { n.Cut("a", "b", "", true); mustListen(s) }, after: func(n *Network, _ *Process) { n.Heal() }},
		"killed":          {want: syscall.ECONNREFUSED, took: 2 * delay, before: func(_ *Network, s *Process) { mustListen(s); s.Kill() }},
		"slow":            {took: 2*delay + time.Second, before: func(n *Network, s *Process) { n.Set("a", "b", "", Link{Delay: time.Second}); mustListen(s) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b := pair(t)
				c.before(n, b)
				if c.after != nil {
					time.AfterFunc(10*time.Second, func() { c.after(n, b) })
				}
				begun := time.Now()
				conn, err := a.Dial(t.Context(), "tcp", "127.9.9.2:80")
				if took := time.Since(begun); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if c.want != 0 {
					wantErrno(t, err, c.want)
				} else if err != nil {
					t.Error(err)
				} else if err := conn.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func mustListen(p *Process) {
	if _, err := p.Listen(context.Background(), "tcp", ":80"); err != nil {
		panic(err)
	}
}

func TestConnectingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair(t)
		n.Cut("a", "b", "", true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, "tcp", "127.9.9.2:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		for addr, want := range map[string]string{"127.9.9.3:80": "no route", "nobody:80": "no such host", "127.9.9.2": "missing port", "127.9.9.2:http": "unknown port"} {
			if _, err := a.Dial(t.Context(), "tcp", addr); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("dial %s: %v, want %s", addr, err, want)
			}
		}
	})
}

func TestALossOfPowerIsNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := pair(t)
		near, far := connect(t, a, b)
		b.Host().PowerOff()
		wantNothing(t, near, time.Minute)
		send(t, near, "anybody?")
		wantNothing(t, near, time.Minute)
		if _, err := far.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a dead host writes: %v", err)
		}
		if _, err := b.Listen(t.Context(), "tcp", ":80"); !errors.Is(err, net.ErrClosed) || b.Host().Up() {
			t.Errorf("a dead host listens: %v", err)
		}
		b.Host().PowerOn()
		_, err := receive(t, near, time.Second)
		wantErrno(t, err, syscall.ECONNRESET)
		listen(t, b, ":80") // the same process may be started again
	})
}

func TestAKilledProcessIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		near, _ := connect(t, a, b)
		other := b.Host().Process("other")
		stays, _ := connect(t, a, other)
		b.Kill()
		if _, err := receive(t, near, time.Second); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want the end", err)
		}
		wantNothing(t, stays, time.Second)
		if _, err := b.Dial(t.Context(), "tcp", "127.9.9.1:80"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a killed process dials: %v", err)
		}
		if _, err := b.ListenPacket(t.Context(), "udp", ":80"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a killed process listens: %v", err)
		}
		if n.Host("b") != other.Host() || n.Host("c") != nil {
			t.Error("hosts by name")
		}
	})
}

// TestAKillBehindACut is seen when the cut is over.
func TestAKillBehindACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		near, _ := connect(t, a, b)
		n.Cut("a", "b", "", true)
		b.Kill()
		wantNothing(t, near, time.Minute)
		n.Heal()
		if _, err := receive(t, near, time.Second); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want the end", err)
		}
	})
}

func TestAPlaneIsCutAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		listen(t, b, fmt.Sprintf(":%d", gossip))
		other := listen(t, b, ":80")
		n.Cut("a", "b", "gossip", true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, "tcp", fmt.Sprintf("127.9.9.2:%d", gossip)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("gossip: %v", err)
		}
		c, err := a.Dial(t.Context(), "tcp", other.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		near, err := a.ListenPacket(t.Context(), "udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		far, err := b.ListenPacket(t.Context(), "udp", fmt.Sprintf("127.9.9.2:%d", gossip))
		if err != nil {
			t.Fatal(err)
		}
		burst := func() (arrived int) {
			for range 100 {
				if _, err := near.WriteTo([]byte("hi"), far.LocalAddr()); err != nil {
					t.Fatal(err)
				}
			}
			for {
				_ = far.SetReadDeadline(time.Now().Add(time.Second))
				b := make([]byte, 10)
				k, from, err := far.ReadFrom(b)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return arrived
				}
				if err != nil || string(b[:k]) != "hi" || from.String() != near.LocalAddr().String() {
					t.Fatalf("%q from %v, %v", b[:k], from, err)
				}
				arrived++
			}
		}
		if got := burst(); got != 100 {
			t.Errorf("%d of 100 arrived over a good link", got)
		}
		n.Set("a", "b", "gossip", Link{Loss: 0.3})
		if got := burst(); got < 50 || got > 90 {
			t.Errorf("%d of 100 arrived with a loss of 30 %%", got)
		}
		n.Cut("a", "b", "gossip", true)
		if got := burst(); got != 0 {
			t.Errorf("%d arrived over a cut", got)
		}
		if _, err := near.WriteTo(make([]byte, 70000), far.LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("a packet that is too long: %v", err)
		}
		if err := errors.Join(near.Close(), far.Close()); err != nil {
			t.Error(err)
		}
		if _, _, err := far.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed socket: %v", err)
		}
	})
}

func TestPorts(t *testing.T) {
	_, a, _ := pair(t)
	listen(t, a, ":80")
	_, err := a.Listen(t.Context(), "tcp", "127.9.9.1:80")
	wantErrno(t, err, syscall.EADDRINUSE)
	_, err = a.Listen(t.Context(), "tcp", "127.9.9.2:80")
	wantErrno(t, err, syscall.EADDRNOTAVAIL)
	l := listen(t, a, "0.0.0.0:0")
	if l.Addr().String() == listen(t, a, ":0").Addr().String() {
		t.Error("a free port given out twice")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept of a closed listener: %v", err)
	}
}

// TestHTTP speaks a protocol that sets deadlines in the past to get out of a read.
func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		l := listen(t, b, ":80")
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if r.URL.Path == "/slow" {
				<-r.Context().Done() // the client has lost patience
				return
			}
			_, _ = w.Write(bytes.ToUpper(body))
		})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = server.Serve(l) })
		tr := &http.Transport{DialContext: a.Dial, IdleConnTimeout: time.Minute}
		client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
		post := func(path string) (string, error) {
			resp, err := client.Post("http://127.9.9.2"+path, "", strings.NewReader(strings.Repeat("x", 1<<20)))
			if err != nil {
				return "", err
			}
			defer func() { _ = resp.Body.Close() }()
			got, err := io.ReadAll(resp.Body)
			return string(got), err
		}
		for range 3 {
			if got, err := post("/"); err != nil || len(got) != 1<<20 || got[0] != 'X' {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		}
		if _, err := post("/slow"); err == nil {
			t.Error("a slow request has ended")
		}
		n.Cut("a", "b", "", true)
		if _, err := post("/"); err == nil {
			t.Error("a request over a cut has ended")
		}
		n.Heal()
		if _, err := post("/"); err != nil {
			t.Error(err)
		}
		tr.CloseIdleConnections()
		_ = server.Close()
		wg.Wait()
	})
}
