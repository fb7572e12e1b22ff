package snippet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

const (
	// callTime is how long another node's agent may take for one file.
	callTime = 5 * time.Second
	// patience is how long an agent is asked again that does not answer and always did; the pause in between doubles.
	patience    = 3 * time.Second
	patientStep = 100 * time.Millisecond
)

// send gives another node a snippet. That its agent does not answer is a gap and no error: every create of the cluster
// would fail else for one node without agent. A refusal is an error.
func (s *Store) send(ctx context.Context, node, volume string, data []byte) error {
	err := s.insist(ctx, node, volume, data)
	switch {
	case err == nil:
		s.close(ctx, node, volume)
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.Precondition, "write cloud-init snippets on node %s: %w", node, context.Cause(ctx))
	case unanswered(err):
		s.open(ctx, node, volume, err)
		return nil
	}
	why := strings.TrimPrefix(status.Convert(err).Message(), node+": ")
	return fault.New(fault.Precondition, "write cloud-init snippets on node %s: %s", node, why)
}

// insist puts a snippet on another node, and asks for a while an agent that does not answer: the network may have lost
// it. One that nobody listens for has not begun to look for what it lacks, and one that did not answer before will
// hardly now.
func (s *Store) insist(ctx context.Context, node, volume string, data []byte) error {
	until := time.Now().Add(patience)
	if s.isSilent(node) {
		until = time.Now()
	}
	for pause := patientStep; ; pause *= 2 {
		err := s.put(ctx, node, volume, data)
		switch {
		case ctx.Err() != nil:
			return err
		case !unanswered(err):
			s.silent(node, false)
			return err
		case errors.Is(err, syscall.ECONNREFUSED) || status.Code(err) == codes.Unimplemented || time.Now().Add(pause).After(until):
			s.silent(node, true)
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (s *Store) put(ctx context.Context, node, volume string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return s.cfg.Call(ctx, node, peerpb.Peer_PutSnippet_FullMethodName, &peerpb.PutSnippetRequest{Volume: volume, Content: data}, &peerpb.PutSnippetResponse{})
}

// get asks another node for a snippet.
func (s *Store) get(ctx context.Context, node, volume, file string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var resp peerpb.GetSnippetResponse
	err := s.cfg.Call(ctx, node, peerpb.Peer_GetSnippet_FullMethodName, &peerpb.GetSnippetRequest{Volume: volume}, &resp)
	s.silent(node, unanswered(err))
	if err == nil && fileOf(resp.GetContent()) != file {
		err = fmt.Errorf("%s: %s arrived with another content", node, file)
	}
	return resp.GetContent(), err
}

// unanswered reports that nothing is known of what a node has: its agent did not answer, does not know the question yet,
// or cannot see now who asks or where its files are.
func unanswered(err error) bool {
	if _, down := errors.AsType[*forward.PeerError](err); down {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Unimplemented, codes.PermissionDenied, codes.DeadlineExceeded, codes.Canceled:
		return true
	default:
		return false
	}
}
