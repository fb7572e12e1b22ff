package pve

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const versionBody = `{"data":{"version":"9.2.11","release":"9.2"}}`

func TestConnectionsAreKept(t *testing.T) {
	var conns atomic.Int32
	c := client(t, rawServer(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		conns.Add(1)
		for readRequest(r) != nil {
			writeOK(conn, versionBody)
		}
	}))
	for range 50 {
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if conns.Load() != 1 {
		t.Errorf("%d connections for 50 calls", conns.Load())
	}
}

// PVE closes after 99 requests and says so.
func TestConnectionClosedAfterNinetyNine(t *testing.T) {
	var conns, requests atomic.Int32
	c := client(t, rawServer(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		conns.Add(1)
		for n := 1; n <= 99 && readRequest(r) != nil; n++ {
			requests.Add(1)
			if n == 99 {
				writeLast(conn, "200 OK", `{"data":null}`)
				return
			}
			writeOK(conn, `{"data":null}`)
		}
	}))
	for i := range 300 {
		// A change is sent once, so it must never meet a connection that PVE has announced to close.
		if err := c.SetConfig(t.Context(), "pve1", 100, nil); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	if conns.Load() != 4 || requests.Load() != 300 {
		t.Errorf("%d requests on %d connections", requests.Load(), conns.Load())
	}
}

// closesOnSecond answers the first request of each connection. It reads the second one and closes, as a worker does
// that dies: whether the request was carried out cannot be known.
func closesOnSecond(requests *atomic.Int32) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, conn net.Conn, r *bufio.Reader) {
		if readRequest(r) == nil {
			return
		}
		requests.Add(1)
		writeOK(conn, versionBody)
		if readRequest(r) != nil {
			requests.Add(1)
		}
	}
}

func TestGetIsRepeatedOnceWhenTheConnectionBreaks(t *testing.T) {
	var requests atomic.Int32
	c := client(t, rawServer(t, closesOnSecond(&requests)))
	for range 4 {
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// 1 answered, 2 lost, 3 answered, 4 lost, 5 answered, 6 lost, 7 answered.
	if requests.Load() != 7 {
		t.Errorf("%d requests for four calls", requests.Load())
	}
}

func TestGetIsNotRepeatedForEver(t *testing.T) {
	var conns atomic.Int32
	c := client(t, rawServer(t, func(_ int, _ net.Conn, r *bufio.Reader) {
		if readRequest(r) != nil {
			conns.Add(1)
		}
	}))
	_, err := c.Version(t.Context())
	if KindOf(err) != KindUnreachable || Uncertain(err) {
		t.Errorf("%v is %q", err, KindOf(err))
	}
	if conns.Load() != 2 {
		t.Errorf("asked %d times", conns.Load())
	}
}

func TestChangesAreNeverSentTwice(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		for name, warm := range map[string]bool{"kept connection": true, "fresh connection": false} {
			t.Run(method+" on a "+name, func(t *testing.T) {
				var changes atomic.Int32
				c := client(t, rawServer(t, func(_ int, conn net.Conn, r *bufio.Reader) {
					for req := readRequest(r); req != nil; req = readRequest(r) {
						if req.Method != http.MethodGet {
							changes.Add(1)
							return
						}
						writeOK(conn, versionBody)
					}
				}))
				if warm {
					if _, err := c.Version(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				err := c.Call(t.Context(), method, "/nodes/pve1/qemu/100/status/start", url.Values{"a": {"b"}}, nil)
				lost, ok := errors.AsType[*TransportError](err)
				if !ok || !lost.Sent || !Uncertain(err) || KindOf(err) != KindUnreachable {
					t.Errorf("%#v", err)
				}
				if !strings.Contains(err.Error(), "may have been carried out") {
					t.Errorf("%v does not warn", err)
				}
				if changes.Load() != 1 {
					t.Errorf("sent %d times", changes.Load())
				}
			})
		}
	}
}

// A kept connection that the server closed while it was idle is noticed before anything is written to it.
func TestChangeAfterTheServerClosedAnIdleConnection(t *testing.T) {
	var changes atomic.Int32
	closeIt, closed := make(chan struct{}), make(chan struct{})
	c := client(t, rawServer(t, func(n int, conn net.Conn, r *bufio.Reader) {
		for req := readRequest(r); req != nil; req = readRequest(r) {
			if req.Method != http.MethodGet {
				changes.Add(1)
			}
			writeOK(conn, `{"data":null}`)
			if n == 1 {
				<-closeIt
				_ = conn.Close()
				close(closed)
				return
			}
		}
	}))
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(closeIt)
	<-closed
	// The end of the connection is on its way. Whoever is first, the change is sent at most once, and either
	// answered or known to be uncertain.
	err := c.SetConfig(t.Context(), "pve1", 100, url.Values{"a": {"b"}})
	if err != nil && !Uncertain(err) {
		t.Error(err)
	}
	if changes.Load() > 1 || err == nil && changes.Load() != 1 {
		t.Errorf("sent %d times, %v", changes.Load(), err)
	}
}

func TestIdleConnectionsAreClosedBeforePVEDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dialled := 0
		c, stop := serveBubble(t, func(w http.ResponseWriter, _ *http.Request) { ok(w, versionBody) }, func(cfg *Config) {
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				mu.Lock()
				dialled++
				mu.Unlock()
				return dial(ctx, network, addr)
			}
		})
		defer stop()
		for _, step := range []struct {
			pause time.Duration
			want  int
		}{{0, 1}, {3 * time.Second, 1}, {3900 * time.Millisecond, 1}, {4100 * time.Millisecond, 2}, {5 * time.Second, 3}} {
			time.Sleep(step.pause)
			if _, err := c.Version(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if dialled != step.want {
				t.Errorf("after %s: %d connections, want %d", step.pause, dialled, step.want)
			}
		}
	})
}

