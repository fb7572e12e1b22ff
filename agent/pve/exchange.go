package pve

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// idleTimeout is below the 5 s after which pveproxy closes an idle connection, so that a request meets a dead
	// connection only when PVE recycles a worker.
	idleTimeout = 4 * time.Second
	maxAnswer   = 64 << 20 // bytes; far above /cluster/resources of the largest cluster
)

func newTransport(cfg Config, tlsConfig *tls.Config) *http.Transport {
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConns:           cfg.MaxInFlight,
		MaxIdleConnsPerHost:    cfg.MaxInFlight,
		MaxResponseHeaderBytes: 1 << 20, // PVE repeats its message in the status line
		DisableCompression:     true,    // the other side is this machine, and its CPU is the bottleneck
	}
}

// envelope is the body of a successful answer. Data holds the pointer that the caller gave.
type envelope struct {
	Data  any `json:"data"`
	Total Int `json:"total"` // of a list that comes in pages
}

// failure is the body of the other answers; it may be absent (401, 595).
type failure struct {
	Message string         `json:"message"`
	Errors  map[string]any `json:"errors"`
}

// exchange sends one request and reads its answer.
func (c *Client) exchange(ctx context.Context, rq request, header http.Header, into *envelope) error {
	start := time.Now()
	status := 0
	if c.cfg.Observe != nil {
		defer func() { c.cfg.Observe(rq.method, PathTemplate(rq.path), status, time.Since(start)) }()
	}
	resp, sent, err := c.roundTrip(ctx, rq, header)
	if err != nil {
		return rq.lost(sent, c.explain(err))
	}
	defer func() { _ = resp.Body.Close() }()
	status = resp.StatusCode
	buf, ok := buffers.Get().(*bytes.Buffer)
	if !ok {
		buf = new(bytes.Buffer)
	}
	defer func() { buf.Reset(); buffers.Put(buf) }()
	if err := readAnswer(buf, resp); err != nil && status < 300 {
		return rq.lost(true, err)
	}
	if status >= 300 && status < 400 {
		return rq.lost(false, fmt.Errorf("the endpoint wants to be asked at %q instead", resp.Header.Get("Location")))
	}
	if status >= 400 {
		return c.failed(rq, resp, buf.Bytes())
	}
	return rq.decode(buf.Bytes(), into)
}

// buffers hold answers while they are decoded; decoding copies what it keeps.
var buffers sync.Pool

func readAnswer(buf *bytes.Buffer, resp *http.Response) error {
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if n > maxAnswer {
		return fmt.Errorf("read the answer: more than %d bytes", maxAnswer)
	}
	return nil
}

// roundTrip sends the request. PVE closes connections after 5 s, 99 requests, each error and when it recycles a
// worker: a GET whose connection broke without an answer is sent once more. Nothing else ever is, except by
// net/http when it has not written a single byte. sent reports whether PVE may have seen the request.
func (c *Client) roundTrip(ctx context.Context, rq request, header http.Header) (resp *http.Response, sent bool, err error) {
	if rq.method != http.MethodGet {
		return c.roundTripWrite(ctx, rq, header)
	}
	for range 2 {
		var hr *http.Request
		hr, err = c.httpRequest(ctx, rq, header)
		if err != nil {
			return nil, false, err
		}
		resp, err = c.transport.RoundTrip(hr)
		if err == nil || !broken(err) || ctx.Err() != nil {
			break
		}
	}
	return resp, true, err
}

func (c *Client) roundTripWrite(ctx context.Context, rq request, header http.Header) (*http.Response, bool, error) {
	var connected atomic.Bool
	hr, err := c.httpRequest(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { connected.Store(false) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}), rq, header)
	if err != nil {
		return nil, false, err
	}
	resp, err := c.transport.RoundTrip(hr)
	return resp, connected.Load(), err
}

