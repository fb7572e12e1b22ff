package forward

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// What agents tell each other beside requests and answers.
const (
	// markerKey holds the node that forwards. A request with it is never
	// forwarded again.
	markerKey = "pve-rigaud-forwarded-by"
	// clientKey holds the identity of the original client. It is binary because
	// names in certificates are UTF-8.
	clientKey = "pve-rigaud-client-bin"
	// answeredKey is in the trailer of each error that answers a marked request,
	// and holds the node that answers: so a status with it is the handler's, and
	// one without it is the transport's.
	answeredKey = "pve-rigaud-answered-by"
	// partKey is there when the agent that asks asks the others too, for their parts of one answer.
	partKey = "pve-rigaud-part"
	// noteKey holds the Note of the Way that the request came.
	noteKey = "pve-rigaud-note-bin"
)

// passedOn are the W3C's trace context, which goes where the request goes.
var passedOn = []string{"traceparent", "tracestate"}

// origin is where a forwarded request comes from.
type origin struct {
	node, client string
	part         bool
	note         string
}

// partOf is the key of a mark in a context: the call made with it is for a part
// of an answer.
type partOf struct{}

// originOf is the key of an origin in a context.
type originOf struct{}

// noteOf is the key of a Way's note in a context.
type noteOf struct{}

// Note is what the Router that chose this node said to the handler, "" if
// nothing was chosen.
func Note(ctx context.Context) string {
	if note, ok := ctx.Value(noteOf{}).(string); ok {
		return note
	}
	o, _ := ctx.Value(originOf{}).(origin)
	return o.note
}

// Client is the identity of the client whose request ctx is, as the agent says
// that has forwarded it. It is false if nobody has: then the direct caller is
// the client.
func Client(ctx context.Context) (string, bool) {
	o, ok := ctx.Value(originOf{}).(origin)
	return o.client, ok
}

// Part says whether the request that ctx is of asks only for what this node has
// of the answer: another agent asks all.
func Part(ctx context.Context) bool {
	o, _ := ctx.Value(originOf{}).(origin)
	return o.part
}

// Claimed is the node that the caller says to forward for, believed or not.
func Claimed(ctx context.Context) (node string, ok bool) {
	v := metadata.ValueFromIncomingContext(ctx, markerKey)
	if len(v) != 1 {
		return "", false
	}
	return v[0], true
}

// Forwarded says which node has forwarded the request that ctx is of.
func Forwarded(ctx context.Context) (from string, ok bool) {
	o, ok := ctx.Value(originOf{}).(origin)
	return o.node, ok
}

// received is the context of a request; of one with a marker that counts, ok is
// true, and the answer is going to say who gave it.
func (f *Forwarder) received(ctx context.Context) (_ context.Context, ok bool, err error) {
	if len(metadata.ValueFromIncomingContext(ctx, markerKey)) == 0 {
		return ctx, false, nil
	}
	node, isPeer := f.cfg.Peer(ctx)
	if !isPeer {
		return ctx, false, nil
	}
	client := metadata.ValueFromIncomingContext(ctx, clientKey)
	if len(client) != 1 {
		return ctx, false, status.Errorf(codes.FailedPrecondition, "node %s forwards this without saying for which client", node)
	}
	o := origin{node: node, client: client[0], part: len(metadata.ValueFromIncomingContext(ctx, partKey)) > 0}
	if note := metadata.ValueFromIncomingContext(ctx, noteKey); len(note) == 1 {
		o.note = note[0]
	}
	return context.WithValue(ctx, originOf{}, o), true, nil
}

// marked is ctx for a call to another agent.
func (f *Forwarder) marked(ctx context.Context) context.Context {
	client, ok := Client(ctx)
	if !ok {
		client = f.cfg.Client(ctx)
	}
	md := metadata.MD{markerKey: {f.cfg.Node}, clientKey: {client}}
	if _, part := ctx.Value(partOf{}).(bool); part {
		md[partKey] = []string{"1"}
	}
	if note, ok := ctx.Value(noteOf{}).(string); ok {
		md[noteKey] = []string{note}
	}
	for _, key := range passedOn {
		if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
			md[key] = v
		}
	}
	return metadata.NewOutgoingContext(ctx, md)
}
