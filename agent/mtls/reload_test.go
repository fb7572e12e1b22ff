package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// shown is the certificate the server shows to a client, by its CN.
func shown(t *testing.T, n *node, client *tls.Config) string {
	t.Helper()
	s := mustConnect(t, n.ServerConfig(), client)
	return s.client.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// Everything changes under one config and one standing connection.
func TestRotation(t *testing.T) {
	oldCA, newCA := newAuthority(t, "old", nil), newAuthority(t, "new", nil)
	server := newNode(t, oldCA.issue("old server", nil), oldCA.pem)
	client := newNode(t, oldCA.issue("old client", nil), oldCA.pem)
	listen, dial := server.ServerConfig(), client.ClientConfig("server.test")
	standing := mustConnect(t, listen, dial)

	// The new CA comes first, beside the old one; nobody is cut off.
	both := append(append([]byte(nil), oldCA.pem...), newCA.pem...)
	server.rotate(pair{}, both)
	client.rotate(pair{}, both)
	mustConnect(t, listen, dial)
	server.rotate(newCA.issue("new server", nil), nil)
	mustConnect(t, listen, dial)
	client.rotate(newCA.issue("new client", nil), nil)
	s := mustConnect(t, listen, dial)
	if got := s.client.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "new server" {
		t.Errorf("the server shows %q", got)
	}
	if got := s.server.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "new client" {
		t.Errorf("the client shows %q", got)
	}

	// The old CA goes: its clients are refused, its servers not believed.
	server.rotate(pair{}, newCA.pem)
	client.rotate(pair{}, newCA.pem)
	mustConnect(t, listen, dial)
	if _, err, _ := connect(t, listen, raw(t, issue(oldCA, "old client", nil), 0)); err == nil {
		t.Error("a client of the old CA is taken")
	}
	if _, _, err := connect(t, raw(t, issue(oldCA, "old server", nil), 0), dial); err == nil {
		t.Error("a server of the old CA is believed")
	}
	standing.echo(t)
	if got := server.Expiry(); !got.Equal(server.latest().cert.Leaf.NotAfter) {
		t.Errorf("expiry %v", got)
	}
	for _, line := range append(server.log.lines(), client.log.lines()...) {
		if !strings.Contains(line, "level=INFO") {
			t.Errorf("logged %s", line)
		}
	}
}

func TestFilesAreReadOnceASecond(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("a", nil), ca.pem)
	client := raw(t, issue(ca, "client", nil), 0)
	n.write(ca.issue("b", nil), nil)
	n.clock.advance(checkEvery - time.Nanosecond)
	if got := shown(t, n, client); got != "a" {
		t.Errorf("the server shows %q too early", got)
	}
	n.clock.advance(time.Nanosecond)
	if got := shown(t, n, client); got != "b" {
		t.Errorf("the server still shows %q", got)
	}
}

