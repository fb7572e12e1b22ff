package pve

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"
)

// Defaults of Config.
const (
	defaultInFlight     = 2                // workers-1 of a PVE with three workers
	defaultCallTimeout  = 35 * time.Second // pveproxy itself gives up on another node after 30 s, and says so
	defaultWriteTimeout = 90 * time.Second // PUT config waits for hot-unplug, and before that 10 s for the lock
	defaultPollMin      = 20 * time.Millisecond
	defaultPollMax      = 500 * time.Millisecond
)

// Config says where the API is, who we are, and how hard it may be asked. The zero value of a field means its default.
type Config struct {
	Endpoint string // "https://host:8006" or "http://127.0.0.1:85"; plain http to loopback only

	TokenID     string // "user@realm!name"; a token wins over a password when both are given
	TokenSecret string // the token's uuid
	Username    string // "user@realm", for a ticket
	Password    string

	CAFile             string // PEM bundle to trust instead of the system's, as /etc/pve/pve-root-ca.pem; read by New, for https
	CAPEM              []byte // the same, from memory; both are trusted when both are given
	ServerName         string // name expected in the server's certificate instead of the endpoint's host
	InsecureSkipVerify bool   // do not verify the certificate; logged as a warning

	MaxInFlight  int           // calls under way at once; 2
	CallTimeout  time.Duration // one GET, from sending to the last byte; 35 s
	WriteTimeout time.Duration // one POST, PUT or DELETE; 90 s
	PollMin      time.Duration // first pause of Wait; 20 ms
	PollMax      time.Duration // longest pause of Wait; 500 ms

	Log *slog.Logger // nil: nothing is logged

	// Observe, when set, is told each exchange with PVE: the path with its ids replaced ("/nodes/{node}/qemu/{vmid}"),
	// the HTTP status or 0 when no answer came, and the time it took without the wait for a free slot.
	Observe func(method, pathTemplate string, status int, d time.Duration)

	// Dial, when set, replaces the TCP dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// String describes the Config without its secrets.
func (c Config) String() string { return c.Endpoint + " as " + cmp.Or(c.TokenID, c.Username) }

// GoString is String, so that no verb of fmt prints a secret.
func (c Config) GoString() string { return c.String() }

// LogValue is String, so that no logger prints a secret.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// tokenPattern is user@realm!name as PVE's /access/users/{userid}/token accepts it.
var tokenPattern = regexp.MustCompile(`^[^\s:/@!]+@[A-Za-z][A-Za-z0-9.\-_]+![A-Za-z][A-Za-z0-9.\-_]+$`)

// userPattern is user@realm.
var userPattern = regexp.MustCompile(`^[^\s:/]+@[A-Za-z][A-Za-z0-9.\-_]+$`)

func (c *Config) setDefaults() {
	c.MaxInFlight = cmp.Or(max(c.MaxInFlight, 0), defaultInFlight)
	c.CallTimeout = cmp.Or(max(c.CallTimeout, 0), defaultCallTimeout)
	c.WriteTimeout = max(cmp.Or(max(c.WriteTimeout, 0), defaultWriteTimeout), c.CallTimeout)
	c.PollMin = cmp.Or(max(c.PollMin, 0), defaultPollMin)
	c.PollMax = max(cmp.Or(max(c.PollMax, 0), defaultPollMax), c.PollMin)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// credentials checks that there is one complete and well-formed way to log in.
func (c *Config) credentials() (credentials, error) {
	switch {
	case c.TokenID != "":
		if !tokenPattern.MatchString(c.TokenID) {
			return nil, fmt.Errorf("pve: token id %q is not of the form user@realm!name", c.TokenID)
		}
		if c.TokenSecret == "" {
			return nil, fmt.Errorf("pve: token %s has no secret", c.TokenID)
		}
		return newToken(c.TokenID, c.TokenSecret), nil
	case c.Username != "":
		if !userPattern.MatchString(c.Username) {
			return nil, fmt.Errorf("pve: user name %q is not of the form user@realm", c.Username)
		}
		if c.Password == "" {
			return nil, fmt.Errorf("pve: user %s has no password", c.Username)
		}
		return newTicket(c.Username, c.Password, c.Log), nil
	}
	return nil, errors.New("pve: no credentials: an API token (id and secret) or a user name with password is needed")
}

// endpoint parses the endpoint. Plain http would show the secret to the network, so it goes to this machine only.
func (c *Config) endpoint() (*url.URL, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, errors.New("pve: endpoint is not a URL")
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("pve: endpoint %q is not of the form https://host:8006", u.Redacted())
	}
	switch u.Scheme {
	case "https":
		setPort(u, "8006")
	case "http":
		if !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("pve: endpoint %q: plain http is for this machine only (http://127.0.0.1:85); use https", c.Endpoint)
		}
		setPort(u, "85")
	default:
		return nil, fmt.Errorf("pve: endpoint %q is neither https nor http", c.Endpoint)
	}
	return u, nil
}

func setPort(u *url.URL, port string) {
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// tlsConfig trusts the given bundle, or the system's when there is none.
func (c *Config) tlsConfig() (*tls.Config, error) {
	pool, err := c.roots()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            pool,
		ServerName:         c.ServerName,
		InsecureSkipVerify: c.InsecureSkipVerify,            //nolint:gosec // explicit, and logged by New
		ClientSessionCache: tls.NewLRUClientSessionCache(8), // PVE closes after each error: make the next handshake cheap
	}, nil
}

func (c *Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" && len(c.CAPEM) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if len(c.CAPEM) > 0 && !pool.AppendCertsFromPEM(c.CAPEM) {
		return nil, errors.New("pve: the CA bundle holds no certificate")
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("pve: read CA bundle: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("pve: CA bundle %s holds no certificate", c.CAFile)
		}
	}
	return pool, nil
}
