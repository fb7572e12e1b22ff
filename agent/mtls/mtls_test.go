package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// A pair is a certificate chain and its key, as PEM.
type pair struct{ cert, key []byte }

// newAuthority makes a CA; with a parent it is an intermediate one.
func newAuthority(t *testing.T, name string, parent *authority) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key, pem: encode("CERTIFICATE", der)}
}

// issue signs a certificate for both sides, valid now, that change may alter.
func (a *authority) issue(commonName string, change func(*x509.Certificate)) pair {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"server.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair{cert: encode("CERTIFICATE", der), key: encode("PRIVATE KEY", keyDER)}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// A clock is moved by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A log collects lines of several goroutines.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.FieldsFunc(l.b.String(), func(r rune) bool { return r == '\n' })
}

// A node is a Holder with its files, a clock and a log.
type node struct {
	*Holder
	t     *testing.T
	dir   string
	clock *clock
	log   *log
}

func newNode(t *testing.T, p pair, ca []byte, allowed ...string) *node {
	t.Helper()
	return newNodeIn(t, nil, p, ca, allowed...)
}

// newNodeIn is a node that knows its cluster's name.
func newNodeIn(t *testing.T, cluster func() string, p pair, ca []byte, allowed ...string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), clock: &clock{t: time.Now()}, log: new(log)}
	n.write(p, ca)
	cfg := n.config(allowed...)
	cfg.Cluster = cluster
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.now, h.checked = n.clock.now, n.clock.now()
	n.Holder = h
	return n
}

func (n *node) config(allowed ...string) Config {
	return Config{
		Cert: filepath.Join(n.dir, "tls.crt"), Key: filepath.Join(n.dir, "tls.key"), CA: filepath.Join(n.dir, "ca.crt"),
		AllowedSANs: allowed, Log: slog.New(slog.NewTextHandler(n.log, nil)),
	}
}

// write replaces the files that are given.
func (n *node) write(p pair, ca []byte) {
	n.t.Helper()
	for name, data := range map[string][]byte{"tls.crt": p.cert, "tls.key": p.key, "ca.crt": ca} {
		if data == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(n.dir, name), data, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

// rotate replaces files and lets the time pass after which they are looked at.
func (n *node) rotate(p pair, ca []byte) {
	n.t.Helper()
	n.write(p, ca)
	n.clock.advance(checkEvery)
}

// A session is one connection after its handshake, seen from both ends.
type session struct {
	client, server *tls.Conn
}

func (s *session) close() {
	_ = s.client.NetConn().Close()
	_ = s.server.NetConn().Close()
}

// echo sends a byte there and back.
func (s *session) echo(t *testing.T) {
	t.Helper()
	b := []byte{42}
	for _, way := range [][2]*tls.Conn{{s.client, s.server}, {s.server, s.client}} {
		if _, err := way[0].Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], b); err != nil {
			t.Fatal(err)
		}
	}
}

// connect shakes hands over loopback TCP. Both errors count: in TLS 1.3 a
// client is done before the server has seen its certificate.
func connect(t *testing.T, server, client *tls.Config) (s *session, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan *tls.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		conn := tls.Server(c, server)
		serverErr = conn.HandshakeContext(t.Context())
		if serverErr != nil {
			_ = c.Close()
		}
		accepted <- conn
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	clientErr = conn.HandshakeContext(t.Context())
	if clientErr != nil {
		_ = raw.Close()
	}
	s = &session{client: conn, server: <-accepted}
	if s.server == nil {
		t.Fatal("nothing accepted")
	}
	t.Cleanup(s.close)
	return s, serverErr, clientErr
}

// mustConnect fails the test if either end refuses.
func mustConnect(t *testing.T, server, client *tls.Config) *session {
	t.Helper()
	s, serverErr, clientErr := connect(t, server, client)
	if err := errors.Join(serverErr, clientErr); err != nil {
		t.Fatal(err)
	}
	s.echo(t)
	return s
}

// raw is a client that does what it likes.
func raw(t *testing.T, p *pair, version uint16) *tls.Config {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
	if p != nil {
		cert, err := tls.X509KeyPair(p.cert, p.key)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

func parseURI(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
