package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// authority signs the certificates of clients and agents.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	a.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// issue makes a certificate with a DNS name, for either side.
func (a *authority) issue(t *testing.T, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	return a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, key), key
}

const agentName = "agent.example"

// serverFlags writes an agent's certificate into a directory and returns the flags that name it.
func (a *authority) serverFlags(t *testing.T, dir string) []string {
	t.Helper()
	cert, key := a.issue(t, agentName)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return []string{
		"--listen-cert=" + write("agent.crt", "CERTIFICATE", cert.Raw), "--listen-key=" + write("agent.key", "PRIVATE KEY", der),
		"--listen-ca=" + write("clients.crt", "CERTIFICATE", a.cert.Raw),
	}
}

// dial connects as a client with a certificate for name.
func (a *authority) dial(t *testing.T, target, name string) providerpb.ProviderClient {
	t.Helper()
	cert, key := a.issue(t, name)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return dial(t, target, credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: agentName, RootCAs: roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
	}))
}

func dial(t *testing.T, target string, creds credentials.TransportCredentials) providerpb.ProviderClient {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return providerpb.NewProviderClient(conn)
}

// TestOnlyClientsOfTheCAAreServed: whoever may call this service may delete VMs.
func TestOnlyClientsOfTheCAAreServed(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.TLS = true }})
	ca := newAuthority(t)
	s.startAgent(setting{flags: append([]string{"--plaintext=false", "--allowed-sans=manager.example"}, ca.serverFlags(t, s.rig.Dir)...)})
	target := s.agent.Conn.Target()
	v, err := ca.dial(t, target, "manager.example").Validate(s.ctx, &providerpb.ValidateRequest{})
	if err != nil || !v.GetOk() {
		t.Errorf("an allowed client got %v, err %v", v, err)
	}
	stranger := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	cert, key := stranger.issue(t, "manager.example")
	for name, p := range map[string]providerpb.ProviderClient{
		"a client that is not allowed": ca.dial(t, target, "somebody.example"),
		"a client of another CA": dial(t, target, credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: agentName, RootCAs: roots,
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		})),
		"a client without a certificate": dial(t, target, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: agentName, RootCAs: roots})),
		"a client without TLS":           dial(t, target, insecure.NewCredentials()),
	} {
		if _, err := p.Validate(s.ctx, &providerpb.ValidateRequest{}); err == nil {
			t.Errorf("%s is served", name)
		} else {
			refused(t, err, codes.Unavailable)
		}
	}
}