// Files that cannot be used leave the old ones in use, and one line in the log.
func TestBrokenFiles(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	good, next := ca.issue("good", nil), ca.issue("next", nil)
	tests := []struct {
		name  string
		spoil func(n *node)
		want  string
	}{
		{"garbage", func(n *node) { n.write(pair{cert: []byte("garbage")}, nil) }, "failed to find any PEM data"},
		{"cut short", func(n *node) { n.write(pair{cert: next.cert[:len(next.cert)/2]}, nil) }, "failed to find any PEM data"},
		{"empty key", func(n *node) { n.write(pair{key: []byte{}}, nil) }, "failed to find any PEM data"},
		{"mixed: new certificate, old key", func(n *node) { n.write(pair{cert: next.cert}, nil) }, "does not match"},
		{"mixed: old certificate, new key", func(n *node) { n.write(pair{key: next.key}, nil) }, "does not match"},
		{"CA without certificate", func(n *node) { n.write(pair{}, []byte("x")) }, "no certificate in it"},
		{"too large", func(n *node) { n.write(pair{}, make([]byte, maxFile+1)) }, "larger than 1 MiB"},
		{"gone", func(n *node) { _ = os.Remove(n.cfg.Key) }, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, good, ca.pem)
			client := raw(t, issue(ca, "client", nil), 0)
			tt.spoil(n)
			for range 3 {
				n.clock.advance(checkEvery)
				if got := shown(t, n, client); got != "good" {
					t.Errorf("the server shows %q", got)
				}
			}
			lines := n.log.lines()
			if len(lines) != 1 || !strings.Contains(lines[0], tt.want) || !strings.Contains(lines[0], "level=ERROR") {
				t.Errorf("want one line with %q, got %q", tt.want, lines)
			}
			if _, err := New(n.config()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New says %v", err)
			}

			n.rotate(next, ca.pem)
			if got := shown(t, n, client); got != "next" {
				t.Errorf("after the repair the server shows %q", got)
			}
			n.rotate(pair{cert: []byte("garbage")}, nil)
			shown(t, n, client)
			if lines := n.log.lines(); len(lines) != 3 {
				t.Errorf("want a line each for broken, used, broken again; got %q", lines)
			}
		})
	}
}

// Restored by its old contents, the broken file is forgotten.
func TestBrokenAndRestored(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	good := ca.issue("good", nil)
	n := newNode(t, good, ca.pem)
	for range 2 {
		n.rotate(pair{cert: []byte("garbage")}, nil)
		n.latest()
		n.rotate(good, nil)
		n.latest()
	}
	if lines := n.log.lines(); len(lines) != 2 {
		t.Errorf("got %q", lines)
	}
}

// A file of the same size and time is new all the same.
func TestSameSizeAndTime(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("a", nil), ca.pem)
	path := filepath.Join(n.dir, "ca.crt")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	swapped := append([]byte(nil), ca.pem...)
	swapped[len(swapped)-1] = ' ' // the last line end: still a certificate
	n.rotate(pair{}, swapped)
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	old := n.current.Load()
	if n.latest() == old {
		t.Error("not noticed")
	}
}

// Handshakes go on while files change under them.
func TestConcurrentHandshakes(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	server := newNode(t, ca.issue("server", nil), ca.pem)
	client := newNode(t, ca.issue("client", nil), ca.pem)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				s, serverErr, clientErr := connect(t, server.ServerConfig(), client.ClientConfig("server.test"))
				if err := errors.Join(serverErr, clientErr); err != nil {
					t.Error(err)
				}
				s.close()
			}
		})
	}
	for range 10 {
		server.rotate(ca.issue("server", nil), nil)
		client.rotate(ca.issue("client", nil), nil)
	}
	wg.Wait()
}

func TestNewNamesTheFile(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		n := newNode(t, ca.issue("server", nil), ca.pem)
		path := filepath.Join(n.dir, name)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := New(n.config()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestKeyForEverybody(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("server", nil), ca.pem)
	if len(n.log.lines()) != 0 {
		t.Errorf("got %q", n.log.lines())
	}
	if err := os.Chmod(filepath.Join(n.dir, "tls.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(n.config()); err != nil {
		t.Fatal(err)
	}
	if lines := n.log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") {
		t.Errorf("got %q", lines)
	}
	without := n.config()
	without.Log = nil
	if _, err := New(without); err != nil {
		t.Error(err)
	}
}

// An expired certificate of ours is used all the same: the peer decides.
func TestOwnCertificateExpired(t *testing.T) {
	ca := newAuthority(t, "ca", nil)
	n := newNode(t, ca.issue("server", nil), ca.pem)
	n.rotate(ca.issue("expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), nil)
	if got := shown(t, n, raw(t, issue(ca, "client", nil), 0)); got != "expired" || n.Expiry().After(time.Now()) {
		t.Errorf("shows %q until %v", got, n.Expiry())
	}
}
