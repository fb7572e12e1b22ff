package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Which clients a server lets in.
func TestServerTakesAndRefuses(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil) // one name, two keys
	between := newAuthority(t, "between", ca)
	named := ca.issue("manager", func(c *x509.Certificate) {
		c.DNSNames = []string{"manager.svc", "server.test"}
		c.URIs = []*url.URL{parseURI(t, "pve-rigaud://c1/client/manager")}
	})
	chained := between.issue("chained", nil)
	chained.cert = append(chained.cert, between.pem...)

	tests := []struct {
		name    string
		allowed []string
		client  *pair
		version uint16
		want    string // part of the server's error, "" for none
	}{
		{name: "any client of the CA", client: &named},
		{name: "URI", client: &named, allowed: []string{"x", "pve-rigaud://c1/client/manager"}},
		{name: "DNS name", client: &named, allowed: []string{"manager.svc"}},
		{name: "common name", client: &named, allowed: []string{"manager"}},
		{name: "through an intermediate CA", client: &chained, allowed: []string{"chained"}},
		{name: "not on the list", client: &named, allowed: []string{"somebody"}, want: "is not allowed"},
		{name: "part of a name", client: &named, allowed: []string{"manager.sv", "anager", "pve-rigaud://c1/client/"}, want: "is not allowed"},
		{name: "other case", client: &named, allowed: []string{"Manager"}, want: "is not allowed"},
		{name: "wildcards mean nothing", client: &named, allowed: []string{"*", "*.svc", ""}, want: "is not allowed"},
		{name: "CA of the same name", client: issue(other, "manager", nil), allowed: []string{"manager"}, want: "unknown authority"},
		{name: "no certificate", want: "didn't provide a certificate"},
		{name: "expired", client: issue(ca, "manager", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), want: "expired or is not yet valid"},
		{name: "not yet valid", client: issue(ca, "manager", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), want: "expired or is not yet valid"},
		{
			name: "for servers only", want: "incompatible key usage",
			client: issue(ca, "manager", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		},
		{name: "TLS 1.2", client: &named, version: tls.VersionTLS12, want: "unsupported versions"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, ca.issue("server", nil), ca.pem, tt.allowed...)
			s, serverErr, clientErr := connect(t, n.ServerConfig(), raw(t, tt.client, tt.version))
			if tt.want == "" {
				if serverErr != nil || clientErr != nil {
					t.Fatalf("refused: %v, %v", serverErr, clientErr)
				}
				s.echo(t)
				return
			}
			if serverErr == nil || !strings.Contains(serverErr.Error(), tt.want) {
				t.Errorf("got %v, want %q", serverErr, tt.want)
			}
		})
	}
}

func issue(a *authority, name string, change func(*x509.Certificate)) *pair {
	p := a.issue(name, change)
	return &p
}

// Which servers a client believes.
func TestClientTakesAndRefuses(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil)
	between := newAuthority(t, "between", ca)
	chained := between.issue("chained", nil)
	chained.cert = append(chained.cert, between.pem...)
	tests := []struct {
		name       string
		server     *pair
		serverName string
		want       string // part of the client's error
	}{
		{name: "DNS name", server: issue(ca, "s", nil), serverName: "server.test"},
		{name: "address", server: issue(ca, "s", nil), serverName: "127.0.0.1"},
		{name: "through an intermediate CA", server: &chained, serverName: "server.test"},
		{name: "other name", server: issue(ca, "s", nil), serverName: "other.test", want: "not other.test"},
		{name: "other address", server: issue(ca, "s", nil), serverName: "127.0.0.2", want: "not 127.0.0.2"},
		{name: "no name", server: issue(ca, "s", nil), want: "no name to look for"},
		{name: "CA of the same name", server: issue(other, "s", nil), serverName: "server.test", want: "unknown authority"},
		{name: "expired", server: issue(ca, "s", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), serverName: "server.test", want: "expired"},
		{
			name: "for clients only", serverName: "server.test", want: "incompatible key usage",
			server: issue(ca, "s", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client := newNode(t, ca.issue("client", nil), ca.pem)
			server := raw(t, tt.server, 0)
			server.ClientAuth = tls.RequireAnyClientCert
			s, serverErr, clientErr := connect(t, server, client.ClientConfig(tt.serverName))
			if tt.want == "" {
				if serverErr != nil || clientErr != nil {
					t.Fatalf("refused: %v, %v", serverErr, clientErr)
				}
				s.echo(t)
				return
			}
			if clientErr == nil || !strings.Contains(clientErr.Error(), tt.want) {
				t.Errorf("got %v, want %q", clientErr, tt.want)
			}
		})
	}
}

func TestClientRefusesOldTLS(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	client := newNode(t, ca.issue("client", nil), ca.pem)
	_, _, clientErr := connect(t, raw(t, issue(ca, "s", nil), tls.VersionTLS12), client.ClientConfig("server.test"))
	if clientErr == nil {
		t.Error("TLS 1.2 is taken")
	}
}

func TestHoldersTalk(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	server := newNode(t, ca.issue("server", nil), ca.pem, "client")
	client := newNode(t, ca.issue("client", nil), ca.pem)
	s := mustConnect(t, server.ServerConfig(), client.ClientConfig("server.test"))
	if cs := s.server.ConnectionState(); cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" {
		t.Errorf("version %x, protocol %q", cs.Version, cs.NegotiatedProtocol)
	}
}

// A client that is refused for ever is one line a minute.
func TestRefusalIsLogged(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("server", nil), ca.pem, "manager")
	refuse := func(name string) {
		t.Helper()
		if _, err, _ := connect(t, n.ServerConfig(), raw(t, issue(ca, name, nil), 0)); err == nil {
			t.Fatal("not refused")
		}
	}
	for range 3 {
		refuse("a")
	}
	refuse("b")
	n.clock.advance(time.Minute)
	refuse("b")
	lines := n.log.lines()
	if len(lines) != 3 || !strings.Contains(lines[0], `names="[server.test a]"`) {
		t.Errorf("got %q", lines)
	}
}

// A session that could be resumed would outlive the CA it was verified with.
func TestNoResumption(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("server", nil), ca.pem)
	client := raw(t, issue(ca, "client", nil), 0)
	client.ServerName, client.ClientSessionCache = "server.test", tls.NewLRUClientSessionCache(1)
	listen := n.ServerConfig()
	for range 2 {
		if s := mustConnect(t, listen, client); s.server.ConnectionState().DidResume {
			t.Error("resumed")
		}
	}
}
