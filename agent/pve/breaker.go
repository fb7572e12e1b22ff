package pve

import (
	"sync"
	"time"
)

// PVE answers each request it does not accept after three seconds, on one of its few workers. So the first refusal
// opens the breaker: no request for minPause, then one that tries, and for each further refusal twice the pause.
const (
	minPause = 10 * time.Second
	maxPause = 5 * time.Minute
)

// breaker keeps refused credentials from being sent again and again.
type breaker struct {
	mu      sync.Mutex    // guards all below
	pause   time.Duration // the present back-off; 0: closed
	until   time.Time     // no request before this
	trying  bool          // one request is under way to see whether we are accepted again
	opened  int           // how often it opened: an answer to an older request says nothing about now
	refusal error         // why
}

// admit asks whether a request may be sent. It returns the pass to hand back with the outcome, or the time to wait
// and the refusal.
func (b *breaker) admit() (pass int, wait time.Duration, refusal error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pause == 0 {
		return b.opened, 0, nil
	}
	if wait = time.Until(b.until); wait > 0 || b.trying {
		return 0, max(wait, 0), b.refusal
	}
	b.trying = true
	return b.opened, 0, nil
}

// refused opens the breaker and returns the pause, or 0 when an older request had opened it already.
func (b *breaker) refused(pass int, why error) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pass != b.opened {
		return 0
	}
	b.opened++
	b.trying = false
	b.pause = min(max(2*b.pause, minPause), maxPause)
	b.until = time.Now().Add(b.pause)
	b.refusal = why
	return b.pause
}

// accepted closes the breaker and reports whether it was open.
func (b *breaker) accepted(pass int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pass != b.opened || b.pause == 0 {
		return false
	}
	b.pause, b.trying, b.refusal = 0, false, nil
	return true
}

// unanswered lets the next request try.
func (b *breaker) unanswered(pass int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pass == b.opened {
		b.trying = false
	}
}
