package cluster

import (
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// lines takes what memberlist logs: lines of text. What an operator must know of
// the nodes is logged where memberlist calls us, so nearly all of it is for
// debugging. What remains are failures that somebody has to look at, and those
// come again with every packet, so each kind of them is logged once a minute.
func (c *Cluster) lines() *log.Logger {
	return log.New(&lineWriter{log: c.cfg.Log, warned: c.warned}, "", 0)
}

type lineWriter struct {
	log    *slog.Logger
	warned *limiter
}

// usual are the beginnings of errors that only say that a node or the network
// does not answer, or that are logged elsewhere.
var usual = []string{
	"Conflicting address", "Failed to send", "Failed fallback TCP ping", "Push/Pull with", "failed to receive: EOF",
	"Failed to forward ack", "Failed to push local state", "Failed to read remote state", "Error accepting TCP", "Error reading UDP",
}

// Write takes one line: "[LEVEL] memberlist: text".
func (w *lineWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level, rest, found := strings.Cut(text, " ")
	if found {
		text = strings.TrimPrefix(rest, "memberlist: ")
	}
	if w.matters(level, text) {
		if w.warned.allows(kind(text)) {
			w.log.Warn("gossip failure", "error", text)
		}
	} else {
		w.log.Debug("gossip", "line", text)
	}
	return len(line), nil
}

func (w *lineWriter) matters(level, text string) bool {
	if level != "[ERR]" && level != "[ERROR]" {
		return false
	}
	for _, beginning := range usual {
		if strings.HasPrefix(text, beginning) {
			return false
		}
	}
	return true
}

// kind is a line without what differs from one to the next: names and addresses
// come after a colon or a quotation mark.
func kind(text string) string {
	if end := strings.IndexAny(text, `:'"0123456789`); end > 0 {
		return text[:end]
	}
	return text
}

// limiter lets the same thing through once in an interval.
type limiter struct {
	interval time.Duration

	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

func newLimiter(interval time.Duration) *limiter {
	return &limiter{interval: interval, last: map[string]time.Time{}}
}

// maxKinds are remembered by a limiter, so that nobody can fill the memory.
const maxKinds = 1000

func (l *limiter) allows(kind string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, known := l.last[kind]; known && now.Sub(last) < l.interval {
		return false
	}
	if len(l.last) >= maxKinds {
		clear(l.last)
	}
	l.last[kind] = now
	return true
}
