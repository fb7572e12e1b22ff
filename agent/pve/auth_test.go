package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// refuse answers as PVE does to credentials it does not accept: after three seconds, with an empty body.
func refuse(w http.ResponseWriter) {
	time.Sleep(3 * time.Second)
	writeRaw(w, http.StatusUnauthorized, "Authentication failed!", "")
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests atomic.Int32
		var good atomic.Bool
		c, stop := serveBubble(t, func(w http.ResponseWriter, _ *http.Request) {
			requests.Add(1)
			if good.Load() {
				ok(w, versionBody)
				return
			}
			refuse(w)
		})
		defer stop()
		start := time.Now()
		ask := func() error { _, err := c.Version(t.Context()); return err }

		err := ask()
		if KindOf(err) != KindAuth || time.Since(start) != 3*time.Second {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		for _, want := range []string{"401", "Authentication failed!", testToken, "pveum"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		asked := int32(1)
		for _, pause := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			pause *= time.Second
			time.Sleep(pause - time.Second)
			before := time.Now()
			err = ask()
			if KindOf(err) != KindAuth || time.Since(before) != 0 || requests.Load() != asked {
				t.Errorf("in the pause of %s: %v after %s, %d requests", pause, err, time.Since(before), requests.Load())
			}
			if !strings.Contains(err.Error(), "not asked again for 1s") || !strings.Contains(err.Error(), testToken) {
				t.Errorf("%q", err)
			}
			time.Sleep(time.Second)
			asked++
			if err := ask(); KindOf(err) != KindAuth || requests.Load() != asked {
				t.Errorf("after the pause of %s: %v, %d requests", pause, err, requests.Load())
			}
		}
		if _, err := c.Health(); KindOf(err) != KindAuth {
			t.Errorf("health %v", err)
		}
		good.Store(true)
		time.Sleep(5 * time.Minute)
		if err := ask(); err != nil {
			t.Error(err)
		}
		if _, err := c.Health(); err != nil {
			t.Errorf("health %v", err)
		}
		good.Store(false)
		_ = ask()
		time.Sleep(10*time.Second + time.Millisecond) // the pause is the short one again
		good.Store(true)
		if err := ask(); err != nil {
			t.Error(err)
		}
	})
}

// Calls that wait for a slot must not add three seconds each, and one at most tries again.
func TestBreakerWithManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests atomic.Int32
		c, stop := serveBubble(t, func(w http.ResponseWriter, _ *http.Request) { requests.Add(1); refuse(w) })
		defer stop()
		storm := func() time.Duration {
			start := time.Now()
			var callers sync.WaitGroup
			for range 50 {
				callers.Go(func() {
					if _, err := c.Version(t.Context()); KindOf(err) != KindAuth {
						t.Error(err)
					}
				})
			}
			callers.Wait()
			return time.Since(start)
		}
		if took := storm(); took != 3*time.Second || requests.Load() != 2 {
			t.Errorf("first: %s, %d requests", took, requests.Load())
		}
		time.Sleep(10 * time.Second) // two refusals at once are one
		if took := storm(); took != 3*time.Second || requests.Load() != 3 {
			t.Errorf("second: %s, %d requests", took, requests.Load())
		}
	})
}

// A call that tries again and gets no answer must not close the door for the others.
func TestBreakerWhenTheTryGetsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang atomic.Bool
		c, stop := serveBubble(t, func(w http.ResponseWriter, r *http.Request) {
			if hang.Load() {
				<-r.Context().Done()
				return
			}
			refuse(w)
		})
		defer stop()
		_, _ = c.Version(t.Context())
		time.Sleep(10 * time.Second)
		hang.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Version(ctx); KindOf(err) != KindTimeout {
			t.Error(err)
		}
		hang.Store(false)
		start := time.Now()
		if _, err := c.Version(t.Context()); KindOf(err) != KindAuth || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// An answer to a request from before the refusal says nothing about now.
