package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"

	"github.com/google/uuid"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/task"
)

// The steps of a create operation, in their order.
const (
	stepClaim     = "claim"     // a number, a uuid and the record that holds the name; what a dead claim has left is removed
	stepReplica   = "replica"   // what it is cloned from comes to this node, if it is not there
	stepSnippets  = "snippets"  // cloud-init data as files PVE can read
	stepClone     = "clone"     // PVE copies the source, or makes a VM that has none
	stepGrow      = "grow"      // the root disk
	stepDisks     = "disks"     // data disks, EFI and TPM stores
	stepConfigure = "configure" // size, cloud-init data and, with that, our uuid: a VM that has it is complete
	stepMove      = "move"      // to the node that it is for, if that is not this one
	stepReady     = "ready"     // read back, and say so in the record
	stepUndo      = "undo"      // after a failure: remove everything again
)

// making is one life of a create operation.
type making struct {
	*Guests
	run   *ops.Run
	order order
	memo  makingMemo
	claim *record.Claim
}

// makingMemo is what a create operation has decided and must remember across a crash.
type makingMemo struct {
	Record record.Record // our claim: number, uuid, node
	// Generation is Record's, which its JSON lacks: a record's file has it in its name. 0: not taken yet.
	Generation int

	CICustom string       `json:",omitempty"`
	Volumes  []string     `json:",omitempty"` // of the VM, as far as it is made
	Taken    bool         `json:",omitempty"` // the number was somebody else's when we wanted to use it
	Over     int          `json:",omitempty"` // VMID of the dead claim that ours replaces: a half-made VM may still have it
	Left     []string     `json:",omitempty"` // snippets of that claim
	Source   int          `json:",omitempty"` // what is cloned, if that was to be made first
	Failure  *ops.Failure `json:",omitempty"` // set: everything is to be undone
}

