// Package provider serves provider.v1.Provider: it decodes a request, calls the room that does the work, and encodes
// the answer. It decides nothing about VMs.
package provider

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Health says what is wrong with this endpoint, from watched state; asking costs nothing.
type Health interface {
	// Trouble returns what keeps RPCs from working now, in words; "" when nothing does.
	Trouble() string
}

// Config configures a Server.
type Config struct {
	Guests *guest.Guests
	Images Images
	Health Health
	Fleet  Fleet // nil: this node is all there is
	// Client returns the identity of the caller: the owner of what it creates.
	Client             func(ctx context.Context) string
	DiskTypes          []string      // that a request may name
	SyncWait           time.Duration // how long an RPC waits for its operation before it answers with a task
	SyncWaitsPerClient int           // how many of a client's RPCs may wait at once
	Log                *slog.Logger
}

// Server implements providerpb.ProviderServer. RPCs that are not overridden answer Unimplemented.
type Server struct {
	providerpb.UnimplementedProviderServer
	cfg   Config
	waits waits

	unknown unknown
}

// New returns a server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, waits: waits{limit: cfg.SyncWaitsPerClient, now: map[string]int{}}}
}

// Validate says ok as long as this endpoint is one that can work, with any passing trouble in the message. The
// manager calls it before everything else, and a false answer makes it drop its connection with all calls under way
// and the finalizers of VMs that are being deleted; a configuration that can never work ends the agent instead.
func (s *Server) Validate(context.Context, *providerpb.ValidateRequest) (*providerpb.ValidateResponse, error) {
	return &providerpb.ValidateResponse{Ok: true, Message: s.cfg.Health.Trouble()}, nil
}

// GetCapabilities tells what works. Everything it does not name is answered Unimplemented or refused.
func (s *Server) GetCapabilities(context.Context, *providerpb.GetCapabilitiesRequest) (*providerpb.GetCapabilitiesResponse, error) {
	return capabilities(s.cfg.DiskTypes), nil
}

// Create makes a VM, or joins the making of it, or returns the one made earlier. The id is final.
func (s *Server) Create(ctx context.Context, r *providerpb.CreateRequest) (*providerpb.CreateResponse, error) {
	wish, err := CreateWish(r)
	if err != nil {
		return nil, Status(err)
	}
	s.noteUnknown(ctx, wish.Unknown)
	ctx, cancel := inTime(ctx)
	defer cancel()
	made, err := s.cfg.Guests.Create(ctx, s.cfg.Client(ctx), wish, target(ctx))
	if err != nil {
		return nil, Status(err)
	}
	task, err := s.await(ctx, made.Op)
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.CreateResponse{Id: made.ID, Task: task}, nil
}

// CreateWish decodes a Create request. Every error is that of a bad request.
func CreateWish(r *providerpb.CreateRequest) (spec.Create, error) {
	wish, err := spec.DecodeCreate(spec.CreateInput{
		Name: r.GetName(), ClassJSON: r.GetClassJson(), ImageJSON: r.GetImageJson(), NetworksJSON: r.GetNetworksJson(),
		DisksJSON: r.GetDisksJson(), PlacementJSON: r.GetPlacementJson(), UserData: r.GetUserData(), MetaData: r.GetMetaData(), Tags: r.GetTags(),
	})
	if err != nil {
		return wish, fault.New(fault.Invalid, "%w", err)
	}
	return wish, nil
}

// Delete stops and removes a VM and its disks, and answers when it is gone: the manager ignores a task of Delete.
func (s *Server) Delete(ctx context.Context, r *providerpb.DeleteRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetId())
	if err != nil {
		return nil, Status(err)
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	op, err := s.cfg.Guests.Delete(ctx, s.cfg.Client(ctx), id)
	if err == nil {
		err = finish(ctx, op)
	}
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.TaskResponse{}, nil
}

var powerOps = map[providerpb.PowerOp]guest.PowerOp{
	providerpb.PowerOp_POWER_OP_ON:                guest.PowerOn,
	providerpb.PowerOp_POWER_OP_OFF:               guest.PowerOff,
	providerpb.PowerOp_POWER_OP_REBOOT:            guest.PowerReboot,
	providerpb.PowerOp_POWER_OP_SHUTDOWN_GRACEFUL: guest.PowerGraceful,
}

