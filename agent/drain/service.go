package drain

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// messages is a message of a call.
type messages = proto.Message

// unanswered reports whether an error says that a node did not answer, and not what it answered.
func unanswered(err error) bool {
	_, ok := errors.AsType[*forward.PeerError](err)
	return ok
}

// refuse makes a failure a gRPC error.
func refuse(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code, ok := map[fault.Reason]codes.Code{
		fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound, fault.Aborted: codes.Aborted, fault.Moved: codes.Aborted,
		fault.Exhausted: codes.ResourceExhausted, fault.Unavailable: codes.Unavailable, fault.Permission: codes.FailedPrecondition,
	}[fault.Of(err)]
	if !ok {
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

// known checks that the cluster has a node, and, for who wants to change something, quorum.
func (d *Drainer) known(node string, change bool) (*pmxcfs.World, error) {
	world, err := d.cfg.Watcher.World()
	if err != nil {
		return nil, fault.New(fault.Precondition, "%w", err)
	}
	if _, ok := world.Members.Nodes[node]; !ok {
		return nil, fault.New(fault.NotFound, "the cluster has no node %q", node)
	}
	if change && !world.Quorate {
		return nil, fault.New(fault.Precondition, "node %s has no quorum, nothing can be changed", d.cfg.Node)
	}
	return world, nil
}

// pass hands a call about another node to that node's agent. False: it is about this one.
func (d *Drainer) pass(ctx context.Context, node, method string, req messages) (*nodepb.DrainResponse, bool, error) {
	if node == d.cfg.Node {
		return nil, false, nil
	}
	if d.cfg.Passed(ctx) {
		return nil, true, status.Errorf(codes.FailedPrecondition, "this is node %s, not %s", d.cfg.Node, node)
	}
	if _, err := d.known(node, false); err != nil {
		return nil, true, refuse(err)
	}
	var resp nodepb.DrainResponse
	if err := d.cfg.Call(ctx, node, method, req, &resp); err != nil {
		return nil, true, err
	}
	return &resp, true, nil
}

// Cordon keeps new VMs away from a node, or lets them come again; wherever it is asked for.
func (d *Drainer) Cordon(ctx context.Context, req *nodepb.CordonRequest) (*nodepb.CordonResponse, error) {
	if _, err := d.known(req.GetNode(), true); err != nil {
		return nil, refuse(err)
	}
	var (
		changed bool
		err     error
	)
	if req.GetUncordon() {
		changed, err = d.cfg.Cordons.Uncordon(ctx, req.GetNode())
	} else {
		changed, err = d.cfg.Cordons.Cordon(ctx, req.GetNode(), d.cfg.Node, req.GetReason())
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &nodepb.CordonResponse{Changed: changed}, nil
}

// Drain begins to move the VMs of a node away, or joins that.
func (d *Drainer) Drain(ctx context.Context, req *nodepb.DrainRequest) (*nodepb.DrainResponse, error) {
	if resp, passed, err := d.pass(ctx, req.GetNode(), nodepb.Node_Drain_FullMethodName, req); passed {
		return resp, err
	}
	if resp, err := d.join(ops.Drain, req.GetDryRun()); resp != nil || err != nil {
		return resp, err
	}
	world, err := d.ready(ctx)
	if err != nil {
		return nil, err
	}
	p, err := d.propose(ctx, world, req.GetStopped(), nil)
	if err != nil {
		return nil, refuse(fault.New(fault.Precondition, "%w", err))
	}
	if req.GetDryRun() {
		return d.plan(ops.Drain, p), nil
	}
	if len(p.obstacles()) > 0 && !req.GetForce() {
		return nil, status.Error(codes.FailedPrecondition, p.refusal(d.cfg.Node))
	}
	if err := d.beginDrain(ctx); err != nil {
		return nil, refuse(fault.New(fault.Precondition, "%w", err))
	}
	d.decided(ctx, ops.Drain, p)
	return d.start(ctx, ops.Drain, params{Parallel: int(req.GetParallel()), Stopped: req.GetStopped(), Moves: p.moves, Notes: p.notes()})
}

// beginDrain cordons the node. What an earlier drain has moved is forgotten if that is over: it was restored, or the
// node was given back to new VMs.
func (d *Drainer) beginDrain(ctx context.Context) error {
	if c, ok := d.cfg.Cordons.Of(d.cfg.Node); !ok || !c.Draining {
		if err := d.cfg.Cordons.SetMoved(d.cfg.Node, nil); err != nil {
			return err
		}
	}
	_, err := d.cfg.Cordons.Drain(ctx, d.cfg.Node, d.cfg.Node, "")
	return err
}

// ready reads the world anew for who wants to change it.
func (d *Drainer) ready(ctx context.Context) (*pmxcfs.World, error) {
	world, err := d.refresh(ctx)
	if err == nil {
		world, err = d.known(d.cfg.Node, true)
	}
	if err != nil {
		return nil, refuse(fault.New(fault.Precondition, "%w", err))
	}
	return world, nil
}

// Restore begins to bring back what drains have moved away, or joins that.
func (d *Drainer) Restore(ctx context.Context, req *nodepb.RestoreRequest) (*nodepb.DrainResponse, error) {
	if resp, passed, err := d.pass(ctx, req.GetNode(), nodepb.Node_Restore_FullMethodName, req); passed {
		return resp, err
	}
	if resp, err := d.join(ops.Restore, req.GetDryRun()); resp != nil || err != nil {
		return resp, err
	}
	world, err := d.ready(ctx)
	if err != nil {
		return nil, err
	}
	if !req.GetDryRun() {
		if _, err := d.cfg.Cordons.Uncordon(ctx, d.cfg.Node); err != nil {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
	}
	p, err := d.comeBack(ctx, world)
	if err != nil {
		return nil, refuse(fault.New(fault.Precondition, "%w", err))
	}
	if req.GetDryRun() {
		return d.plan(ops.Restore, p), nil
	}
	d.decided(ctx, ops.Restore, p)
	return d.start(ctx, ops.Restore, params{Parallel: int(req.GetParallel()), Stopped: true, Moves: p.moves})
}

// join returns the operation that is under way if it is of that kind; another one is in the way of all but a dry run.
func (d *Drainer) join(kind ops.Kind, dryRun bool) (*nodepb.DrainResponse, error) {
	h := d.cfg.Ops.Find(d.key())
	if h == nil || dryRun {
		return nil, nil
	}
	op := h.Op()
	if op.Kind != kind {
		return nil, status.Errorf(codes.FailedPrecondition, "a %s of node %s is under way: wait for its end, or stop it", op.Kind, d.cfg.Node)
	}
	return d.answer(op), nil
}

func (d *Drainer) start(ctx context.Context, kind ops.Kind, p params) (*nodepb.DrainResponse, error) {
	h, joined, err := d.cfg.Ops.Start(ctx, ops.Ask{
		Kind: kind, Key: d.key(), Params: p, Subject: ops.Subject{Owner: d.cfg.Client(ctx), Name: d.cfg.Node},
	})
	if err != nil {
		return nil, refuse(err)
	}
	op := h.Op()
	if joined && op.Kind != kind {
		return nil, status.Errorf(codes.FailedPrecondition, "a %s of node %s was begun meanwhile", op.Kind, d.cfg.Node)
	}
	d.mu.Lock()
	d.last = op.ID
	d.mu.Unlock()
	return d.answer(op), nil
}

// Evacuation tells how far the last drain or restore of a node is.
func (d *Drainer) Evacuation(ctx context.Context, req *nodepb.EvacuationRequest) (*nodepb.DrainResponse, error) {
	if resp, passed, err := d.pass(ctx, req.GetNode(), nodepb.Node_Evacuation_FullMethodName, req); passed {
		return resp, err
	}
	op, ok, err := d.lastOp()
	if err != nil {
		return nil, refuse(err)
	}
	if !ok {
		return nil, status.Errorf(codes.NotFound, "node %s: no drain or restore since its agent was started", d.cfg.Node)
	}
	return d.answer(op), nil
}

func (d *Drainer) lastOp() (ops.Op, bool, error) {
	if h := d.cfg.Ops.Find(d.key()); h != nil {
		return h.Op(), true, nil
	}
	d.mu.Lock()
	id := d.last
	d.mu.Unlock()
	if id == "" {
		return ops.Op{}, false, nil
	}
	op, ok, err := d.cfg.Ops.Op(id)
	if err != nil {
		err = fault.New(fault.Precondition, "%w", err)
	}
	return op, ok, err
}

// StopEvacuation lets the drain or restore of a node begin nothing more.
func (d *Drainer) StopEvacuation(ctx context.Context, req *nodepb.StopEvacuationRequest) (*nodepb.DrainResponse, error) {
	if resp, passed, err := d.pass(ctx, req.GetNode(), nodepb.Node_StopEvacuation_FullMethodName, req); passed {
		return resp, err
	}
	h := d.cfg.Ops.Find(d.key())
	if h == nil {
		return d.Evacuation(ctx, &nodepb.EvacuationRequest{Node: req.GetNode()})
	}
	op := h.Op()
	d.mu.Lock()
	d.asked[op.ID] = true
	e := d.current
	d.mu.Unlock()
	if e != nil && e.run.ID() == op.ID {
		if err := e.stop(); err != nil {
			return nil, refuse(fault.New(fault.Unavailable, "%w", err))
		}
	}
	resp := d.answer(h.Op())
	if resp.GetState() == "running" {
		resp.State = "stopping"
	}
	return resp, nil
}

// plan is the answer to a dry run.
func (d *Drainer) plan(kind ops.Kind, p proposal) *nodepb.DrainResponse {
	return &nodepb.DrainResponse{Node: d.cfg.Node, Act: string(kind), State: "planned", Moves: encode(p.moves), Message: p.notes()}
}

// answer tells how far an operation is.
func (d *Drainer) answer(op ops.Op) *nodepb.DrainResponse {
	var m memo
	if op.Memo != nil {
		_ = json.Unmarshal(op.Memo, &m) // it is ours
	} else {
		var p params
		_ = json.Unmarshal(op.Params, &p)
		m.Moves, m.Message = p.Moves, p.Notes
	}
	resp := &nodepb.DrainResponse{Node: d.cfg.Node, Act: string(op.Kind), Op: op.ID, Moves: encode(m.Moves), Message: m.Message}
	switch {
	case op.State == ops.Failed:
		resp.State, resp.Message = "failed", op.Failure.Message
	case op.State == ops.Done && m.Stopping:
		resp.State = "stopped"
	case op.State == ops.Done:
		resp.State = "done"
	case m.Stopping:
		resp.State = "stopping"
	default:
		resp.State = "running"
	}
	return resp
}

func encode(moves []Move) []*nodepb.Move {
	var out []*nodepb.Move
	for _, m := range moves {
		out = append(out, &nodepb.Move{
			Vmid: int32(m.VMID), Name: m.Name, From: m.From, To: m.To, State: m.State, Reason: m.Reason, Ha: m.HA,
			Running: m.Running, Memory: m.Memory, TookMs: (time.Duration(m.Took) * time.Millisecond).Milliseconds(),
		})
	}
	return out
}
