package forward

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What an errdetails.ErrorInfo holds that says: not here.
const (
	elsewhereReason = "TRY_ELSEWHERE"
	elsewhereDomain = "pve-rigaud"
	elsewhereNode   = "node" // key of its metadata
)

// Elsewhere is the answer of a node that did nothing of what it was asked,
// because the request belongs to another one; node is "" if it does not know
// which. It is a gRPC status error with code Aborted.
func Elsewhere(node, msg string) error {
	st := status.New(codes.Aborted, msg)
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{
		Reason: elsewhereReason, Domain: elsewhereDomain, Metadata: map[string]string{elsewhereNode: node},
	})
	if err != nil { // a detail that is no message; ours is
		return st.Err()
	}
	return detailed.Err()
}

// IsElsewhere says whether err, or what it wraps, is from Elsewhere.
func IsElsewhere(err error) (node string, ok bool) {
	st, isStatus := status.FromError(err)
	if !isStatus || st.Code() != codes.Aborted {
		return "", false
	}
	for _, d := range st.Details() {
		info, isInfo := d.(*errdetails.ErrorInfo)
		if isInfo && info.GetReason() == elsewhereReason && info.GetDomain() == elsewhereDomain {
			return info.GetMetadata()[elsewhereNode], true
		}
	}
	return "", false
}
