package forward

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const (
	// maxHops is how many nodes are asked for one request that belongs to one.
	maxHops = 2
	// maxChoices is how many are asked that were chosen.
	maxChoices = 4
)

// answerTypes finds the type of each method's answer by the services'
// descriptors, which come with their generated code.
func answerTypes(services []string) map[string]protoreflect.MessageType {
	types := make(map[string]protoreflect.MessageType)
	for _, name := range services {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			continue // request answers that
		}
		service, ok := d.(protoreflect.ServiceDescriptor)
		if !ok {
			continue
		}
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			if t, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName()); err == nil {
				types["/"+name+"/"+string(m.Name())] = t
			}
		}
	}
	return types
}

// routed says whether requests of a method are the Router's.
func (f *Forwarder) routed(method string) bool {
	if _, known := f.answers[method]; known {
		return true
	}
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return slices.Contains(f.cfg.Services, service)
}

// Unary decides for each request whether it is handled here or by another
// node's agent.
func (f *Forwarder) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, marked, err := f.received(ctx)
		if err != nil {
			return nil, err
		}
		r := request{Forwarder: f, method: info.FullMethod, req: req, handler: handler}
		switch routed := f.routed(info.FullMethod); {
		case marked && routed:
			return r.signed(ctx, r.here)
		case marked:
			return r.signed(ctx, func(ctx context.Context) (any, error) { return handler(ctx, req) })
		case routed:
			return r.anywhere(ctx)
		}
		return handler(ctx, req)
	}
}

// A request is one that is routed.
type request struct {
	*Forwarder
	method  string
	req     any
	handler grpc.UnaryHandler
}

// signed lets answer answer a forwarded request, and puts this node's name
// beside an error, also one that a panic becomes: without it the sender would
// take it for the transport's.
func (r request) signed(ctx context.Context, answer func(context.Context) (any, error)) (resp any, err error) {
	fine := false
	defer func() {
		if !fine {
			_ = grpc.SetTrailer(ctx, metadata.Pairs(answeredKey, r.cfg.Node)) // it fails outside of a call only
		}
	}()
	resp, err = answer(ctx)
	fine = err == nil
	return resp, err
}

// here handles a forwarded request, or says where it belongs.
func (r request) here(ctx context.Context) (any, error) {
	way, err := r.cfg.Router.Route(ctx, r.method, r.req)
	if err != nil {
		return nil, err
	}
	if way.Node != r.cfg.Node {
		return nil, Elsewhere(way.Node, "this belongs to node "+way.Node)
	}
	return r.handler(ctx, r.req)
}

// anywhere asks the node whose the request is. A node that sends it elsewhere
// has done nothing, so another can be asked.
func (r request) anywhere(ctx context.Context) (any, error) {
	way, err := r.cfg.Router.Route(ctx, r.method, r.req)
	for hop := 1; ; hop++ {
		if err != nil {
			return nil, err
		}
		resp, answer := r.at(ctx, way)
		hint, elsewhere := IsElsewhere(answer)
		if !elsewhere {
			return resp, answer
		}
		switch {
		case way.Note != "" && hop == maxChoices:
			return nil, status.Errorf(codes.Aborted, "no node was found that takes it: node %s is the last of %d that were asked and would not (%s); try again", way.Node, hop, status.Convert(answer).Message())
		case way.Note == "" && hop >= maxHops:
			return nil, status.Errorf(codes.Aborted, "it keeps moving: node %s, the last of %d that were asked, sends it elsewhere too (%s); try again", way.Node, hop, status.Convert(answer).Message())
		}
		way, err = r.next(ctx, way.Node, hint)
	}
}

// next is where a request goes that node sends elsewhere. The look-up counts,
// unless it still says the same: then the node that was named is the better
// guess.
func (r request) next(ctx context.Context, node, hint string) (Way, error) {
	if err := r.cfg.Router.Refresh(ctx); err != nil {
		r.cfg.Log.WarnContext(ctx, "cannot look anew for the node of a request", "rpc", r.method, "error", err)
	}
	next, err := r.cfg.Router.Route(ctx, r.method, r.req)
	if hint != "" && (err != nil || next.Node == node) {
		return Way{Node: hint}, nil
	}
	return next, err
}

// at lets one node answer the request: us or another. Of a choice the Router
// learns what it came to.
func (r request) at(ctx context.Context, way Way) (any, error) {
	if way.Note == "" {
		return r.ask(ctx, way.Node)
	}
	ctx = context.WithValue(ctx, noteOf{}, way.Note)
	resp, err := r.asked(ctx, way.Node)
	r.cfg.Router.Answered(ctx, way, err)
	if down, ok := errors.AsType[*PeerError](err); ok {
		if !down.Sent {
			return nil, Elsewhere("", down.Error())
		}
		return r.unreachable(ctx, down)
	}
	return resp, err
}

// ask is asked, with an answer for a node that cannot be.
func (r request) ask(ctx context.Context, node string) (any, error) {
	resp, err := r.asked(ctx, node)
	if down, ok := errors.AsType[*PeerError](err); ok {
		return r.unreachable(ctx, down)
	}
	return resp, err
}

func (r request) unreachable(ctx context.Context, down *PeerError) (any, error) {
	return r.cfg.Router.Unreachable(ctx, Unreachable{
		Method: r.method, Req: r.req, Node: down.Node, Since: down.Since, Err: down.Err, Sent: down.Sent,
	})
}

// asked is what a node answers: we or another.
func (r request) asked(ctx context.Context, node string) (any, error) {
	if node == r.cfg.Node {
		return r.handler(ctx, r.req)
	}
	answer, known := r.answers[r.method]
	req, isProto := r.req.(proto.Message)
	if !known || !isProto {
		return nil, status.Errorf(codes.Internal, "forward to %s: %s is not described in this program", node, r.method)
	}
	resp := answer.New().Interface()
	if err := r.exchange(ctx, node, r.method, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}
