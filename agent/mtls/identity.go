package mtls

import (
	"context"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer says who calls: the first URI SAN of the client's certificate, else its
// first DNS SAN, else its CN. It is false where no certificate was verified:
// plaintext, or no gRPC call at all.
func Peer(ctx context.Context) (identity string, ok bool) {
	cert, ok := clientCertificate(ctx)
	if !ok {
		return "", false
	}
	all := names(cert)
	if len(all) == 0 {
		return "", false
	}
	return all[0], true
}

// PeerNode is the node of cluster whose agent calls, by its certificate. If the
// cluster has such a node is for the caller to see in .members.
func PeerNode(ctx context.Context, cluster string) (node string, ok bool) {
	cert, ok := clientCertificate(ctx)
	if !ok {
		return "", false
	}
	return nodeOf(cert, cluster)
}

// clientCertificate is that of a gRPC call, if it was verified.
func clientCertificate(ctx context.Context) (*x509.Certificate, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, false
	}
	return info.State.VerifiedChains[0][0], true
}

// What the URI of a node looks like: pve-rigaud://<cluster>/node/<name>.
const (
	uriScheme = "pve-rigaud"
	nodePath  = "/node/"
)

// NodeURI is the URI SAN by which a certificate is that of a node's agent.
func NodeURI(cluster, node string) string {
	u := url.URL{Scheme: uriScheme, Host: cluster, Path: nodePath + node, RawPath: nodePath + url.PathEscape(node)}
	return u.String()
}

// nodeOf is the node of cluster that a certificate is for: it must hold one
// node's URI, of exactly that form, and of no other node.
func nodeOf(cert *x509.Certificate, cluster string) (node string, ok bool) {
	if cluster == "" {
		return "", false
	}
	for _, u := range cert.URIs {
		name, isNode := strings.CutPrefix(u.Path, nodePath)
		if u.Scheme != uriScheme || !isNode {
			continue
		}
		if ok || name == "" || u.String() != NodeURI(cluster, name) {
			return "", false
		}
		node, ok = name, true
	}
	return node, ok
}

// names lists what a certificate calls its holder, the best name first.
func names(cert *x509.Certificate) []string {
	var all []string
	for _, u := range cert.URIs {
		all = append(all, u.String())
	}
	all = append(all, cert.DNSNames...)
	all = append(all, cert.Subject.CommonName)
	return slices.DeleteFunc(all, func(name string) bool { return name == "" })
}

// refusals keeps a client that tries again and again from filling the log.
type refusals struct {
	mu   sync.Mutex
	last string    // guarded by mu
	at   time.Time // guarded by mu
}

// worthALine says whether this refusal is news: another client, or a minute
// after the last line.
func (r *refusals) worthALine(who string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if who == r.last && now.Sub(r.at) < time.Minute {
		return false
	}
	r.last, r.at = who, now
	return true
}