// create is the handler of create operations.
func (g *Guests) create(ctx context.Context, r *ops.Run) error {
	m := &making{Guests: g, run: r}
	if err := errors.Join(r.Params(&m.order), r.Recall(&m.memo)); err != nil {
		return err
	}
	m.order.Source = cmp.Or(m.memo.Source, m.order.Source)
	if m.memo.Record.Generation = m.memo.Generation; m.memo.Generation > 0 {
		m.claim = g.cfg.Records.Hold(m.memo.Record)
	}
	key := r.Op().Key
	if m.order.Target == "" { // else that node keeps the room
		m.cfg.Admission.Hold(key, m.vmid(), m.order.Want)
	}
	if m.memo.Failure == nil {
		err := m.make(ctx)
		if err == nil {
			m.cfg.Admission.Settle(key)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.cfg.Admission.Release(ctx, m.order.node(m.cfg.Node), key)
		m.memo.Failure = &ops.Failure{Reason: fault.Of(err), Message: err.Error()}
		if err := m.note(); err != nil {
			return err
		}
	}
	return m.fail(ctx)
}

func (m *making) make(ctx context.Context) error {
	ctx, cancel := budget(ctx, m.run.Op(), m.cfg.TaskTimeout)
	defer cancel()
	for _, s := range m.steps() {
		if s.name != stepClaim {
			// Another agent that took us for dead has the name now: whatever we do next would make a second VM.
			if err := m.holds(ctx); err != nil {
				return err
			}
		}
		if err := m.run.Step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// A makingStep is one step of the making of a VM.
type makingStep struct {
	name string
	do   func(context.Context, *ops.StepRun) error
}

// steps are all of them, in their order.
func (m *making) steps() []makingStep {
	steps := []makingStep{{stepClaim, m.take}}
	if m.order.Image != "" {
		steps = append(steps, makingStep{stepReplica, m.obtain})
	}
	steps = append(steps,
		makingStep{stepSnippets, m.writeSnippets},
		makingStep{stepClone, m.begin},
		makingStep{stepGrow, m.grow},
		makingStep{stepDisks, m.allocate},
		makingStep{stepConfigure, m.configure},
	)
	if m.order.Target != "" {
		steps = append(steps, makingStep{stepMove, m.move})
	}
	return append(steps, makingStep{stepReady, m.ready})
}

// obtain has a replica of the image made on this node, or waits for the one that is being made.
func (m *making) obtain(ctx context.Context, _ *ops.StepRun) error {
	vmid, err := m.cfg.Images.Ensure(ctx, m.order.Image)
	if err != nil {
		return fault.New(fault.Of(err), "%s: %w", m.act(fmt.Sprintf("get a replica of image %q", m.order.Image)), err)
	}
	m.memo.Source = vmid
	return m.note()
}

// source is the number of what is cloned; 0: nothing is.
func (m *making) source() int { return cmp.Or(m.memo.Source, m.order.Source) }

// holds makes sure that the claim is still ours, however long /etc/pve cannot be read meanwhile. Without quorum it says
// what was: after 120 s the others take this node for gone, and its claims.
func (m *making) holds(ctx context.Context) error {
	err := ops.Retry(ctx, unsettled, func(context.Context) error {
		if err := m.quorate(); err != nil {
			return err
		}
		return m.claim.Check()
	})
	if err != nil {
		return fault.New(fault.Aborted, "%s: %w", m.act("keep the name"), err)
	}
	return nil
}

// unsettled reports whether an error of a claim says nothing about whose it is: /etc/pve cannot be read or written now.
func unsettled(err error) bool {
	return !errors.Is(err, record.ErrLost)
}

// held makes a PVE call only while the claim is ours: its step may have waited for hours since it looked.
func (m *making) held(c task.Call) task.Call {
	return func(ctx context.Context) (pve.UPID, error) {
		if err := m.holds(ctx); err != nil {
			return "", err
		}
		return c(ctx)
	}
}

func (m *making) note() error {
	return m.run.Note(m.memo, ops.Subject{
		Owner: m.order.Owner, Name: m.order.Name, ID: record.NewID(m.memo.Record.VMID, m.memo.Record.UUID).String(),
	})
}

func (m *making) vmid() int { return m.memo.Record.VMID }

func (m *making) act(what string) string {
	return fmt.Sprintf("%s %s: %s", m.run.Op().Kind, m.order.Name, what)
}

// take chooses the id and takes the record. The choice is journaled first, so that a record found with this
// operation's id is ours.
func (m *making) take(ctx context.Context, _ *ops.StepRun) error {
	if m.memo.Record.VMID == 0 {
		if err := m.choose(ctx); err != nil {
			return err
		}
	}
	var claim *record.Claim
	err := m.written(ctx, func(context.Context) (err error) {
		claim, err = m.cfg.Records.Take(m.memo.Record)
		return err
	})
	var taken *record.ExistsError
	if errors.As(err, &taken) {
		claim, err = m.takeOver(ctx, taken.Record)
	}
	if err != nil {
		return refineClaim(m.act("take the name"), err)
	}
	m.claim, m.memo.Record = claim, claim.Record()
	m.memo.Generation = m.memo.Record.Generation
	if m.order.Target == "" {
		m.cfg.Admission.Hold(m.run.Op().Key, m.vmid(), m.order.Want) // with its number
	}
	if err := m.note(); err != nil {
		return err
	}
	if err := m.cfg.Watcher.Refresh(ctx); err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("look for VMs of that name"), err)
	}
	return m.nameIsFree(ctx, m.order.Name, m.vmid(), m.memo.Over)
}

func refineClaim(act string, err error) error {
	if _, explained := errors.AsType[*fault.Error](err); explained {
		return err
	}
	if _, unfinished := errors.AsType[*record.IncompleteError](err); unfinished {
		return fault.New(fault.Aborted, "%s: %w", act, err) // another request is taking it this moment
	}
	return fault.New(fault.Precondition, "%s: %w", act, err)
}

func (m *making) choose(ctx context.Context) error {
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("choose a VMID"), err)
	}
	vmid, err := m.cfg.IDs.Allocate(ctx, m.cfg.VMIDs, world.Has)
	if _, full := errors.AsType[*record.RangeError](err); full {
		return fault.New(fault.Exhausted, "%s: %w", m.act("choose a VMID"), err)
	}
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("choose a VMID"), err)
	}
	m.memo.Record = record.Record{
		Owner: m.order.Owner, Name: m.order.Name, VMID: vmid, UUID: uuid.NewString(), Node: m.cfg.Node, Op: m.run.ID(),
		Fingerprint: m.order.Fingerprint, Tags: m.order.Tags, Made: m.order.Made, State: record.Creating, Created: m.cfg.Now().UTC(),
	}
	m.memo.Record.Snippets = m.snippetVolumes()
	return m.note()
}