func TestLateAnswerDoesNotCloseTheBreaker(t *testing.T) {
	var b breaker
	early, _, _ := b.admit()
	second, _, _ := b.admit()
	if b.refused(second, &Error{Status: 401}) != minPause {
		t.Fatal("not opened")
	}
	if b.accepted(early) {
		t.Error("closed by an old answer")
	}
	b.unanswered(early)
	if _, wait, err := b.admit(); err == nil || wait <= 0 {
		t.Error("not open")
	}
}

// tickets is the log-in of PVE.
type tickets struct {
	t        *testing.T
	password atomic.Value
	mu       sync.Mutex // guards all below
	valid    map[string]time.Time
	logIns   int
	requests int
	down     bool
}

func (s *tickets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/api2/json/access/ticket" {
		s.logIn(w, r)
		return
	}
	s.mu.Lock()
	s.requests++
	cookie, err := r.Cookie("PVEAuthCookie")
	valid := err == nil && time.Now().Before(s.valid[cookie.Value])
	s.mu.Unlock()
	if valid && r.Method != http.MethodGet && r.Header.Get("CSRFPreventionToken") != "csrf of "+cookie.Value {
		time.Sleep(3 * time.Second)
		writeRaw(w, http.StatusUnauthorized, "Permission denied - invalid csrf token", "")
		return
	}
	if r.Method == http.MethodGet && r.Header.Get("CSRFPreventionToken") != "" {
		s.t.Error("a CSRF token with a GET")
	}
	if !valid {
		refuse(w)
		return
	}
	nothing(w)
}

func (s *tickets) logIn(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logIns++
	if s.down {
		writeRaw(w, 595, "Connection refused", "")
		return
	}
	if r.Method != http.MethodPost || r.PostForm.Get("username") != "virtrigaud@pve" || r.PostForm.Get("password") != s.password.Load() {
		writeRaw(w, http.StatusUnauthorized, "authentication failure", `{"data":null,"message":"authentication failure\n"}`)
		return
	}
	id := fmt.Sprintf("PVE:virtrigaud@pve:%08X::sig+/=%d", time.Now().Unix(), s.logIns)
	s.valid[id] = time.Now().Add(2 * time.Hour)
	ok(w, fmt.Sprintf(`{"data":{"username":"virtrigaud@pve","ticket":%q,"CSRFPreventionToken":%q,"cap":{}}}`, id, "csrf of "+id))
}

func (s *tickets) counts() (logIns, requests int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logIns, s.requests
}

const testPassword = "s3cret pass+word&"

func ticketBubble(t *testing.T) (*tickets, *Client, func()) {
	s := &tickets{t: t, valid: map[string]time.Time{}}
	s.password.Store(testPassword)
	c, stop := serveBubble(t, s.ServeHTTP, func(c *Config) {
		c.TokenID, c.TokenSecret, c.Username, c.Password = "", "", "virtrigaud@pve", testPassword
	})
	return s, c, stop
}

func TestTicketIsRenewedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		for range 24 * 6 {
			start := time.Now()
			if _, err := c.Version(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.SetConfig(t.Context(), "pve1", 100, url.Values{"a": {"b"}}); err != nil {
				t.Fatal(err)
			}
			if time.Since(start) != 0 {
				t.Errorf("a 401 was met: %s", time.Since(start))
			}
			time.Sleep(10 * time.Minute)
		}
		if logIns, _ := s.counts(); logIns != 16 {
			t.Errorf("%d log-ins in a day", logIns)
		}
	})
}

func TestOldTicketServesWhileRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		ask := func() error { _, err := c.Version(t.Context()); return err }
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.down = true
		s.mu.Unlock()
		time.Sleep(100 * time.Minute)
		if err := ask(); err != nil {
			t.Errorf("the ticket was good for 20 more minutes: %v", err)
		}
		time.Sleep(25 * time.Minute)
		if err := ask(); KindOf(err) != KindUnreachable || !strings.Contains(err.Error(), "log in") {
			t.Errorf("%v", err)
		}
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		if err := ask(); err != nil {
			t.Error(err)
		}
	})
}

