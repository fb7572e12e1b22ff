package mtls

import (
	"context"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer says who calls: the first URI SAN of the client's certificate, else its
// first DNS SAN, else its CN. It is false where no certificate was verified:
// plaintext, or no gRPC call at all.
func Peer(ctx context.Context) (identity string, ok bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return "", false
	}
	all := names(info.State.VerifiedChains[0][0])
	if len(all) == 0 {
		return "", false
	}
	return all[0], true
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
