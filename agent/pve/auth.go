package pve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// credentials prove to PVE who we are.
type credentials interface {
	// authorize sets the headers of a request, after a log-in if need be. The mark names what it used.
	authorize(ctx context.Context, logIn logInFunc, method string, h http.Header) (mark string, err error)
	// renew is told that PVE refused what the mark names, and reports whether another authorize would use something else.
	renew(ctx context.Context, mark string) bool
	// name says who we are, advice what to do when PVE does not believe it.
	name() string
	advice() string
}

// logInFunc asks PVE for a ticket.
type logInFunc func(ctx context.Context, user, password string) (ticketAnswer, error)

// token is an API token. It needs no log-in and no CSRF token.
type token struct {
	id     string
	header []string // value of the Authorization header
}

func newToken(id, secret string) *token {
	return &token{id: id, header: []string{"PVEAPIToken=" + id + "=" + secret}}
}

func (t *token) authorize(_ context.Context, _ logInFunc, _ string, h http.Header) (string, error) {
	h["Authorization"] = t.header
	return "", nil
}

func (t *token) renew(context.Context, string) bool { return false }

func (t *token) name() string { return "API token " + t.id }

func (t *token) advice() string {
	return "check that the token exists and has not expired (pveum user token list), and that the configured secret is its own"
}

// A ticket lives for two hours. From renewAfter on the next call gets a new one; should that fail while the old one
// is good, the old one is used on.
const (
	renewAfter = 90 * time.Minute
	goodFor    = 119 * time.Minute
)

// ticket is a log-in by user name and password.
type ticket struct {
	user, password string
	log            *slog.Logger
	turn           chan struct{} // holds an element while someone uses the fields below
	now            ticketAnswer
	issued         time.Time
}

func newTicket(user, password string, log *slog.Logger) *ticket {
	return &ticket{user: user, password: password, log: log, turn: make(chan struct{}, 1)}
}

// authorize sends the ticket, and with changes the CSRF token. One call at a time logs in, the others wait for it.
func (t *ticket) authorize(ctx context.Context, logIn logInFunc, method string, h http.Header) (string, error) {
	if err := t.take(ctx); err != nil {
		return "", err
	}
	defer func() { <-t.turn }()
	if age := time.Since(t.issued); t.now.Ticket == "" || age >= renewAfter {
		err := t.logInLocked(ctx, logIn)
		if err != nil && (t.now.Ticket == "" || age >= goodFor || KindOf(err) == KindAuth) {
			return "", err
		}
		if err != nil {
			t.log.WarnContext(ctx, "the PVE ticket could not be renewed, the old one is still good", "user", t.user, "error", err)
		}
	}
	h["Cookie"] = []string{"PVEAuthCookie=" + t.now.Ticket}
	if method != http.MethodGet {
		h.Set("CSRFPreventionToken", t.now.CSRF)
	}
	return t.now.Ticket, nil
}

func (t *ticket) logInLocked(ctx context.Context, logIn logInFunc) error {
	got, err := logIn(ctx, t.user, t.password)
	if err != nil {
		return err
	}
	t.now, t.issued = got, time.Now()
	t.log.DebugContext(ctx, "logged in to PVE", "user", t.user)
	return nil
}

// take waits for the turn.
func (t *ticket) take(ctx context.Context) error {
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// renew forgets the ticket that was refused, unless another call has replaced it already.
func (t *ticket) renew(ctx context.Context, mark string) bool {
	if t.take(ctx) != nil {
		return false
	}
	defer func() { <-t.turn }()
	if t.now.Ticket == mark {
		t.now = ticketAnswer{}
	}
	return true
}

func (t *ticket) name() string { return "user " + t.user }

func (t *ticket) advice() string {
	return "check user name and password; an API token is the better choice for a service"
}

// ticketAnswer is the answer of POST /access/ticket.
type ticketAnswer struct {
	Ticket  string `json:"ticket"`
	CSRF    string `json:"CSRFPreventionToken"`
	NeedTFA Bool   `json:"NeedTFA"`
}

// logIn gets a ticket. It is part of the call that needs it: of its slot, its deadline and its pass.
func (c *Client) logIn(ctx context.Context, user, password string) (ticketAnswer, error) {
	rq := request{method: http.MethodPost, path: "/access/ticket", params: url.Values{"username": {user}, "password": {password}}}
	var got ticketAnswer
	if err := c.exchange(ctx, rq, make(http.Header, 2), &envelope{Data: &got}); err != nil {
		return ticketAnswer{}, err
	}
	if got.NeedTFA {
		return ticketAnswer{}, &Error{
			Method: rq.method, Path: rq.path, Status: http.StatusUnauthorized,
			Message: fmt.Sprintf("user %s needs a second factor, which a service does not have: use an API token", user),
		}
	}
	if got.Ticket == "" {
		return ticketAnswer{}, rq.lost(true, errors.New("the answer holds no ticket"))
	}
	return got, nil
}
