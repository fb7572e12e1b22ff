package forward

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// loopback connects agents over TCP on loopback, with TLS and certificates of
// one CA. A certificate names its holder in a URI.
type loopback struct {
	t    testing.TB
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool

	// mu guards the fields below.
	mu    sync.Mutex
	addrs map[string]string
	certs map[string]tls.Certificate
	conns map[string][]net.Conn // by address, the accepting ends
}

func newLoopback(t testing.TB) *loopback {
	l := &loopback{t: t, pool: x509.NewCertPool(), addrs: make(map[string]string), certs: make(map[string]tls.Certificate), conns: make(map[string][]net.Conn)}
	l.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	l.key, l.ca = l.sign(l.ca, nil)
	l.pool.AddCert(l.ca)
	return l
}

// sign makes a key and a certificate for it, signed by the CA or by itself.
func (l *loopback) sign(template *x509.Certificate, ca *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	l.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	if ca == nil {
		ca = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, l.ca, &key.PublicKey, ca)
	if err != nil {
		l.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		l.t.Fatal(err)
	}
	return key, cert
}

func (l *loopback) cert(name string) tls.Certificate {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.certs[name]; ok {
		return c
	}
	key, cert := l.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: "test", Host: "c1", Path: "/" + name}},
	}, l.key)
	l.certs[name] = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	return l.certs[name]
}

func (l *loopback) listen(node string) net.Listener {
	var lc net.ListenConfig
	listener, err := lc.Listen(l.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addrs[node] = listener.Addr().String()
	return remembering{listener, l}
}

// remembering is a listener whose connections can be cut.
type remembering struct {
	net.Listener
	l *loopback
}

func (r remembering) Accept() (net.Conn, error) {
	c, err := r.Listener.Accept()
	if err == nil {
		r.l.mu.Lock()
		defer r.l.mu.Unlock()
		r.l.conns[r.Addr().String()] = append(r.l.conns[r.Addr().String()], c)
	}
	return c, err
}

func (l *loopback) cut(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns[addr] {
		_ = c.Close()
	}
	delete(l.conns, addr)
}

func (l *loopback) addr(node string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addrs[node]
}

func (l *loopback) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	return dialTCP(ctx, addr)
}

func (l *loopback) server(node string) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{l.cert(node)},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: l.pool,
	})
}

func (l *loopback) client(from, to string) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{l.cert(from)},
		InsecureSkipVerify: true, // VerifyConnection looks at the URI
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: l.pool}); err != nil {
				return fmt.Errorf("verify %s: %w", to, err)
			}
			if is := nameIn(leaf); is != to {
				return fmt.Errorf("%s is not %s", is, to)
			}
			return nil
		},
	})
}

func nameIn(cert *x509.Certificate) string { return path.Base(cert.URIs[0].Path) }

func (l *loopback) caller(p *peer.Peer) string {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return ""
	}
	return nameIn(info.State.VerifiedChains[0][0])
}
