package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// who serves one gRPC service that says what Peer says.
func who(t *testing.T, server, client credentials.TransportCredentials) (identity string, ok bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(server), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		id, ok := Peer(stream.Context())
		if ok {
			_ = stream.SetHeader(metadata.Pairs("ok", "yes"))
		}
		return stream.SendMsg(wrapperspb.String(id))
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
	var header metadata.MD
	if err := conn.Invoke(t.Context(), "/test.Who/Am", &emptypb.Empty{}, &answer, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	return answer.GetValue(), len(header.Get("ok")) == 1
}

func TestPeer(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	uri := func(all ...string) []*url.URL {
		var list []*url.URL
		for _, s := range all {
			list = append(list, parseURI(t, s))
		}
		return list
	}
	tests := []struct {
		name   string
		change func(*x509.Certificate)
		want   string
		ok     bool
	}{
		{"URI first", func(c *x509.Certificate) { c.URIs = uri("pve-rigaud://c1/node/pve1", "spiffe://b") }, "pve-rigaud://c1/node/pve1", true},
		{"then DNS name", func(c *x509.Certificate) { c.DNSNames = []string{"a.svc", "b.svc"} }, "a.svc", true},
		{"then common name", func(c *x509.Certificate) { c.DNSNames = nil }, "cn", true},
		{"no name", func(c *x509.Certificate) {
			c.DNSNames, c.Subject = nil, pkix.Name{Organization: []string{"o"}}
			c.EmailAddresses = []string{"a@b"}
		}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newNode(t, ca.issue("server", nil), ca.pem)
			client := newNode(t, ca.issue("cn", tt.change), ca.pem)
			got, ok := who(t, credentials.NewTLS(server.ServerConfig()), credentials.NewTLS(client.ClientConfig("server.test")))
			if got != tt.want || ok != tt.ok {
				t.Errorf("got %q, %v; want %q, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestPeerWithoutCertificate(t *testing.T) {
	if got, ok := who(t, insecure.NewCredentials(), insecure.NewCredentials()); ok || got != "" {
		t.Errorf("plaintext: got %q", got)
	}
	if got, ok := Peer(context.Background()); ok || got != "" {
		t.Errorf("no call: got %q", got)
	}
	// A certificate that nobody verified says nothing.
	ca := newAuthority(t, "ca", nil)
	client := newNode(t, ca.issue("client", nil), ca.pem)
	for _, auth := range []tls.ClientAuthType{tls.NoClientCert, tls.RequireAnyClientCert} {
		server := raw(t, issue(ca, "server", nil), 0)
		server.ClientAuth = auth
		got, ok := who(t, credentials.NewTLS(server), credentials.NewTLS(client.ClientConfig("server.test")))
		if ok || got != "" {
			t.Errorf("%v: got %q", auth, got)
		}
	}
}

// gRPC keeps working through a rotation of everything.
func TestGRPCAfterRotation(t *testing.T) {
	oldCA, newCA := newAuthority(t, "ca", nil), newAuthority(t, "ca", nil)
	server := newNode(t, oldCA.issue("server", nil), oldCA.pem)
	client := newNode(t, oldCA.issue("client", nil), oldCA.pem)
	listen, dial := credentials.NewTLS(server.ServerConfig()), credentials.NewTLS(client.ClientConfig("server.test"))
	for _, ca := range []*authority{oldCA, newCA} {
		server.rotate(ca.issue("server", nil), ca.pem)
		client.rotate(ca.issue("client", nil), ca.pem)
		if got, ok := who(t, listen, dial); !ok || got != "server.test" {
			t.Errorf("got %q, %v", got, ok)
		}
	}
}
