// Package drain empties a node of its VMs before maintenance, and brings them back: what is to be moved where is planned
// as a whole, then a few VMs are moved at a time.
//
// A drain, or a restore, is an operation of the journal on the agent of its node, of which there is one at a time. What
// has become of each VM is its memo, so that a later agent goes on where an earlier one has died. It asks the agents of
// the nodes that own the VMs to move them, and believes only what it then sees: where the VM's config is.
package drain

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// Scheduler decides where VMs go.
type Scheduler interface {
	// Plan decides for one VM after the other, each counting with those before it. It keeps no room for them.
	Plan(ctx context.Context, wants []placement.Want) ([]placement.Decision, error)
	// WantOf is what a VM that there is needs of a node.
	WantOf(ctx context.Context, vm *pmxcfs.VM) (placement.Want, error)
	// Decided writes down a decision that is carried out, for who asks for an explanation.
	Decided(ctx context.Context, act, owner string, w placement.Want, d placement.Decision)
}

// Guests are the VMs of this node; *guest.Guests is.
type Guests interface {
	// Migrate begins to move a VM of this node, or joins that; nil if it is there already.
	Migrate(ctx context.Context, owner string, id record.ID, target string) (*ops.Handle, error)
	// Task is the reference of an operation.
	Task(op ops.Op) string
}

// Config says what a Drainer works with. All of it must be set, but for what says otherwise.
type Config struct {
	Node      string
	Watcher   *pmxcfs.Watcher
	Cordons   *cordon.Store
	Scheduler Scheduler
	Guests    Guests
	Ops       *ops.Engine
	// Running tells whether a VM of this node has a process.
	Running func(vmid int) bool
	// Immovable says why a VM can go to no other node, "" if it can.
	Immovable func(conf *pmxcfs.Conf, storages pmxcfs.Storages, running bool) string
	// Client is who asks.
	Client func(ctx context.Context) string
	// Call asks the agent of another node, which answers or refuses.
	Call func(ctx context.Context, node, method string, req, resp proto.Message) error
	// Passed reports whether another agent has passed the call on.
	Passed func(ctx context.Context) bool
	Now    func() time.Time // default time.Now
	Log    *slog.Logger     // default: discard
}

// Drainer drains and restores this node. It is safe for concurrent use.
type Drainer struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	last    string     // id of the last drain or restore
	current *evacuation
	asked   map[string]bool // ids of those that were asked to stop
}

// New makes a Drainer and names its handlers to the engine.
func New(cfg Config) *Drainer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Drainer{cfg: cfg, asked: map[string]bool{}}
	cfg.Ops.Handle(ops.Drain, d.drain)
	cfg.Ops.Handle(ops.Restore, d.restore)
	return d
}

// key is that of the one operation of this kind that a node may have.
func (d *Drainer) key() string { return "evacuate/" + d.cfg.Node }

// begun makes an operation the last one, and its evacuation the one that can be stopped.
func (d *Drainer) begun(e *evacuation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last, d.current = e.run.ID(), e
}

func (d *Drainer) stopAsked(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[id]
}

// refresh reads /etc/pve anew and returns what it says.
func (d *Drainer) refresh(ctx context.Context) (*pmxcfs.World, error) {
	if err := d.cfg.Watcher.Refresh(ctx); err != nil {
		return nil, err
	}
	return d.cfg.Watcher.World()
}
