// Package mtls holds this node's certificate, key and CA, notices when their
// files change, and says who a peer is.
//
// TLS is 1.3 or nothing, both sides show a certificate, and a client may be
// one of a list. New files are used for new handshakes; connections that stand
// keep what they were made with.
package mtls

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// checkEvery is how often handshakes look at the files, at most.
	checkEvery = time.Second
	// maxFile is far more than a chain of certificates needs.
	maxFile = 1 << 20
)

// Config says where the files are and whose calls are taken.
type Config struct {
	// Cert, Key and CA are PEM files: our certificate with its chain, its
	// private key, and the CAs that sign our peers.
	Cert, Key, CA string
	// AllowedSANs are the clients that may connect: a URI SAN, a DNS SAN or the
	// CN of their certificate, exact match. Empty: every client of the CA.
	AllowedSANs []string
	// Cluster is the name of the cluster we are in, "" while it is not known.
	// The agents of its nodes may connect without being in AllowedSANs. nil: it
	// is never known.
	Cluster func() string
	// Log gets a line for each change of the files and for clients refused.
	Log *slog.Logger
}

// Holder is one identity, always that of the newest usable files.
type Holder struct {
	cfg     Config
	now     func() time.Time
	current atomic.Pointer[material]

	// mu guards the fields below; a handshake that finds it taken goes on with
	// current, because somebody is looking at the files already.
	mu      sync.Mutex
	checked time.Time
	// rejected is what was last wrong with the files, so that it is logged once.
	rejected string

	refusals refusals
}

// material is what one state of the three files gives. It never changes.
type material struct {
	sum    [sha256.Size]byte
	cert   *tls.Certificate
	roots  *x509.CertPool
	server *tls.Config
}

// New reads the files. It fails if they cannot be used together.
func New(cfg Config) (*Holder, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Cluster == nil {
		cfg.Cluster = func() string { return "" }
	}
	h := &Holder{cfg: cfg, now: time.Now}
	m, err := h.load()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(cfg.Key); err == nil && info.Mode().Perm()&0o007 != 0 {
		cfg.Log.Warn("everybody on this machine can use the private key", "file", cfg.Key, "mode", info.Mode().Perm().String())
	}
	h.checked = h.now()
	h.current.Store(m)
	return h, nil
}

// Expiry is when our certificate ends.
func (h *Holder) Expiry() time.Time { return h.latest().cert.Leaf.NotAfter }

// latest gives the newest usable material. It reads the files at most once a
// second. Reading beats comparing times and sizes: it is as cheap as a
// handshake's rest, and a new file of the same second and size counts.
func (h *Holder) latest() *material {
	if !h.mu.TryLock() {
		return h.current.Load()
	}
	defer h.mu.Unlock()
	if now := h.now(); now.Sub(h.checked) >= checkEvery {
		h.checked = now
		h.lockedReload()
	}
	return h.current.Load()
}

// lockedReload replaces current if the files changed and are usable. Files in
// the middle of a change (a new certificate beside the old key) are not.
func (h *Holder) lockedReload() {
	m, err := h.load()
	switch old := h.current.Load(); {
	case err != nil:
		if text := err.Error(); text != h.rejected {
			h.rejected = text
			h.cfg.Log.Error("new certificate files cannot be used, the old ones stay in use",
				"error", err, "not_after", old.cert.Leaf.NotAfter)
		}
	case m.sum != old.sum:
		h.rejected = ""
		h.current.Store(m)
		h.cfg.Log.Info("certificate files have changed and are in use",
			"subject", m.cert.Leaf.Subject.String(), "not_after", m.cert.Leaf.NotAfter)
	default:
		h.rejected = ""
	}
}