// PVE closes after each error; the next call must work.
func TestCallAfterAnError(t *testing.T) {
	var requests atomic.Int32
	c := client(t, rawServer(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		for readRequest(r) != nil {
			if requests.Add(1)%2 == 1 {
				writeLast(conn, "500 VM is locked (backup)", "")
				return
			}
			writeOK(conn, `{"data":null}`)
		}
	}))
	for range 10 {
		if err := c.SetConfig(t.Context(), "pve1", 100, nil); KindOf(err) != KindLocked {
			t.Fatal(err)
		}
		if err := c.SetConfig(t.Context(), "pve1", 100, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "http://" + l.Addr().String()
	_ = l.Close()
	c := client(t, endpoint)
	_, err = c.Start(t.Context(), "pve1", 100)
	if KindOf(err) != KindUnreachable || Uncertain(err) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v: %q, uncertain %v", err, KindOf(err), Uncertain(err))
	}
	lastOK, trouble := c.Health()
	if !lastOK.IsZero() || KindOf(trouble) != KindUnreachable {
		t.Errorf("health %v %v", lastOK, trouble)
	}
}

func TestHealthFromTraffic(t *testing.T) {
	status := http.StatusOK
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		switch status {
		case http.StatusOK:
			ok(w, versionBody)
		default:
			writeRaw(w, status, "VM is locked (backup)", "")
		}
	})
	if at, err := c.Health(); !at.IsZero() || err != nil {
		t.Errorf("before any call: %v %v", at, err)
	}
	_, _ = c.Version(t.Context())
	first, err := c.Health()
	if first.IsZero() || err != nil {
		t.Errorf("after a success: %v %v", first, err)
	}
	status = 500
	_, _ = c.Version(t.Context())
	if at, err := c.Health(); !at.After(first) || err != nil {
		t.Errorf("an error about a VM is no trouble of the endpoint: %v %v", at, err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api2/json/version" {
			t.Errorf("the token went to %s", r.URL)
		}
		http.Redirect(w, r, "https://127.0.0.1/elsewhere", http.StatusMovedPermanently)
	})
	_, err := c.Version(t.Context())
	if KindOf(err) != KindUnreachable || !strings.Contains(err.Error(), "https://127.0.0.1/elsewhere") {
		t.Error(err)
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := serveBubble(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		defer stop()
		call := func(ctx context.Context, method string) (time.Duration, error) {
			start := time.Now()
			err := c.Call(ctx, method, "/nodes/pve1/qemu/100/config", nil, nil)
			return time.Since(start), err
		}
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for _, tc := range []struct {
			ctx    context.Context
			method string
			want   time.Duration
			unsure bool
			text   string
		}{
			{t.Context(), http.MethodGet, 35 * time.Second, false, "no answer within 35s"},
			{t.Context(), http.MethodPut, 90 * time.Second, true, "no answer within 1m30s"},
			{short, http.MethodGet, 0, false, "deadline exceeded"},
		} {
			took, err := call(tc.ctx, tc.method)
			if KindOf(err) != KindTimeout || Uncertain(err) != tc.unsure || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: %v (%q, uncertain %v)", tc.method, err, KindOf(err), Uncertain(err))
			}
			if took != tc.want {
				t.Errorf("%s took %s, want %s", tc.method, took, tc.want)
			}
		}
		if _, err := c.Health(); KindOf(err) != KindTimeout {
			t.Errorf("health %v", err)
		}
	})
}

func TestNoMoreThanMaxInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most, all := 0, 0, 0
		c, stop := serveBubble(t, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			now++
			all++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			ok(w, versionBody)
		}, func(c *Config) { c.MaxInFlight = 3 })
		defer stop()
		start := time.Now()
		var callers sync.WaitGroup
		for range 30 {
			callers.Go(func() {
				if _, err := c.Version(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := c.Start(ctx, "pve1", 100)
		if KindOf(err) != KindTimeout || Uncertain(err) || time.Since(start) != 500*time.Millisecond {
			t.Errorf("waiting for a slot: %v after %s", err, time.Since(start))
		}
		callers.Wait()
		if most != 3 || all != 30 || time.Since(start) != 10*time.Second {
			t.Errorf("%d at once, %d in all, after %s", most, all, time.Since(start))
		}
	})
}

// The wait for a slot is not part of a call's own time.
func TestWaitingDoesNotUseUpTheCallsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := serveBubble(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(20 * time.Second)
			ok(w, versionBody)
		}, func(c *Config) { c.MaxInFlight = 1 })
		defer stop()
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				if _, err := c.Version(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
	})
}

func TestCancelledCallsGiveTheirSlotBack(t *testing.T) {
	started := make(chan struct{})
	var hang atomic.Bool
	hang.Store(true)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			started <- struct{}{}
			<-r.Context().Done()
			return
		}
		ok(w, versionBody)
	}, func(c *Config) { c.MaxInFlight = 1 })
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Call(ctx, http.MethodPost, "/x", nil, nil) }()
		<-started
		cancel()
		if err := <-done; KindOf(err) != KindCanceled || !Uncertain(err) {
			t.Errorf("%v is %q", err, KindOf(err))
		}
	}
	if _, err := c.Health(); err != nil {
		t.Errorf("callers who gave up are no trouble of the endpoint: %v", err)
	}
	hang.Store(false)
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClosedClient(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { ok(w, versionBody) })
	c.Close()
	if _, err := c.Version(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
