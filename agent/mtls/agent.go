package mtls

import (
	"context"
	"strings"
)

// IsAgent reports whether the caller's certificate is that of some node's agent, of whatever cluster. Which node's, and
// whether it is one of ours, PeerNode tells.
func IsAgent(ctx context.Context) bool {
	cert, ok := clientCertificate(ctx)
	if !ok {
		return false
	}
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme && strings.HasPrefix(u.Path, nodePath) {
			return true
		}
	}
	return false
}
