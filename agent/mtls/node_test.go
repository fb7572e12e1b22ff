package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// uris lets a certificate have these URIs.
func uris(t *testing.T, all ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, s := range all {
			c.URIs = append(c.URIs, parseURI(t, s))
		}
	}
}

func TestNodeURI(t *testing.T) {
	for _, c := range []struct{ cluster, node, want string }{
		{"c1", "pve1", "pve-rigaud://c1/node/pve1"},
		{"c1", "a b", "pve-rigaud://c1/node/a%20b"},
		{"c1", "a/b?c#d%", "pve-rigaud://c1/node/a%2Fb%3Fc%23d%25"},
	} {
		got := NodeURI(c.cluster, c.node)
		if got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		cert := &x509.Certificate{URIs: []*url.URL{parseURI(t, got)}}
		if node, ok := nodeOf(cert, c.cluster); !ok || node != c.node {
			t.Errorf("%s is read as %q, %v", got, node, ok)
		}
	}
}

// Which certificates are a node's.
func TestNodeOf(t *testing.T) {
	tests := []struct {
		name    string
		uris    []string
		cluster string // "" is c1
		want    string // "" is none
	}{
		{name: "its URI", uris: []string{"pve-rigaud://c1/node/pve1"}, want: "pve1"},
		{name: "among URIs of others", uris: []string{"spiffe://c1/node/pve2", "pve-rigaud://c1/node/pve1", "pve-rigaud://c1/client/m"}, want: "pve1"},
		{name: "none"},
		{name: "two nodes", uris: []string{"pve-rigaud://c1/node/pve1", "pve-rigaud://c1/node/pve2"}},
		{name: "one node twice", uris: []string{"pve-rigaud://c1/node/pve1", "pve-rigaud://c1/node/pve1"}},
		{name: "and one of another cluster", uris: []string{"pve-rigaud://c1/node/pve1", "pve-rigaud://c2/node/pve1"}},
		{name: "and one of another cluster first", uris: []string{"pve-rigaud://c2/node/pve1", "pve-rigaud://c1/node/pve1"}},
		{name: "another cluster", uris: []string{"pve-rigaud://c2/node/pve1"}},
		{name: "another case", uris: []string{"pve-rigaud://C1/node/pve1"}},
		{name: "no cluster", uris: []string{"pve-rigaud:///node/pve1"}},
		{name: "a client", uris: []string{"pve-rigaud://c1/client/pve1"}},
		{name: "another scheme", uris: []string{"https://c1/node/pve1"}},
		{name: "no name", uris: []string{"pve-rigaud://c1/node/"}},
		{name: "more path", uris: []string{"pve-rigaud://c1/node/pve1/x"}},
		{name: "query", uris: []string{"pve-rigaud://c1/node/pve1?x"}},
		{name: "fragment", uris: []string{"pve-rigaud://c1/node/pve1#x"}},
		{name: "user", uris: []string{"pve-rigaud://root@c1/node/pve1"}},
		{name: "port", uris: []string{"pve-rigaud://c1:1/node/pve1"}},
		{name: "escaped without need", uris: []string{"pve-rigaud://c1/node/%70ve1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := new(x509.Certificate)
			uris(t, tt.uris...)(cert)
			if node, ok := nodeOf(cert, "c1"); node != tt.want || ok != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", node, ok, tt.want)
			}
			if node, ok := nodeOf(cert, ""); ok {
				t.Errorf("in a cluster without a name it is %q", node)
			}
		})
	}
}

// callerNode serves one gRPC call and says which node PeerNode says it is from.
func callerNode(t *testing.T, server, client credentials.TransportCredentials) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(server), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		node, ok := PeerNode(stream.Context(), "c1")
		if !ok {
			node = "nobody"
		}
		return stream.SendMsg(wrapperspb.String(node))
	}))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(client))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var answer wrapperspb.StringValue
	if err := conn.Invoke(t.Context(), "/test.Who/Am", &emptypb.Empty{}, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.GetValue()
}

