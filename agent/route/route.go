// Package route says which node a request is for: the subject of a request is a VM, a name or an operation, and its
// node is where that is, by /etc/pve and by our records. It answers for all RPCs, so that forwarding needs to know none.
package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// Config configures a Router.
type Config struct {
	Node    string
	Watcher *pmxcfs.Watcher
	Records *record.Store

	// Client returns the identity of the caller: the owner of the names it uses.
	Client func(ctx context.Context) string
	// Place chooses where a VM is made that does not exist yet: req is a CreateRequest or a CloneRequest that has been
	// checked for nothing. Placed is told what became of a choice.
	Place  func(ctx context.Context, req any) (forward.Way, error)
	Placed func(ctx context.Context, way forward.Way, err error)
	// Quorate returns the nodes whose agents say that they have quorum, the one to ask first in front.
	Quorate func() []string
	// Stranger says in words why a node's agent is never asked, "" if it is.
	Stranger func(node string) string
	// Status turns an error into the status a client gets.
	Status func(error) error
}

// avoidFor is how long a node that did not answer for us is not asked again, if another can be.
const avoidFor = 10 * time.Second

// Router implements forward.Router.
type Router struct {
	cfg Config

	mu    sync.Mutex // guards avoid
	avoid map[string]time.Time
}

// New returns a router.
func New(cfg Config) *Router { return &Router{cfg: cfg, avoid: map[string]time.Time{}} }

// Route returns the node that req is for: this one when the request has no subject, when it is malformed, and when its
// subject is nowhere, because to say so is everybody's business. Without quorum nothing is decided here: the request is
// for a node that has it, or it is refused. The error is a gRPC status.
func (r *Router) Route(ctx context.Context, method string, req any) (forward.Way, error) {
	find := subjects[method]
	if find == nil {
		return forward.Way{Node: r.cfg.Node}, nil
	}
	if err := r.blind(); err != nil && taskKind(req) == "" { // a task names its node itself
		node, err := r.proxy(method, req, err)
		return forward.Way{Node: node}, err
	}
	way, err := find(ctx, r, req)
	if _, sent := forward.Forwarded(ctx); sent && err == nil && way.Node != r.cfg.Node {
		// Another agent takes this node for the right one, and may have seen a move that this one has not.
		if err = r.Refresh(ctx); err == nil {
			way, err = find(ctx, r, req)
		}
	}
	if err != nil {
		return forward.Way{}, r.cfg.Status(err)
	}
	return way, nil
}

// Answered tells who chose a node what came of it.
func (r *Router) Answered(ctx context.Context, way forward.Way, err error) {
	r.cfg.Placed(ctx, way, err)
}

// place chooses where a VM is made, unless another agent has done so already: two that choose would never agree.
func (r *Router) place(ctx context.Context, req any) (forward.Way, error) {
	if _, sent := forward.Forwarded(ctx); sent && forward.Note(ctx) != "" {
		return forward.Way{Node: r.cfg.Node}, nil
	}
	return r.cfg.Place(ctx, req)
}

// blind says why nothing can be decided here from /etc/pve, nil when it can.
func (r *Router) blind() error {
	world, err := r.cfg.Watcher.World()
	if err == nil && !world.Quorate {
		err = fmt.Errorf("node %s: %w", r.cfg.Node, pmxcfs.ErrNoQuorum)
	}
	return err
}

// proxy returns a node that knows what this one cannot know.
func (r *Router) proxy(method string, req any, why error) (string, error) {
	able := r.cfg.Quorate()
	for _, node := range able {
		if !r.avoided(node) {
			return node, nil
		}
	}
	if len(able) > 0 {
		return able[0], nil
	}
	return "", r.cfg.Status(fault.New(fault.Precondition,
		"%s: %w: where it is cannot be decided, and no agent that has quorum can be reached", about(method, req), why))
}

// avoided reports whether a node did not answer a moment ago.
func (r *Router) avoided(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.avoid[node])
}

// Refresh reads /etc/pve anew, after a node has said that it is not the one to ask.
func (r *Router) Refresh(ctx context.Context) error { return r.cfg.Watcher.Refresh(ctx) }

// vm returns the node of a VM: of its config, or of the operation that is making it or removing it.
func (r *Router) vm(ctx context.Context, text string) (string, error) {
	id, err := record.ParseID(text)
	if err != nil {
		return r.cfg.Node, nil //nolint:nilerr // the handler refuses it, in its own words
	}
	vm, err := r.cfg.Watcher.Locate(ctx, id.VMID)
	switch {
	case err == nil:
		return vm.Node, nil
	case !errors.Is(err, pmxcfs.ErrNotFound):
		return "", fault.New(fault.Precondition, "VM %s: cannot be looked up: %w", id, err)
	}
	rec, ok, err := r.cfg.Records.ByVMID(id.VMID)
	if err != nil {
		return "", fault.New(fault.Precondition, "VM %s: not found, and its record cannot be read: %w", id, err)
	}
	if !ok || id.UUID8 != "" && rec.ID() != id {
		return r.cfg.Node, nil
	}
	return r.unlessGone(rec.Node), nil
}

// holder returns the node that answers for a name: that of the VM it stands for, or that of the operation which makes
// it. Not held: the name is free, as far as anybody can see from here.
func (r *Router) holder(ctx context.Context, name string) (node string, held bool, err error) {
	rec, ok, err := r.cfg.Records.Find(r.cfg.Client(ctx), name)
	if _, torn := errors.AsType[*record.IncompleteError](err); torn {
		return r.cfg.Node, true, nil // being written this moment: the handler waits for it, or takes it over
	}
	if err != nil {
		return "", false, fault.New(fault.Precondition, "%s: read its record: %w", name, err)
	}
	if !ok {
		return "", false, nil
	}
	if rec.State == record.Ready {
		vm, err := r.cfg.Watcher.Locate(ctx, rec.VMID)
		if err == nil && vm.Conf != nil && vm.Conf.SMBIOSUUID() == rec.UUID { // else somebody else's VM has the number
			return r.unlessOffline(vm.Node), true, nil
		}
	}
	node = r.unlessGone(rec.Node)
	return node, node == rec.Node, nil
}

// task returns the node whose journal knows an operation.
func (r *Router) task(ref string) string {
	parsed, err := ops.ParseRef(ref)
	if err != nil {
		return r.cfg.Node
	}
	return r.unlessGone(parsed.Node)
}

// unlessGone returns node, or this one when that is gone for good: then whoever is asked tells what can be known.
func (r *Router) unlessGone(node string) string {
	if world, err := r.cfg.Watcher.World(); err == nil && world.Gone(node, time.Now()) {
		return r.cfg.Node
	}
	return node
}

// unlessOffline returns node, or this one when that cannot be asked now and this one knows the answer too.
func (r *Router) unlessOffline(node string) string {
	if world, err := r.cfg.Watcher.World(); err == nil && !world.Online(node) {
		return r.cfg.Node
	}
	return node
}
