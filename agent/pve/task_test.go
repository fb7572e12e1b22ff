package pve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testUPID UPID = "UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:virtrigaud@pve!agent:"

// oneTask is a task that ends after some time.
type oneTask struct {
	start time.Time
	takes time.Duration
	exit  string
	log   []string
	mu    sync.Mutex // guards all below
	looks []time.Duration
	fail  func(look int, w http.ResponseWriter) bool // answers instead when it returns true
}

func (o *oneTask) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/log") {
		o.serveLog(w, r)
		return
	}
	o.mu.Lock()
	o.looks = append(o.looks, time.Since(o.start))
	look, fail := len(o.looks), o.fail
	o.mu.Unlock() // before a handler that takes its time: a bubble's clock stands while someone waits for a mutex
	if fail != nil && fail(look, w) {
		return
	}
	if time.Since(o.start) < o.takes {
		ok(w, `{"data":{"status":"running","type":"qmstart","id":"100","pid":"12410"}}`)
		return
	}
	ok(w, fmt.Sprintf(`{"data":{"status":"stopped","exitstatus":%q,"pid":12410}}`, o.exit))
}

func (o *oneTask) serveLog(w http.ResponseWriter, r *http.Request) {
	var start, limit int
	_, _ = fmt.Sscan(r.URL.Query().Get("start"), &start)
	_, _ = fmt.Sscan(r.URL.Query().Get("limit"), &limit)
	var rows []string
	for i := start; i < len(o.log) && i < start+limit; i++ {
		rows = append(rows, fmt.Sprintf(`{"n":%d,"t":%q}`, i+1, o.log[i]))
	}
	ok(w, fmt.Sprintf(`{"data":[%s],"total":%d}`, strings.Join(rows, ","), len(o.log)))
}

func bubble(t *testing.T, o *oneTask) (*Client, func()) {
	o.start = time.Now()
	return serveBubble(t, o.ServeHTTP)
}

func TestWaitLooksAtOnceAndThenLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &oneTask{takes: 3 * time.Second, exit: "OK"}
		c, stop := bubble(t, o)
		defer stop()
		if err := c.Wait(t.Context(), testUPID); err != nil {
			t.Fatal(err)
		}
		if o.looks[0] != 0 || o.looks[1] != 20*time.Millisecond || o.looks[2] != 50*time.Millisecond {
			t.Errorf("looked at %v", o.looks)
		}
		for i := 2; i < len(o.looks); i++ {
			before, pause := o.looks[i-1]-o.looks[i-2], o.looks[i]-o.looks[i-1]
			if pause > 500*time.Millisecond || pause < before {
				t.Errorf("pause %s after %s", pause, before)
			}
		}
		if late := o.looks[len(o.looks)-1] - o.takes; late > 500*time.Millisecond {
			t.Errorf("noticed %s late", late)
		}
	})
}

func TestWaitKnowsHowTasksEnd(t *testing.T) {
	for exit, want := range map[string]Kind{
		"OK":                     KindNone,
		"WARNINGS: 3":            KindNone,
		"WARNINGS: 3 and more":   KindOther,
		"OK then":                KindOther,
		"unexpected status":      KindOther,
		"VM 100 already running": KindAlreadyRunning,
		"can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout": KindLockTimeout,
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &oneTask{exit: exit}
			for i := range 25 {
				o.log = append(o.log, fmt.Sprint("line ", i+1))
			}
			c, stop := bubble(t, o)
			defer stop()
			err := c.Wait(t.Context(), testUPID)
			if KindOf(err) != want {
				t.Errorf("%q: %v is %q", exit, err, KindOf(err))
			}
			if err == nil {
				return
			}
			failed, ok := errors.AsType[*TaskError](err)
			if !ok || failed.ExitStatus != exit || failed.UPID != testUPID {
				t.Fatalf("%#v", err)
			}
			if diff := cmp.Diff(o.log[15:], failed.Log); diff != "" {
				t.Errorf("tail of the log: %s", diff)
			}
			if text := err.Error(); !strings.Contains(text, "qmstart of 100 on pve1") || !strings.Contains(text, exit) {
				t.Errorf("text %q", text)
			}
		})
	}
}