func TestPeerNode(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	pve1 := newNode(t, ca.issue("pve1", uris(t, NodeURI("c1", "pve1"))), ca.pem)
	pve2 := newNode(t, ca.issue("pve2", uris(t, NodeURI("c1", "pve2"))), ca.pem)
	manager := newNode(t, ca.issue("manager", uris(t, "pve-rigaud://c1/client/manager")), ca.pem)
	listen := credentials.NewTLS(pve2.ServerConfig())
	if got := callerNode(t, listen, credentials.NewTLS(pve1.PeerConfig("pve2", "c1"))); got != "pve1" {
		t.Errorf("pve1 is taken for %q", got)
	}
	if got := callerNode(t, listen, credentials.NewTLS(manager.ClientConfig("server.test"))); got != "nobody" {
		t.Errorf("a client is taken for %q", got)
	}
	if got := callerNode(t, insecure.NewCredentials(), insecure.NewCredentials()); got != "nobody" {
		t.Errorf("plaintext is taken for %q", got)
	}
	if got, ok := PeerNode(context.Background(), "c1"); ok {
		t.Errorf("no call is taken for %q", got)
	}
	// A name that nobody has verified is none.
	open := raw(t, issue(ca, "server", nil), 0)
	open.ClientAuth = tls.RequireAnyClientCert
	if got := callerNode(t, credentials.NewTLS(open), credentials.NewTLS(pve1.ClientConfig("server.test"))); got != "nobody" {
		t.Errorf("an unverified certificate is taken for %q", got)
	}
}

// Agents of this cluster need not be in the list of clients.
func TestNodesAreAllowed(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil)
	tests := []struct {
		name    string
		cluster string
		client  *pair
		want    string // part of the server's error, "" for none
	}{
		{"node", "c1", issue(ca, "x", uris(t, NodeURI("c1", "pve1"))), ""},
		{"listed client", "c1", issue(ca, "manager", nil), ""},
		{"node while the cluster is not known", "", issue(ca, "x", uris(t, NodeURI("c1", "pve1"))), "is not allowed"},
		{"node of another cluster", "c1", issue(ca, "x", uris(t, NodeURI("c2", "pve1"))), "is not allowed"},
		{"two nodes", "c1", issue(ca, "x", uris(t, NodeURI("c1", "pve1"), NodeURI("c1", "pve2"))), "is not allowed"},
		{"client that is not listed", "c1", issue(ca, "x", uris(t, "pve-rigaud://c1/client/x")), "is not allowed"},
		{"node of another CA", "c1", issue(other, "x", uris(t, NodeURI("c1", "pve1"))), "unknown authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cluster := ""
			n := newNodeIn(t, func() string { return cluster }, ca.issue("server", nil), ca.pem, "manager")
			cluster = tt.cluster // it may become known later
			_, serverErr, _ := connect(t, n.ServerConfig(), raw(t, tt.client, 0))
			if tt.want == "" {
				if serverErr != nil {
					t.Errorf("refused: %v", serverErr)
				}
				return
			}
			if serverErr == nil || !strings.Contains(serverErr.Error(), tt.want) {
				t.Errorf("got %v, want %q", serverErr, tt.want)
			}
		})
	}
}