// Power changes the power state of a VM; a VM that is in it already is success at once.
func (s *Server) Power(ctx context.Context, r *providerpb.PowerRequest) (*providerpb.TaskResponse, error) {
	id, err := guest.ParseID(r.GetId())
	if err != nil {
		return nil, Status(err)
	}
	op, ok := powerOps[r.GetOp()]
	if !ok {
		return nil, Status(fault.New(fault.Invalid, "power %s: op %s is not one of ON, OFF, REBOOT, SHUTDOWN_GRACEFUL", id, r.GetOp()))
	}
	grace := time.Duration(r.GetGracefulTimeoutSeconds()) * time.Second
	h, err := s.cfg.Guests.Power(ctx, s.cfg.Client(ctx), id, op, grace)
	return s.taskResponse(ctx, h, err)
}

// Describe tells a VM's state. Exists is false only when the VM certainly does not exist: the manager then makes a
// new one at once.
func (s *Server) Describe(ctx context.Context, r *providerpb.DescribeRequest) (*providerpb.DescribeResponse, error) {
	id, err := guest.ParseID(r.GetId())
	if err != nil {
		return nil, Status(err)
	}
	d, err := s.cfg.Guests.Describe(ctx, id)
	if guest.IsAbsent(err) {
		return &providerpb.DescribeResponse{}, nil
	}
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.DescribeResponse{
		Exists: true, PowerState: powerText(d.On), Ips: d.IPs, ConsoleUrl: d.ConsoleURL, ProviderRawJson: d.Raw,
	}, nil
}

// TaskStatus answers a poll of a task reference.
func (s *Server) TaskStatus(ctx context.Context, r *providerpb.TaskStatusRequest) (*providerpb.TaskStatusResponse, error) {
	done, failure, err := s.cfg.Guests.TaskStatus(ctx, r.GetTask().GetId())
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.TaskStatusResponse{Done: done, Error: failure}, nil
}

// taskResponse is the answer of calls that only say whether they have been carried out.
func (s *Server) taskResponse(ctx context.Context, h *ops.Handle, err error) (*providerpb.TaskResponse, error) {
	if err != nil {
		return nil, Status(err)
	}
	task, err := s.await(ctx, h)
	if err != nil {
		return nil, Status(err)
	}
	return &providerpb.TaskResponse{Task: task}, nil
}

// await waits for an operation up to the sync wait. It returns no task when the operation has ended well, its error
// when it has failed, and its task when it goes on.
func (s *Server) await(ctx context.Context, h *ops.Handle) (*providerpb.TaskRef, error) {
	if h == nil {
		return nil, nil
	}
	client := s.cfg.Client(ctx)
	if s.waits.enter(client) {
		defer s.waits.leave(client)
		wait, cancel := context.WithTimeout(ctx, s.cfg.SyncWait)
		defer cancel()
		// An error only says that the wait is over: the answer is then what the operation is by now.
		_, _ = h.Wait(wait, nil)
	}
	op := h.Op()
	if op.State == ops.Running {
		return &providerpb.TaskRef{Id: s.cfg.Guests.Task(op)}, nil
	}
	return nil, op.Err()
}

// inTime ends a little before ctx does. An answer that says how far things are is worth more than none: the manager
// counts a deadline that has passed against all VMs behind this endpoint.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, time.Second)))
}

// finish waits for the end of an operation for as long as the caller does.
func finish(ctx context.Context, h *ops.Handle) error {
	if h == nil {
		return nil
	}
	op, err := h.Wait(ctx, nil)
	if err != nil {
		return fault.New(fault.Aborted, "%s %s: goes on, a repeat joins it: %w", op.Kind, op.Subject.ID, err)
	}
	return op.Err()
}

// waits counts the RPCs of each client that wait for an operation. The manager has ten workers in all: more than a
// few of them waiting here would leave its other VMs without attention.
type waits struct {
	limit int

	mu  sync.Mutex // guards now
	now map[string]int
}

func (w *waits) enter(client string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now[client] >= w.limit {
		return false
	}
	w.now[client]++
	return true
}

func (w *waits) leave(client string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now[client]--; w.now[client] == 0 {
		delete(w.now, client)
	}
}
