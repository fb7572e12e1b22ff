package forward

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstRetry is how long nobody tries to connect after it failed once; it
	// doubles with each failure, up to lastRetry.
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Second
	// idleTime is how long a connection is kept that nobody uses.
	idleTime = 5 * time.Minute
)

var (
	errNoAddress = errors.New("the address of its agent is not known")
	errIdle      = errors.New("nobody used the connection")
	errReplaced  = errors.New("the agent has another address now")
	errUnstable  = errors.New("the connection ends as soon as it is made")
)

// A link is what we have with one node: at most one connection for new calls,
// and a memory of how it went.
type link struct {
	forwarder *Forwarder
	node      string

	inFlight          atomic.Int64
	forwarded, failed atomic.Uint64

	// mu guards the fields below.
	mu       sync.Mutex
	addr     string
	conn     *conn    // nil: none for new calls
	dialing  *attempt // nil: nobody connects
	since    time.Time
	err      error     // the last failure; nil if it answers
	failures int       // to connect, in a row
	retry    time.Time // nobody connects before
}

// An attempt to connect is shared by all calls that need it.
type attempt struct {
	done chan struct{} // closed when the rest is set
	conn *conn
	err  error
}

// acquire gives a connection on which a call has been begun.
func (l *link) acquire(ctx context.Context) (*conn, error) {
	for range 3 { // the address may change meanwhile, and a new connection end before its first call
		addr, known := l.forwarder.cfg.Address(l.node)
		if !known {
			return nil, l.noAddress(ctx)
		}
		a, c, err := l.begin(addr) //nolint:contextcheck // a connection outlives the call that it is made for
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if a.err != nil {
			return nil, a.err
		}
	}
	return nil, errUnstable
}

func (l *link) noAddress(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lockedFail(ctx, errNoAddress)
	return errNoAddress
}

// begin begins a call on the connection there is, or gives the attempt to make
// one.
func (l *link) begin(addr string) (*attempt, *conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addr != addr {
		l.lockedDrop(errReplaced)
		l.addr, l.dialing, l.failures, l.retry = addr, nil, 0, time.Time{}
	}
	if l.conn != nil {
		if l.conn.begin() {
			return nil, l.conn, nil
		}
		l.lockedDrop(errReplaced)
	}
	if l.dialing != nil {
		return l.dialing, nil, nil
	}
	if time.Now().Before(l.retry) {
		return nil, nil, l.err
	}
	a := &attempt{done: make(chan struct{})}
	if !l.forwarder.start(func(ctx context.Context) { l.connect(ctx, a, addr) }) {
		return nil, nil, errStopped
	}
	l.dialing = a
	return a, nil, nil
}

// lockedDrop lets no new call use the connection. Those it carries may end.
func (l *link) lockedDrop(why error) {
	if l.conn != nil {
		l.conn.retire(why)
		l.conn = nil
	}
}

// connect makes a connection and stays with it until its end.
func (l *link) connect(ctx context.Context, a *attempt, addr string) {
	c, err := dial(ctx, &l.forwarder.cfg, l.node, addr)
	a.conn, a.err = c, err
	l.settle(ctx, a)
	close(a.done)
	if c != nil {
		c.watch(ctx)
	}
}

// settle takes over what an attempt came to, unless it was for an old address.
func (l *link) settle(ctx context.Context, a *attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.dialing != a:
		if a.conn != nil {
			a.conn.retire(errReplaced)
		}
		return
	case a.err == nil:
		l.conn = a.conn
		l.lockedSucceed(ctx)
	default:
		l.retry = time.Now().Add(min(firstRetry<<min(l.failures, 8), lastRetry))
		l.failures++
		l.lockedFail(ctx, a.err)
	}
	l.dialing = nil
}

// answered notes that the node answers.
func (l *link) answered(ctx context.Context) {
	l.forwarded.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lockedSucceed(ctx)
}

// lost notes that c is of no use any more, and says since when the node does
// not answer. If there is a newer connection, that is no news of the node.
func (l *link) lost(ctx context.Context, c *conn, err error) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == c {
		l.lockedDrop(err)
	}
	if l.conn == nil {
		l.lockedFail(ctx, err)
	}
	return l.since
}

// lockedSucceed notes an answer. It may come over an old connection after an attempt to make a new one has failed: then
// that is tried again at once.
func (l *link) lockedSucceed(ctx context.Context) {
	l.failures, l.retry = 0, time.Time{}
	if l.since.IsZero() {
		return
	}
	l.forwarder.cfg.Log.InfoContext(ctx, "node answers again", "peer", l.node, "address", l.addr, "after", time.Since(l.since))
	l.since, l.err = time.Time{}, nil
}

func (l *link) lockedFail(ctx context.Context, err error) {
	l.err = err
	if !l.since.IsZero() || errors.Is(err, errStopped) {
		return
	}
	l.since = time.Now()
	l.forwarder.cfg.Log.WarnContext(ctx, "node does not answer", "peer", l.node, "address", l.addr, "error", err)
}

// failingSince is when the node first failed to answer, zero if it answers.
func (l *link) failingSince() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since
}

// closeIdle closes the connection if nobody has used it for long.
func (l *link) closeIdle(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.conn.idle(now) {
		l.lockedDrop(errIdle)
	}
}

func (l *link) state() Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Link{
		Node: l.node, Addr: l.addr, Since: l.since, InFlight: int(l.inFlight.Load()),
		Forwarded: l.forwarded.Load(), Failed: l.failed.Load(),
	}
	if l.err != nil {
		s.LastError = l.err.Error()
	}
	return s
}