// After a 401 one log-in and one repetition: a refused change has not been carried out.
func TestRefusedTicketIsReplacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		clear(s.valid) // PVE's key was rotated
		s.mu.Unlock()
		if err := c.SetConfig(t.Context(), "pve1", 100, url.Values{"a": {"b"}}); err != nil {
			t.Fatal(err)
		}
		if logIns, requests := s.counts(); logIns != 2 || requests != 3 {
			t.Errorf("%d log-ins, %d requests", logIns, requests)
		}
	})
}

func TestWrongPasswordOpensTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		s.password.Store("another")
		for range 5 {
			_, err := c.Version(t.Context())
			if KindOf(err) != KindAuth || !strings.Contains(err.Error(), "virtrigaud@pve") || strings.Contains(err.Error(), testPassword) {
				t.Errorf("%v", err)
			}
		}
		if logIns, requests := s.counts(); logIns != 1 || requests != 0 {
			t.Errorf("%d log-ins, %d requests", logIns, requests)
		}
		s.password.Store(testPassword)
		time.Sleep(10 * time.Second)
		if _, err := c.Version(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A renewal that is refused opens the breaker at once: to go on with the old ticket would cost a log-in per call.
func TestPasswordChangedBeforeRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		if _, err := c.Version(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.password.Store("another")
		time.Sleep(100 * time.Minute)
		for range 3 {
			if _, err := c.Version(t.Context()); KindOf(err) != KindAuth {
				t.Error(err)
			}
		}
		if logIns, _ := s.counts(); logIns != 2 {
			t.Errorf("%d log-ins", logIns)
		}
	})
}

func TestManyCallersLogInOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := ticketBubble(t)
		defer stop()
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				if _, err := c.Version(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if logIns, requests := s.counts(); logIns != 1 || requests != 20 {
			t.Errorf("%d log-ins, %d requests", logIns, requests)
		}
	})
}

func TestSecondFactorIsExplained(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		ok(w, `{"data":{"ticket":"PVE:!tfa!...","NeedTFA":1,"username":"root@pam"}}`)
	}, func(c *Config) {
		c.TokenID, c.Username, c.Password = "", "root@pam", "x"
	})
	_, err := c.Version(t.Context())
	if KindOf(err) != KindAuth || !strings.Contains(err.Error(), "second factor") {
		t.Error(err)
	}
}

// Nothing that is printed or logged may hold a secret.
func TestSecretsStaySecret(t *testing.T) {
	var logged bytes.Buffer
	cfg := Config{
		Endpoint: "https://127.0.0.1:1", TokenID: testToken, TokenSecret: testSecret, Password: testPassword,
		InsecureSkipVerify: true, Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	cfg.Log.Info("config", "config", cfg)
	text := fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, &cfg)
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Version(t.Context())
	text += fmt.Sprintf("%v %+v", err, err)

	echo := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		writeRaw(w, http.StatusBadRequest, "bad "+r.Header.Get("Authorization"), fmt.Sprintf(`{"message":%q,"errors":{"cipassword":%q}}`,
			"bad "+r.Header.Get("Authorization"), "got '"+r.Form.Get("cipassword")+"'"))
	})
	err = echo.SetConfig(t.Context(), "pve1", 100, url.Values{"cipassword": {"guest pass"}})
	said, ok := errors.AsType[*Error](err)
	if !ok || said.Params["cipassword"] != "got '[redacted]'" {
		t.Errorf("%#v", err)
	}
	text += err.Error() + logged.String()
	for _, secret := range []string{testSecret, testPassword, "guest pass"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q stands in %s", secret, text)
		}
	}
	if !strings.Contains(logged.String(), "not verified") {
		t.Errorf("the skipped verification is not logged: %s", logged.String())
	}
}