func TestWaitOutlastsTrouble(t *testing.T) {
	for name, fail := range map[string]func(http.ResponseWriter){
		"595":            func(w http.ResponseWriter) { writeRaw(w, 595, "Connection refused", "") },
		"596":            func(w http.ResponseWriter) { writeRaw(w, 596, "Connection timed out", "") },
		"broken":         func(w http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"no answer":      func(w http.ResponseWriter) { time.Sleep(40 * time.Second) },
		"not asked":      refuse,
		"half an answer": func(w http.ResponseWriter) { ok(w, `{"data":{"stat`) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &oneTask{takes: 10 * time.Minute, exit: "OK", fail: func(look int, w http.ResponseWriter) bool {
					if look%7 == 3 {
						fail(w)
						return true
					}
					return false
				}}
				c, stop := bubble(t, o)
				defer stop()
				if err := c.Wait(t.Context(), testUPID); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestWaitDoesNotOutlastDefiniteErrors(t *testing.T) {
	for want, answer := range map[Kind]func(http.ResponseWriter){
		KindNoTask: func(w http.ResponseWriter) {
			writeRaw(w, 400, "Parameter verification failed.", `{"message":"Parameter verification failed.\n","data":null,"errors":{"upid":"no such task"}}`)
		},
		KindPermission: func(w http.ResponseWriter) {
			writeRaw(w, 403, "Permission check failed (/nodes/pve1, Sys.Audit)", "")
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := &oneTask{takes: time.Hour, fail: func(look int, w http.ResponseWriter) bool {
				if look == 3 {
					answer(w)
				}
				return look == 3
			}}
			c, stop := bubble(t, o)
			defer stop()
			err := c.Wait(t.Context(), testUPID)
			if KindOf(err) != want || len(o.looks) != 3 || !strings.Contains(err.Error(), string(testUPID)) {
				t.Errorf("%v after %d looks", err, len(o.looks))
			}
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &oneTask{takes: time.Hour}
		c, stop := bubble(t, o)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := c.Wait(ctx, testUPID)
		ended, ok := errors.AsType[*WaitError](err)
		if !ok || ended.UPID != testUPID || ended.Last != nil || KindOf(err) != KindTimeout || !Uncertain(err) {
			t.Errorf("%#v", err)
		}
		if time.Since(o.start) != time.Minute {
			t.Errorf("after %s", time.Since(o.start))
		}

		o.mu.Lock()
		o.fail = func(_ int, w http.ResponseWriter) bool { writeRaw(w, 595, "No route to host", ""); return true }
		o.mu.Unlock()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		err = c.Wait(ctx, testUPID)
		if ended, ok = errors.AsType[*WaitError](err); !ok || KindOf(ended.Last) != KindUnreachable || !errors.Is(err, context.Canceled) {
			t.Errorf("%#v", err)
		}
		if !strings.Contains(err.Error(), "No route to host") {
			t.Errorf("%v does not tell the trouble", err)
		}
	})
}

func TestTaskErrorSurvivesAnUnreadableLog(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/log") {
			writeRaw(w, 595, "Connection refused", "")
			return
		}
		ok(w, `{"data":{"status":"stopped","exitstatus":"VM is locked (backup)"}}`)
	})
	err := c.Wait(t.Context(), testUPID)
	if failed, ok := errors.AsType[*TaskError](err); !ok || failed.Log != nil || KindOf(err) != KindLocked {
		t.Errorf("%#v", err)
	}
}

func TestTaskLogInPages(t *testing.T) {
	o := &oneTask{}
	for i := range 2500 {
		o.log = append(o.log, fmt.Sprint("line ", i+1))
	}
	c := serve(t, o.ServeHTTP)
	log, err := c.TaskLog(t.Context(), testUPID)
	if diff := cmp.Diff(o.log, log); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestTaskListKnowsHowTasksEnded(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		ok(w, `{"data":[{"upid":"u1","endtime":1,"status":"OK"},{"upid":"u2","endtime":"2","status":"WARNINGS: 1"},
			{"upid":"u3","endtime":3,"status":"VM is locked (backup)"},{"upid":"u4","status":"RUNNING"},{"upid":"u5"}]}`)
	})
	list, err := c.Tasks(t.Context(), "pve1", TaskQuery{})
	if err != nil || len(list) != 5 {
		t.Fatal(list, err)
	}
	for i, want := range []Kind{KindNone, KindNone, KindLocked, KindNone, KindNone} {
		if KindOf(list[i].Err()) != want || list[i].Running() != (i > 2) {
			t.Errorf("%+v", list[i])
		}
	}
	for status, want := range map[TaskStatus]Kind{
		{Status: "running"}:                                 KindNone,
		{Status: "stopped", ExitStatus: "OK"}:               KindNone,
		{Status: "stopped", ExitStatus: "VM is locked (x)"}: KindLocked,
		{Status: "stopped"}:                                 KindOther,
	} {
		if KindOf(status.Err()) != want {
			t.Errorf("%+v: %v", status, status.Err())
		}
	}
}