// takeOver deals with a record that stands in our way: ours from an earlier life, dead, or alive.
func (m *making) takeOver(ctx context.Context, old record.Record) (*record.Claim, error) {
	if old.Op == m.run.ID() {
		return m.cfg.Records.Hold(old), nil
	}
	dead, err := m.dead(ctx, old)
	if fault.Is(err, fault.Moved) { // taken while we came: who asked us asks again, and is sent there
		return nil, fault.New(fault.Exists, "%s: %w", m.act("take the name"), err)
	}
	if err != nil {
		return nil, err
	}
	if !dead {
		return nil, fault.New(fault.Exists, "%s: VM %d", m.act("another request has made it"), old.VMID)
	}
	if old.State == record.Creating && old.Node == m.cfg.Node { // another node's agent does it when it comes back
		if err := m.reclaim(ctx, old); err != nil {
			return nil, err
		}
	}
	m.memo.Over, m.memo.Left = old.VMID, old.Snippets
	if err := m.note(); err != nil {
		return nil, err
	}
	return m.cfg.Records.TakeOver(old, m.memo.Record)
}

// reclaim removes the half-made VM of a dead claim, while that claim still tells whose it is.
func (m *making) reclaim(ctx context.Context, old record.Record) error {
	return m.destroyWhole(ctx, old.ID(), removal{Record: &old, Volumes: old.Volumes})
}

// confHere reads the config of a VM on this node; nil when there is none here. While pmxcfs is not mounted, as when
// pve-cluster is upgraded, it waits: where nothing is mounted nothing is found, and that is no answer.
func (g *Guests) confHere(ctx context.Context, vmid int) (*pmxcfs.Conf, error) {
	return g.confOn(ctx, g.cfg.Node, vmid)
}

// confOn is confHere for a VM on any node.
func (g *Guests) confOn(ctx context.Context, node string, vmid int) (conf *pmxcfs.Conf, err error) {
	worth := func(err error) bool { return errors.Is(err, pmxcfs.ErrNotMounted) }
	err = ops.Retry(ctx, worth, func(context.Context) error {
		conf, err = g.cfg.Tree.Conf(node, vmid)
		if errors.Is(err, fs.ErrNotExist) {
			conf = nil
			_, err = g.cfg.Tree.Version()
		}
		return err
	})
	if err != nil {
		return nil, fault.New(fault.Precondition, "read the config of VM %d: %w", vmid, err)
	}
	return conf, nil
}

// noteVolumes notes the volumes that the VM has by now, so that they can be removed even if its config is lost.
func (m *making) noteVolumes(ctx context.Context) error {
	conf, err := m.confHere(ctx, m.vmid())
	if err != nil || conf == nil {
		return err
	}
	vols := volumes(conf)
	if slices.Equal(vols, m.memo.Volumes) {
		return nil
	}
	m.memo.Volumes = vols
	return m.note()
}

func (m *making) configure(ctx context.Context, _ *ops.StepRun) error {
	err := ops.Retry(ctx, passing, func(ctx context.Context) error {
		if err := m.holds(ctx); err != nil {
			return err
		}
		params, err := m.configuration(ctx)
		if err != nil {
			return err
		}
		return m.cfg.PVE.SetConfig(ctx, m.cfg.Node, m.vmid(), params)
	})
	if err != nil {
		return explain(m.act(fmt.Sprintf("configure VM %d", m.vmid())), err)
	}
	return m.noteVolumes(ctx)
}