// Which servers are believed to be a node's agent.
func TestPeerTakesAndRefuses(t *testing.T) {
	ca, other := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil)
	elsewhere := func(c *x509.Certificate) { // neither its name nor its address is the one dialled
		c.DNSNames, c.IPAddresses = []string{"other.test"}, nil
	}
	with := func(changes ...func(*x509.Certificate)) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for _, change := range changes {
				change(c)
			}
		}
	}
	pve2 := uris(t, NodeURI("c1", "pve2"))
	between := newAuthority(t, "between", ca)
	chained := between.issue("chained", pve2)
	chained.cert = append(chained.cert, between.pem...)
	tests := []struct {
		name    string
		server  *pair
		cluster string
		want    string // part of the client's error
	}{
		{name: "the node", server: issue(ca, "s", pve2), cluster: "c1"},
		{name: "the node at another address", server: issue(ca, "s", with(pve2, elsewhere)), cluster: "c1"},
		{name: "through an intermediate CA", server: &chained, cluster: "c1"},
		{name: "another node", server: issue(ca, "s", uris(t, NodeURI("c1", "pve3"))), cluster: "c1", want: "is for [\"pve-rigaud://c1/node/pve3\""},
		{name: "two nodes", server: issue(ca, "s", with(pve2, uris(t, NodeURI("c1", "pve3")))), cluster: "c1", want: "not for pve-rigaud://c1/node/pve2"},
		{name: "another cluster", server: issue(ca, "s", uris(t, NodeURI("c2", "pve2"))), cluster: "c1", want: "not for pve-rigaud://c1/node/pve2"},
		{name: "a cluster without a name", server: issue(ca, "s", pve2), want: "not for"},
		{name: "no node", server: issue(ca, "pve2", func(c *x509.Certificate) { c.DNSNames = []string{"pve2"} }), cluster: "c1", want: "not for pve-rigaud://c1/node/pve2"},
		{name: "another CA", server: issue(other, "s", pve2), cluster: "c1", want: "unknown authority"},
		{name: "expired", server: issue(ca, "s", with(pve2, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), cluster: "c1", want: "expired"},
		{
			name: "for clients only", cluster: "c1", want: "incompatible key usage",
			server: issue(ca, "s", with(pve2, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client := newNode(t, ca.issue("client", nil), ca.pem)
			server := raw(t, tt.server, 0)
			server.ClientAuth = tls.RequireAnyClientCert
			s, serverErr, clientErr := connect(t, server, client.PeerConfig("pve2", tt.cluster))
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

func TestPeerRefusesOldTLS(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	client := newNode(t, ca.issue("client", nil), ca.pem)
	server := raw(t, issue(ca, "s", uris(t, NodeURI("c1", "pve2"))), tls.VersionTLS12)
	if _, _, err := connect(t, server, client.PeerConfig("pve2", "c1")); err == nil {
		t.Error("TLS 1.2 is taken")
	}
}

// Two agents go on talking while certificates and CA change under both, one
// file at a time, and a certificate becomes that of another node.
func TestPeersAcrossRotation(t *testing.T) {
	oldCA, newCA := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil)
	first, second := uris(t, NodeURI("c1", "pve1")), uris(t, NodeURI("c1", "pve2"))
	in := func() string { return "c1" }
	pve1 := newNodeIn(t, in, oldCA.issue("old", first), oldCA.pem, "manager")
	pve2 := newNodeIn(t, in, oldCA.issue("old", second), oldCA.pem, "manager")
	listen, dial := pve2.ServerConfig(), pve1.PeerConfig("pve2", "c1")
	standing := mustConnect(t, listen, dial)
	talk := func(wantServer, wantClient string) {
		t.Helper()
		s := mustConnect(t, listen, dial)
		if got := s.client.ConnectionState().PeerCertificates[0].Subject.CommonName; got != wantServer {
			t.Errorf("pve2 shows %q", got)
		}
		if got := s.server.ConnectionState().PeerCertificates[0].Subject.CommonName; got != wantClient {
			t.Errorf("pve1 shows %q", got)
		}
	}
	both := append(append([]byte(nil), oldCA.pem...), newCA.pem...)
	pve1.rotate(pair{}, both)
	pve2.rotate(pair{}, both)
	talk("old", "old")
	pve2.rotate(newCA.issue("new", second), nil)
	talk("new", "old")
	pve1.rotate(newCA.issue("new", first), nil)
	talk("new", "new")
	pve1.rotate(pair{}, newCA.pem)
	pve2.rotate(pair{}, newCA.pem)
	talk("new", "new")
	if _, _, err := connect(t, raw(t, issue(oldCA, "old", second), 0), dial); err == nil {
		t.Error("an agent of the old CA is believed")
	}
	if _, err, _ := connect(t, listen, raw(t, issue(oldCA, "old", first), 0)); err == nil {
		t.Error("an agent of the old CA is let in")
	}
	pve2.rotate(newCA.issue("new", uris(t, NodeURI("c1", "pve3"))), nil)
	if _, _, err := connect(t, listen, dial); err == nil {
		t.Error("pve3 is believed to be pve2")
	}
	standing.echo(t)
}