var (
	errLockHTTP = &Error{Method: "PUT", Status: 500, Message: "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"}
	errLockTask = fmt.Errorf("power: %w", &TaskError{UPID: testUPID, ExitStatus: "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"})
)

func TestRetryLocked(t *testing.T) {
	other := &Error{Status: 500, Message: "VM is locked (backup)"}
	for _, tc := range []struct {
		name    string
		results []error
		want    error
		took    time.Duration
	}{
		{"success", []error{nil}, nil, 0},
		{"another error", []error{other}, other, 0},
		{"once", []error{errLockHTTP, nil}, nil, 200 * time.Millisecond},
		{"task, then another", []error{errLockTask, errLockHTTP, other}, other, 600 * time.Millisecond},
		{"long", []error{errLockTask, errLockTask, errLockTask, errLockTask, errLockTask, errLockTask, nil}, nil, 7 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, n := time.Now(), 0
				err := RetryLocked(t.Context(), func(context.Context) error { n++; return tc.results[n-1] })
				if !errors.Is(err, tc.want) || n != len(tc.results) || time.Since(start) != tc.took {
					t.Errorf("%v after %d tries and %s", err, n, time.Since(start))
				}
			})
		})
	}
}

func TestRetryLockedEnds(t *testing.T) {
	always := func(context.Context) error { time.Sleep(10 * time.Second); return errLockTask }
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := RetryLocked(t.Context(), always); KindOf(err) != KindLockTimeout || time.Since(start) > 70*time.Second || time.Since(start) < 50*time.Second {
			t.Errorf("without a deadline: %v after %s", err, time.Since(start))
		}
		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		defer cancel()
		if err := RetryLocked(ctx, always); KindOf(err) != KindLockTimeout || time.Since(start) > 35*time.Second {
			t.Errorf("within a deadline: %v after %s", err, time.Since(start))
		}
		start = time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := RetryLocked(ctx, func(context.Context) error { return errLockHTTP })
		if KindOf(err) != KindLockTimeout || time.Since(start) != 600*time.Millisecond {
			t.Errorf("waited without hope: %v after %s", err, time.Since(start))
		}
		start = time.Now()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		err = RetryLocked(ctx, func(context.Context) error { return errLockHTTP })
		if KindOf(err) != KindLockTimeout || time.Since(start) != 300*time.Millisecond {
			t.Errorf("cancelled: %v after %s", err, time.Since(start))
		}
	})
}
