package pve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Client calls the API of one PVE endpoint. Its methods may be called at the same time.
type Client struct {
	cfg       Config
	base      string // scheme and host of the endpoint, and /api2/json
	transport *http.Transport
	creds     credentials
	breaker   breaker
	health    health
	slots     chan struct{} // holds one element per call under way
	tooLate   [2]error      // cause of an expired CallTimeout, WriteTimeout
	closed    atomic.Bool
}

// New checks the Config and makes a Client. It connects to nothing.
func New(cfg Config) (*Client, error) {
	cfg.setDefaults()
	u, err := cfg.endpoint()
	if err != nil {
		return nil, err
	}
	creds, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	var tlsConfig *tls.Config
	if u.Scheme == "https" {
		if tlsConfig, err = cfg.tlsConfig(); err != nil {
			return nil, err
		}
	}
	if tlsConfig != nil && cfg.InsecureSkipVerify {
		cfg.Log.Warn("the certificate of the PVE API is not verified: whoever answers there gets our credentials", "endpoint", cfg.Endpoint)
	}
	return &Client{
		cfg:       cfg,
		base:      u.Scheme + "://" + u.Host + "/api2/json",
		transport: newTransport(cfg, tlsConfig),
		creds:     creds,
		slots:     make(chan struct{}, cfg.MaxInFlight),
		tooLate:   [2]error{noAnswerWithin(cfg.CallTimeout), noAnswerWithin(cfg.WriteTimeout)},
	}, nil
}

func noAnswerWithin(d time.Duration) error {
	return fmt.Errorf("no answer within %s: %w", d, context.DeadlineExceeded)
}

// Close closes the kept-alive connections. Later calls fail with ErrClosed; calls under way go on.
func (c *Client) Close() {
	c.closed.Store(true)
	c.transport.CloseIdleConnections()
}

// Call makes one call of the API. The path stands below /api2/json, begins with a slash and is escaped, as
// "/nodes/pve1/qemu/100/config". Parameters go into the query of a GET or DELETE and into the form of a POST or PUT.
// The answer's "data" is decoded into out unless out is nil; a null leaves out alone.
func (c *Client) Call(ctx context.Context, method, path string, params url.Values, out any) error {
	return c.call(ctx, request{method: method, path: path, params: params}, &envelope{Data: out})
}

// call waits for a free slot and makes the call within its own deadline.
func (c *Client) call(ctx context.Context, rq request, into *envelope) error {
	if err := rq.check(); err != nil {
		return err
	}
	if c.closed.Load() {
		return rq.lost(false, ErrClosed)
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return rq.lost(false, fmt.Errorf("wait for a free slot: %w", context.Cause(ctx)))
	}
	timeout, late := c.cfg.CallTimeout, c.tooLate[0]
	if rq.method != http.MethodGet {
		timeout, late = c.cfg.WriteTimeout, c.tooLate[1]
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, late)
	defer cancel()
	return c.authorized(ctx, rq, into)
}

// authorized makes the call unless our credentials are known to be refused, and learns from the answer. When a ticket
// is refused it logs in again and repeats the call once: a refused call has done nothing.
func (c *Client) authorized(ctx context.Context, rq request, into *envelope) error {
	pass, wait, refusal := c.breaker.admit()
	if refusal != nil {
		return c.refusedEarlier(rq, wait, refusal)
	}
	err := c.attempt(ctx, rq, into, 2)
	said, answered := errors.AsType[*Error](err)
	switch {
	case answered && said.Status == http.StatusUnauthorized:
		said.Message = fmt.Sprintf("%s: %s; %s", c.creds.name(), said.Message, c.creds.advice())
		if pause := c.breaker.refused(pass, said); pause > 0 {
			c.cfg.Log.ErrorContext(ctx, "PVE refuses our credentials", "who", c.creds.name(), "error", said, "pause", pause)
		}
	case err == nil || answered:
		if c.breaker.accepted(pass) {
			c.cfg.Log.InfoContext(ctx, "PVE accepts our credentials again", "who", c.creds.name())
		}
	default:
		c.breaker.unanswered(pass)
	}
	c.health.note(err)
	return err
}

// attempt logs in if need be and sends the request, up to n times while a fresh log-in makes sense.
func (c *Client) attempt(ctx context.Context, rq request, into *envelope, n int) error {
	header := make(http.Header, 4)
	mark, err := c.creds.authorize(ctx, c.logIn, rq.method, header)
	if err != nil {
		return rq.because(err)
	}
	err = c.exchange(ctx, rq, header, into)
	said, answered := errors.AsType[*Error](err)
	if n > 1 && answered && said.Status == http.StatusUnauthorized && c.creds.renew(ctx, mark) {
		return c.attempt(ctx, rq, into, n-1)
	}
	return err
}

// refusedEarlier fails a call without asking PVE.
func (c *Client) refusedEarlier(rq request, wait time.Duration, refusal error) error {
	said, _ := errors.AsType[*Error](refusal)
	msg := said.Message + "; PVE is asked again by the next call"
	if wait > 0 {
		msg = said.Message + fmt.Sprintf("; PVE is not asked again for %s", wait.Round(time.Second))
	}
	return &Error{Method: rq.method, Path: rq.path, Status: said.Status, Message: msg}
}

// request is one call before it becomes an HTTP request.
type request struct {
	method string
	path   string
	params url.Values
}

// check refuses paths that would lead somewhere else than they seem to.
func (r request) check() error {
	if !strings.HasPrefix(r.path, "/") || strings.ContainsAny(r.path, "?#") {
		return fmt.Errorf("pve: %q is not a path of the API", r.path)
	}
	for part := range strings.SplitSeq(r.path[1:], "/") {
		// PVE decodes a path before it looks for the slashes in it.
		if part == "" || part == "." || part == ".." || strings.Contains(strings.ToUpper(part), "%2F") {
			return fmt.Errorf("pve: path %q has an empty or relative element, or a slash in one", r.path)
		}
	}
	return nil
}

// lost is the error of a call that got no answer.
func (r request) lost(sent bool, err error) error {
	return &TransportError{Method: r.method, Path: r.path, Sent: sent, Err: err}
}

// because turns a failed log-in into the error of the call that needed it: that call was not sent.
func (r request) because(err error) error {
	if said, ok := errors.AsType[*Error](err); ok {
		return &Error{Method: r.method, Path: r.path, Status: said.Status, Message: "log in: " + said.Message, Params: said.Params}
	}
	return r.lost(false, fmt.Errorf("log in: %w", err))
}
