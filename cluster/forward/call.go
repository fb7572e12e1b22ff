package forward

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// maxMargin is the most by which another agent's deadline is before ours, so
// that there is time to make something of its answer.
const maxMargin = 500 * time.Millisecond

// PeerError says that a node did not answer a call. Answers that are errors are
// gRPC status errors instead.
type PeerError struct {
	Node string
	// Since is when the node first failed to answer after it last did. It is
	// zero if the node answers, and only this call was not answered in time.
	Since time.Time
	Sent  bool // the call may have been carried out
	Err   error
}

func (e *PeerError) Error() string {
	text := "ask node " + e.Node
	if !e.Since.IsZero() {
		text += ", which has not answered since " + e.Since.UTC().Format(time.RFC3339)
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }

// GRPCStatus makes it FailedPrecondition to a client: a node that is down is
// not this endpoint's failure.
func (e *PeerError) GRPCStatus() *status.Status {
	return status.New(codes.FailedPrecondition, e.Error())
}

// Call asks the agent of node for its part of an answer (Part is true there): it
// handles the call or refuses, but forwards it to nobody. The client it is made
// for is that of ctx. Errors are a *PeerError, the status the node answers
// (prefixed with its name), or the status for ctx's end.
func (f *Forwarder) Call(ctx context.Context, node, method string, req, resp proto.Message) error {
	return f.exchange(context.WithValue(ctx, partOf{}, true), node, method, req, resp)
}

// exchange makes one call to the agent of node. What was never sent is tried
// once more, because the connection that was kept for it may have ended unseen;
// what may have been carried out is not.
func (f *Forwarder) exchange(ctx context.Context, node, method string, req, resp proto.Message) error {
	l := f.link(node)
	l.inFlight.Add(1)
	defer l.inFlight.Add(-1)
	out := f.marked(ctx)
	for again := true; ; again = false {
		c, err := l.acquire(ctx)
		if err != nil {
			return l.unanswered(ctx, err, false, l.failingSince())
		}
		r := c.call(out, method, req, resp)
		switch r.kind {
		case answered:
			l.answered(ctx)
			return from(node, r.err)
		case late:
			return l.unanswered(ctx, r.err, r.sent, time.Time{})
		case lost:
		}
		since := l.lost(ctx, c, r.err)
		if r.sent || !again {
			return l.unanswered(ctx, r.err, r.sent, since)
		}
	}
}

// unanswered is the error of a call that got no answer. If that is because the
// caller waits no longer, it says no more than that.
func (l *link) unanswered(ctx context.Context, err error, sent bool, since time.Time) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	l.failed.Add(1)
	return &PeerError{Node: l.node, Since: since, Sent: sent, Err: err}
}

// from is what node answers, with its name before the message.
func from(node string, err error) error {
	if err == nil {
		return nil
	}
	p := status.Convert(err).Proto()
	if prefix := node + ": "; !strings.HasPrefix(p.GetMessage(), prefix) {
		p.Message = prefix + p.GetMessage()
	}
	return status.FromProto(p).Err()
}

// A reply is what became of a call on one connection.
type reply struct {
	kind replyKind
	sent bool // the node may have got the call
	err  error
}

type replyKind int

const (
	answered replyKind = iota // by the node: err is its status, nil for OK
	late                      // the time was up, and the connection is well
	lost                      // the connection is of no use any more
)

// call makes one call and waits for its end.
func (c *conn) call(ctx context.Context, method string, req, resp proto.Message) reply {
	var trailer metadata.MD
	var to peer.Peer // set if the call has got as far as a stream
	err := c.cc.Invoke(withMargin(ctx), method, req, resp, grpc.Trailer(&trailer), grpc.Peer(&to))
	r := reply{kind: classify(err, trailer), sent: to.Addr != nil, err: err}
	if dead := c.end(r.kind == answered); r.kind != answered {
		if dead != nil {
			r.kind, r.err = lost, dead
		} else {
			r.err = errors.New(status.Convert(err).Message())
		}
	}
	return r
}

// classify tells a status that was answered from one that gRPC has made here.
// An answer without the trailer is from a server that did not get as far as a
// handler, such as Unimplemented.
func classify(err error, trailer metadata.MD) replyKind {
	if err == nil || len(trailer.Get(answeredKey)) > 0 {
		return answered
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return lost
	case codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return late
	default:
		return answered
	}
}

// earlier is a context that says it ends at deadline, and ends when Context
// does: so the other side stops in time for its last word to be heard here.
type earlier struct {
	context.Context
	deadline time.Time
}

func (e earlier) Deadline() (time.Time, bool) { return e.deadline, true }

// withMargin tells the other side a deadline a little before ctx's.
func withMargin(ctx context.Context) context.Context {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx
	}
	return earlier{ctx, deadline.Add(-min(time.Until(deadline)/10, maxMargin))}
}
