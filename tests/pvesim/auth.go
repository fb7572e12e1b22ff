package pvesim

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Who the cluster knows from the beginning.
const (
	RootUser     = "root@pam"
	RootPassword = "pvesim-root"
	User         = "virtrigaud@pve"
	UserPassword = "pvesim"
	TokenID      = "virtrigaud@pve!agent"
	TokenSecret  = "5d1c7e0e-93c5-4c3b-a0b5-2f0f52d6a5e1" //nolint:gosec // of a simulation
)

// accounts are users and tokens with what they may do.
type accounts struct {
	key  []byte // signs tickets
	life time.Duration

	mu     sync.Mutex // guards users and tokens
	users  map[string]account
	tokens map[string]account // by "user@realm!name"
}

type account struct {
	secret string
	acl    ACL
}

func newAccounts(version string, life time.Duration) *accounts {
	all := ACL{"/": AllPrivileges(version)}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // crypto/rand.Read never fails
	return &accounts{
		key: key, life: life,
		users:  map[string]account{RootUser: {RootPassword, all}, User: {UserPassword, all}},
		tokens: map[string]account{TokenID: {TokenSecret, all}},
	}
}

// AddUser adds or replaces a user that can log in with a password.
func (c *Cluster) AddUser(userID, password string, acl ACL) {
	c.setAccount(c.accounts.users, userID, account{password, acl})
}

// AddToken adds or replaces an API token ("user@realm!name"). Its privileges
// are its own (privsep 1).
func (c *Cluster) AddToken(tokenID, secret string, acl ACL) {
	c.setAccount(c.accounts.tokens, tokenID, account{secret, acl})
}

func (c *Cluster) setAccount(of map[string]account, id string, a account) {
	c.accounts.mu.Lock()
	of[id] = a
	c.accounts.mu.Unlock()
	if err := c.pools.change(func() error { return nil }); err != nil {
		c.log.Warn("user.cfg", "err", err)
	}
}

// RemoveToken makes a token unknown.
func (c *Cluster) RemoveToken(tokenID string) {
	c.accounts.mu.Lock()
	defer c.accounts.mu.Unlock()
	delete(c.accounts.tokens, tokenID)
}

// open are the calls that need no login.
func open(method, path string) bool {
	return path == "/access/ticket" || (path == "/access/domains" && method == http.MethodGet)
}

// authenticate finds out who asks. The error's text is the reason of the 401.
func (a *accounts) authenticate(r *http.Request, path string) (principal, error) {
	if open(r.Method, path) {
		return principal{}, nil
	}
	if h, ok := strings.CutPrefix(r.Header.Get("Authorization"), "PVEAPIToken="); ok {
		return a.byToken(h)
	}
	cookie, err := r.Cookie("PVEAuthCookie")
	if err != nil {
		return principal{}, unauthorized("No ticket")
	}
	ticket, err := url.QueryUnescape(strings.ReplaceAll(cookie.Value, "+", "%2B"))
	if err != nil {
		ticket = cookie.Value
	}
	user, ok := a.verify("PVE", ticket)
	if !ok {
		return principal{}, unauthorized("Authentication failed!")
	}
	// pvedaemon, which only root reaches, does not ask for it.
	if r.Method != http.MethodGet && r.TLS != nil {
		if u, ok := a.verify("CSRF", r.Header.Get("CSRFPreventionToken")); !ok || u != user {
			return principal{}, unauthorized("Permission denied - invalid csrf token")
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	acc, ok := a.users[user]
	if !ok {
		return principal{}, unauthorized("Authentication failed!")
	}
	return principal{user: user, acl: acc.acl}, nil
}

func unauthorized(reason string) error {
	return &apiError{status: http.StatusUnauthorized, message: reason, noBody: true}
}

func (a *accounts) byToken(header string) (principal, error) {
	id, secret, ok := strings.Cut(header, "=")
	if !ok {
		id, secret, _ = strings.Cut(header, ":")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	acc, ok := a.tokens[id]
	if !ok || !hmac.Equal([]byte(acc.secret), []byte(secret)) {
		return principal{}, unauthorized("Authentication failed!")
	}
	user, token, _ := strings.Cut(id, "!")
	return principal{user: user, token: token, acl: acc.acl}, nil
}

// sign makes a ticket or a CSRF token: kind, user and time, signed.
func (a *accounts) sign(kind, user string) string {
	text := fmt.Sprintf("%s:%s:%08X", kind, user, time.Now().Unix())
	return text + "::" + a.mac(text)
}

func (a *accounts) mac(text string) string {
	m := hmac.New(sha256.New, a.key)
	m.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func (a *accounts) verify(kind, signed string) (string, bool) {
	text, mac, ok := strings.Cut(signed, "::")
	if !ok || !hmac.Equal([]byte(mac), []byte(a.mac(text))) {
		return "", false
	}
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] != kind {
		return "", false
	}
	at, err := strconv.ParseInt(parts[2], 16, 64)
	if err != nil || time.Since(time.Unix(at, 0)) > a.life {
		return "", false
	}
	return parts[1], true
}

// login is POST /access/ticket. A ticket may stand for the password, which
// renews it.
func (c *Cluster) login(ctx context.Context, rq *request) (any, error) {
	user, password := rq.param("username"), rq.param("password")
	if realm := rq.param("realm"); realm != "" && !strings.Contains(user, "@") {
		user += "@" + realm
	}
	a := c.accounts
	a.mu.Lock()
	acc, ok := a.users[user]
	a.mu.Unlock()
	renewed, isTicket := a.verify("PVE", password)
	if !ok || (acc.secret != password && (!isTicket || renewed != user)) {
		c.pause(ctx, c.cfg.AuthDelay)
		return nil, &apiError{status: http.StatusUnauthorized, message: "authentication failure"}
	}
	p := principal{user: user, acl: acc.acl}
	return map[string]any{
		"username": user, "ticket": a.sign("PVE", user), "CSRFPreventionToken": a.sign("CSRF", user),
		"clustername": "pvesim", "cap": capabilities(p),
	}, nil
}

func capabilities(p principal) map[string]any {
	out := map[string]any{}
	for name, path := range map[string]string{
		"vms": "/vms", "storage": "/storage", "nodes": "/nodes", "access": "/access", "dc": "/", "sdn": "/sdn",
	} {
		privs := map[string]int{}
		for _, priv := range p.acl.effective(path) {
			privs[priv] = 1
		}
		out[name] = privs
	}
	return out
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	return hex.EncodeToString(b)
}
