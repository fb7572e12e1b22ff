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
	elsewhereNode   = "node" // keys of its metadata
	elsewhereFull   = "full"
)

// Elsewhere is the answer of a node that did nothing of what it was asked,
// because the request belongs to another one; node is "" if it does not know
// which. It is a gRPC status error with code Aborted.
func Elsewhere(node, msg string) error {
	return elsewhere(msg, map[string]string{elsewhereNode: node})
}

// Full is Elsewhere of a node that would do, but has no room; lacks says of
// what, in words.
func Full(lacks, msg string) error {
	return elsewhere(msg, map[string]string{elsewhereFull: lacks})
}

func elsewhere(msg string, data map[string]string) error {
	st := status.New(codes.Aborted, msg)
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: elsewhereReason, Domain: elsewhereDomain, Metadata: data})
	if err != nil { // a detail that is no message; ours is
		return st.Err()
	}
	return detailed.Err()
}

// IsElsewhere says whether err, or what it wraps, is from Elsewhere or Full.
func IsElsewhere(err error) (node string, ok bool) {
	data, ok := elsewhereData(err)
	return data[elsewhereNode], ok
}

// IsFull says whether err, or what it wraps, is from Full.
func IsFull(err error) (lacks string, ok bool) {
	data, _ := elsewhereData(err)
	lacks, ok = data[elsewhereFull]
	return lacks, ok
}

func elsewhereData(err error) (map[string]string, bool) {
	st, isStatus := status.FromError(err)
	if !isStatus || st.Code() != codes.Aborted {
		return nil, false
	}
	for _, d := range st.Details() {
		info, isInfo := d.(*errdetails.ErrorInfo)
		if isInfo && info.GetReason() == elsewhereReason && info.GetDomain() == elsewhereDomain {
			return info.GetMetadata(), true
		}
	}
	return nil, false
}
