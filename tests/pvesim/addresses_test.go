package pvesim_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

type members struct {
	Nodename string
	Cluster  struct {
		Name    string
		Quorate int
	}
	Nodelist map[string]struct {
		Online int
		IP     netip.Addr
	}
}

func readMembers(t *testing.T, n *pvesim.Node) members {
	t.Helper()
	var m members
	readJSON(t, filepath.Join(n.PMXCFS, ".members"), &m)
	return m
}

// TestAddresses: each node has an address of its own, and the same ports as the others.
func TestAddresses(t *testing.T) {
	a, b := startCluster(t, nil), startCluster(t, nil)
	seen := map[netip.Addr]bool{}
	for _, c := range []*pvesim.Cluster{a, b} {
		ports := map[string]bool{}
		for _, n := range c.Nodes() {
			if got := readMembers(t, c.Nodes()[0]).Nodelist[n.Name].IP; got != n.IP || !got.IsLoopback() || seen[got] {
				t.Errorf("%s: .members says %s, the node %s", n.Name, got, n.IP)
			}
			seen[n.IP] = true
			ports["grpc "+strings.TrimPrefix(n.GRPC, n.IP.String()+":")] = true
			ports["gossip "+strings.TrimPrefix(n.Gossip, n.IP.String()+":")] = true
			if !strings.HasPrefix(n.API(), "https://"+n.IP.String()+":") {
				t.Errorf("%s: API at %s", n.Name, n.API())
			}
		}
		if len(ports) != 2 {
			t.Errorf("ports %v, want one for gRPC and one for gossip", ports)
		}
	}
}

// TestAPIHost: addresses that are not this machine's, and the API at one that is.
func TestAPIHost(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) {
		cfg.Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.3")}
		cfg.APIHost = netip.MustParseAddr("127.0.0.1")
	})
	n := c.Node("pve2")
	if !strings.HasPrefix(n.API(), "https://127.0.0.1:") || n.GRPC != "10.99.0.2:9443" || n.Gossip != "10.99.0.2:7946" {
		t.Errorf("%s %s %s", n.API(), n.GRPC, n.Gossip)
	}
	newClient(t, c, "pve2").must("GET /nodes/pve2/status", "")
	b, err := os.ReadFile(n.AgentYAML)
	if err != nil || !strings.Contains(string(b), "endpoint: "+n.API()+"\n") || !strings.Contains(string(b), "insecure-anyway: true") {
		t.Errorf("%s %v", b, err)
	}
}

func TestTooFewAddresses(t *testing.T) {
	_, err := pvesim.New(pvesim.Config{Dir: "/tmp/x", Addresses: []netip.Addr{netip.MustParseAddr("127.9.9.1")}})
	if err == nil || !strings.Contains(err.Error(), "1 addresses for 3 nodes") {
		t.Errorf("%v", err)
	}
}

// TestAgentCertificates: a node's certificate names the node, a client's does not.
func TestAgentCertificates(t *testing.T) {
	dir := ""
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.TLS, dir = true, cfg.Dir })
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, n := range c.Nodes() {
		cert := certificate(t, filepath.Join(dir, "tls", n.Name))
		want := "pve-rigaud://" + readMembers(t, n).Cluster.Name + "/node/" + n.Name
		if len(cert.URIs) != 1 || cert.URIs[0].String() != want || !slices.Equal(cert.ExtKeyUsage, both) {
			t.Errorf("%s: %v %v, want %s", n.Name, cert.URIs, cert.ExtKeyUsage, want)
		}
		if err := cert.VerifyHostname(n.IP.String()); err != nil {
			t.Error(err)
		}
	}
	if cert := certificate(t, filepath.Join(dir, "tls", "client")); len(cert.URIs) != 0 {
		t.Errorf("client: %v", cert.URIs)
	}
}

func certificate(t *testing.T, base string) *x509.Certificate {
	t.Helper()
	if _, err := tls.LoadX509KeyPair(base+".crt", base+".key"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(base + ".crt")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