// broken reports whether the other side closed the connection instead of answering.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (c *Client) httpRequest(ctx context.Context, rq request, header http.Header) (*http.Request, error) {
	target, form := c.base+rq.path, ""
	switch rq.method {
	case http.MethodGet, http.MethodDelete:
		if len(rq.params) > 0 {
			target += "?" + rq.params.Encode()
		}
	default:
		form = rq.params.Encode()
	}
	hr, err := http.NewRequestWithContext(ctx, rq.method, target, nil)
	if err != nil {
		// The text of a url.Error would show the query.
		return nil, errors.New("the path is not a valid URL")
	}
	hr.Header = header
	if rq.method == http.MethodPost || rq.method == http.MethodPut {
		header.Set("Content-Type", "application/x-www-form-urlencoded")
		setBody(hr, form)
	}
	return hr, nil
}

// setBody gives the request a body that net/http can send again from the start, which it does only when it has not
// written a byte of the first attempt.
func setBody(hr *http.Request, form string) {
	hr.ContentLength = int64(len(form))
	hr.GetBody = func() (io.ReadCloser, error) {
		if form == "" {
			return http.NoBody, nil
		}
		return io.NopCloser(strings.NewReader(form)), nil
	}
	hr.Body, _ = hr.GetBody()
}

// explain adds to an error of the network what to do about it.
func (c *Client) explain(err error) error {
	if !isTLS(err) {
		return err
	}
	trust := cmp.Or(c.cfg.CAFile, "the system's certificates")
	if c.cfg.CAFile == "" && len(c.cfg.CAPEM) > 0 {
		trust = "the configured CA bundle"
	}
	return fmt.Errorf("the server's certificate does not fit %s (on PVE the CA is /etc/pve/pve-root-ca.pem, unless another certificate was installed): %w", trust, err)
}

// failed reads an answer that is no success. PVE writes its text into the status line and into the body, and the body
// may be missing.
func (c *Client) failed(rq request, resp *http.Response, body []byte) error {
	var f failure
	_ = json.Unmarshal(body, &f) // not JSON: the status line has to do
	_, reason, _ := strings.Cut(resp.Status, " ")
	e := &Error{Method: rq.method, Path: rq.path, Status: resp.StatusCode}
	hide := c.hider(rq.params)
	e.Message = hide(strings.TrimSpace(cmp.Or(f.Message, reason)))
	for k, v := range f.Errors {
		if e.Params == nil {
			e.Params = make(map[string]string, len(f.Errors))
		}
		e.Params[k] = hide(strings.TrimSpace(fmt.Sprint(v)))
	}
	return e
}

// secretParams are parameters whose values must not come back in an error text: PVE quotes what it does not accept.
var secretParams = []string{"password", "cipassword"}

// hider returns a function that removes our secrets and those of the request from a text of PVE.
func (c *Client) hider(params url.Values) func(string) string {
	secrets := []string{c.cfg.TokenSecret, c.cfg.Password}
	for _, k := range secretParams {
		secrets = append(secrets, params[k]...)
	}
	return func(s string) string {
		for _, secret := range secrets {
			if secret != "" {
				s = strings.ReplaceAll(s, secret, "[redacted]")
			}
		}
		return s
	}
}

// decode reads a successful answer.
func (r request) decode(body []byte, into *envelope) error {
	if into.Data == nil && len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return r.lost(true, fmt.Errorf("the answer is not what the API describes: %w", err))
	}
	return nil
}

// health is what the traffic says about the endpoint.
type health struct {
	mu      sync.Mutex // guards all below
	lastOK  time.Time
	trouble error
}

// note takes the outcome of a call. Any answer but a 401 shows that the endpoint works; a caller who gave up shows
// nothing.
func (h *health) note(err error) {
	kind := KindOf(err)
	if kind == KindCanceled {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	said, answered := errors.AsType[*Error](err)
	if err == nil || answered && said.Status != http.StatusUnauthorized {
		h.lastOK, h.trouble = time.Now(), nil
		return
	}
	h.trouble = err
}

// Health returns when PVE last accepted a call of ours, and the trouble since then: nil, refused credentials, or no
// answer. It asks nothing; it tells what the traffic showed.
func (c *Client) Health() (lastOK time.Time, err error) {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	return c.health.lastOK, c.health.trouble
}