// load reads the three files and makes them one material.
func (h *Holder) load() (*material, error) {
	cert, err := read("certificate", h.cfg.Cert)
	if err != nil {
		return nil, err
	}
	key, err := read("private key", h.cfg.Key)
	if err != nil {
		return nil, err
	}
	ca, err := read("CA", h.cfg.CA)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("use certificate %s with private key %s: %w", h.cfg.Cert, h.cfg.Key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("use CA %s: no certificate in it", h.cfg.CA)
	}
	m := &material{sum: sum(cert, key, ca), cert: &pair, roots: roots}
	m.server = h.serverConfig(m)
	return m, nil
}

// read reads one file; what says in errors which one.
func read(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("read %s: %s is larger than 1 MiB", what, path)
	}
	return data, nil
}

// sum tells one state of the files from another.
func sum(parts ...[]byte) [sha256.Size]byte {
	var all []byte
	for _, p := range parts {
		all = binary.BigEndian.AppendUint64(all, uint64(len(p)))
		all = append(all, p...)
	}
	return sha256.Sum256(all)
}

// ServerConfig is for a listener. Each handshake uses the newest files; the
// client must show a certificate that the CA signed for clients, and be allowed.
func (h *Holder) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return h.latest().server, nil
		},
	}
}

// serverConfig is the part of ServerConfig that depends on the files. There
// are no tickets: a resumed session would bypass a CA that was taken away.
func (h *Holder) serverConfig(m *material) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		NextProtos:             []string{"h2"},
		Certificates:           []tls.Certificate{*m.cert},
		ClientCAs:              m.roots,
		SessionTicketsDisabled: true,
		VerifyConnection:       h.allowed,
	}
}

// ClientConfig is for dialling a server whose certificate must hold serverName
// (a DNS name or an address). Each handshake uses the newest files.
func (h *Holder) ClientConfig(serverName string) *tls.Config {
	c := h.clientConfig(func(cs tls.ConnectionState) error {
		if serverName == "" {
			return errors.New("verify server: no name to look for in its certificate")
		}
		return h.verifyServer(cs, serverName, serverName)
	})
	c.ServerName = serverName
	return c
}

// PeerConfig is for dialling the agent of a node, whose certificate must hold
// the node's URI, whatever its address is. Each handshake uses the newest files.
func (h *Holder) PeerConfig(node, cluster string) *tls.Config {
	return h.clientConfig(func(cs tls.ConnectionState) error {
		if err := h.verifyServer(cs, "of node "+node, ""); err != nil {
			return err
		}
		cert := cs.PeerCertificates[0]
		if is, ok := nodeOf(cert, cluster); !ok || is != node {
			return fmt.Errorf("verify server of node %s: its certificate is for %q, not for %s", node, names(cert), NodeURI(cluster, node))
		}
		return nil
	})
}

// clientConfig lets verify decide about the server.
func (h *Holder) clientConfig(verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return h.latest().cert, nil
		},
		// RootCAs could not change after the config is made. So crypto/tls is
		// told not to verify, and VerifyConnection does what it would have done.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection:   verify,
	}
}

// verifyServer does what crypto/tls does for a client that verifies. The server
// is called who in errors; its certificate must hold name, unless that is "".
func (h *Holder) verifyServer(cs tls.ConnectionState, who, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("verify server %s: it shows no certificate", who)
	}
	opts := x509.VerifyOptions{DNSName: name, Roots: h.latest().roots, CurrentTime: h.now(), Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("verify server %s: %w", who, err)
	}
	return nil
}

// allowed lets a verified client pass or not.
func (h *Holder) allowed(cs tls.ConnectionState) error {
	if len(h.cfg.AllowedSANs) == 0 {
		return nil
	}
	cert := cs.VerifiedChains[0][0] // crypto/tls has verified: RequireAndVerifyClientCert
	if _, isNode := nodeOf(cert, h.cfg.Cluster()); isNode {
		return nil
	}
	who := names(cert)
	for _, name := range who {
		if slices.Contains(h.cfg.AllowedSANs, name) {
			return nil
		}
	}
	if h.refusals.worthALine(fmt.Sprint(who), h.now()) {
		h.cfg.Log.Warn("client refused: none of its names is allowed", "names", who)
	}
	return fmt.Errorf("client %q is not allowed", who)
}