// configuration is what the config is to get. An attempt whose answer was lost may have added the cloud-init drive
// already, and PVE does not make one twice.
func (m *making) configuration(ctx context.Context) (url.Values, error) {
	params := url.Values{"smbios1": {plan.WithUUID(m.order.SMBIOS, m.memo.Record.UUID)}}
	for k, v := range m.order.VM.Config {
		params.Set(k, v)
	}
	if m.memo.CICustom != "" {
		params.Set("cicustom", m.memo.CICustom)
	}
	r, err := m.rendered()
	if err != nil {
		return params, fault.New(fault.Internal, "%s: %w", m.act("render cloud-init data"), err)
	}
	for k, v := range r.Params {
		params.Set(k, v)
	}
	conf, err := m.confHere(ctx, m.vmid())
	if err != nil || conf == nil {
		return params, err
	}
	if _, there := conf.Get(m.order.CloudInitKey); m.order.CloudInitKey != "" && !there {
		params.Set(m.order.CloudInitKey, m.order.CloudInitStore+":cloudinit")
	}
	if boot, ok := conf.BootDisk(); ok && len(m.order.VM.Options) > 0 {
		value, _ := conf.Get(boot.Key)
		params.Set(boot.Key, plan.SetOptions(value, m.order.VM.Options))
	}
	return params, nil
}

func (m *making) grow(ctx context.Context, s *ops.StepRun) error {
	g := m.order.VM.Root
	if g.Disk == "" {
		return nil
	}
	if s.Again || m.order.New != nil { // of a volume that was copied, the size is known only now
		conf, err := m.confHere(ctx, m.vmid())
		if err != nil {
			return err
		}
		if conf != nil {
			if boot, ok := conf.BootDisk(); ok && boot.Size >= int64(g.GiB)<<30 {
				return nil
			}
		}
	}
	err := m.runTask(ctx, s, nil, m.held(func(ctx context.Context) (pve.UPID, error) {
		return m.cfg.PVE.Resize(ctx, m.cfg.Node, m.vmid(), g.Disk, fmt.Sprintf("%dG", g.GiB))
	}))
	if err != nil {
		return explain(m.act(fmt.Sprintf("grow %s of VM %d to %d GiB", g.Disk, m.vmid(), g.GiB)), err)
	}
	return nil
}

// ready reads the VM back from /etc/pve and declares it made: only what is there counts, not what PVE answered.
func (m *making) ready(ctx context.Context, _ *ops.StepRun) error {
	conf, err := m.confThere(ctx)
	switch {
	case err != nil:
		return err
	case conf == nil:
		return fault.New(fault.Aborted, "%s: VM %d is no longer on node %s", m.act("read back"), m.vmid(), m.order.node(m.cfg.Node))
	case conf.SMBIOSUUID() != m.memo.Record.UUID:
		return fault.New(fault.Aborted, "%s: VM %d has SMBIOS uuid %s, expected %s", m.act("read back"), m.vmid(), conf.SMBIOSUUID(), m.memo.Record.UUID)
	case conf.Lock() != "":
		return fault.New(fault.Aborted, "%s: VM %d is locked (%s)", m.act("read back"), m.vmid(), conf.Lock())
	}
	err = ops.Retry(ctx, unsettled, func(context.Context) error {
		return m.claim.Update(func(r *record.Record) {
			r.State, r.Volumes, r.Snippets = record.Ready, volumes(conf), m.snippetVolumes()
		})
	})
	if err != nil {
		return fault.New(fault.Aborted, "%s: %w", m.act("write its record"), err)
	}
	m.cfg.Snippets.Drop(ctx, m.memo.Left)
	if err := m.cfg.Watcher.Refresh(ctx); err != nil {
		m.log.WarnContext(ctx, "VM created, but /etc/pve could not be read again at once", "vm", m.vmid(), "err", err)
	}
	return nil
}

// volumes returns the volumes that a config uses, without installation media.
func volumes(conf *pmxcfs.Conf) []string {
	var vols []string
	for _, d := range append(conf.Drives(), conf.Unused()...) {
		if d.Storage != "" && (!d.CDROM || d.CloudInit) {
			vols = append(vols, d.Volume)
		}
	}
	return vols
}
