package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// The steps of a replica operation, in their order.
const (
	stepChoose   = "choose"   // what is copied, where it goes, and under which number
	stepCopy     = "copy"     // the disks, into files
	stepImport   = "import"   // PVE makes a VM of them
	stepTemplate = "template" // and a template of that
	stepRecord   = "record"   // from here on VMs are made from it
	stepTidy     = "tidy"     // the files are removed
	stepUndo     = "undo"     // after a failure: everything is removed
)

// order is what a replica operation is asked for.
type order struct {
	Image string // recorded
}

// memo is what a replica operation has decided, and how far it is.
type memo struct {
	Source  source
	VMID    int    `json:",omitempty"`
	UUID    string `json:",omitempty"`
	Name    string `json:",omitempty"` // of the template
	Target  target
	Disks   []disk       `json:",omitempty"`
	Failure *ops.Failure `json:",omitempty"` // set: everything is to be undone
}

// source is the template that is copied.
type source struct {
	Node    string
	VMID    int
	Version string // of the administrator's template that it is, or is a copy of
	Root    int    // number of that one
}

// disk is one disk that is copied.
type disk struct {
	Key    string
	Volume string // of the source
	Staged string // volume of ours that it lies in until PVE has imported it
	Format string // of its bytes
	Size   int64  // of its bytes
	Offset int64  // up to where they are on our disk
	Sum    string // "sha256:<hex>": all of it is there, and is what the source has
}

// making is one life of a replica operation.
type making struct {
	*Images
	run   *ops.Run
	order order
	memo  memo

	differed int // how often the checksums were not the same
}

// keyOf is the key of the operation that makes the replica of an image on a node: whoever needs it joins it.
func keyOf(image, node string) string { return "image/" + image + "/" + node }

// Ensure returns the number of the template on this node that VMs are made from, and makes it if need be: it begins an
// operation, or joins the one that is under way, and waits for its end. It is the first step of a Create that was sent to
// a node without a replica.
func (m *Images) Ensure(ctx context.Context, ref string) (int, error) {
	set, err := m.Resolve(ctx, ref)
	if err != nil {
		return 0, err
	}
	if here, ok := set.On(m.cfg.Node); ok {
		return here.VMID, nil
	}
	h, err := m.start(ctx, set)
	if err != nil {
		return 0, err
	}
	op, err := h.Wait(ctx, nil)
	if err != nil {
		return 0, fault.New(fault.Aborted, "wait for the replica of %q on node %s: %w", set.Name, m.cfg.Node, err)
	}
	if err := op.Err(); err != nil {
		return 0, err
	}
	vm, err := m.Here(ctx, ref)
	if err != nil {
		return 0, err
	}
	return vm.ID, nil
}

// start begins the making of a replica on this node, or joins it.
func (m *Images) start(ctx context.Context, set Set) (*ops.Handle, error) {
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return nil, fault.New(fault.Precondition, "replica of %q: %w", set.Name, err)
	}
	if why := m.mayNot(world, set, m.cfg.Node); why != "" {
		return nil, fault.New(fault.Precondition, "node %s %s", m.cfg.Node, why)
	}
	img := set.Record
	if !set.Recorded {
		if img, err = m.record(ctx, set); err != nil {
			return nil, err
		}
	}
	h, _, err := m.cfg.Ops.Start(ctx, ops.Ask{
		Kind: ops.Replica, Key: keyOf(img.Name, m.cfg.Node), Subject: ops.Subject{Name: img.Name}, Params: order{Image: img.Name},
	})
	return h, err
}

// makeReplica is the handler of replica operations.
func (m *Images) makeReplica(ctx context.Context, r *ops.Run) error {
	k := &making{Images: m, run: r}
	if err := errors.Join(r.Params(&k.order), r.Recall(&k.memo)); err != nil {
		return err
	}
	if err := ops.Retry(ctx, func(error) bool { return true }, func(context.Context) error { return m.quorate() }); err != nil {
		return err
	}
	if k.memo.Failure == nil {
		err := k.make(ctx)
		m.noteFailure(k.order.Image, err)
		if err == nil || ctx.Err() != nil {
			return err
		}
		k.memo.Failure = &ops.Failure{Reason: fault.Of(err), Message: err.Error()}
		if err := k.note(); err != nil {
			return err
		}
	}
	failure := fault.New(k.memo.Failure.Reason, "%s", k.memo.Failure.Message)
	if err := r.Step(ctx, stepUndo, k.undo); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return fault.New(failure.Reason, "%s; and what was made could not be removed again: %w", failure.Msg, err)
	}
	return failure
}

// quorate fails without quorum: nothing can be made then.
func (m *Images) quorate() error {
	world, err := m.cfg.Watcher.World()
	if err == nil && !world.Quorate {
		err = fmt.Errorf("node %s: %w", m.cfg.Node, pmxcfs.ErrNoQuorum)
	}
	return err
}

func (m *Images) noteFailure(image string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.failed, image)
		return
	}
	m.failed[image] = failure{why: err.Error(), times: m.failed[image].times + 1, at: time.Now()}
}

// resting reports whether a replica could not be made a short while ago: the copying of large disks that PVE does not take
// is not to be repeated for ever.
func (m *Images) resting(image string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, failed := m.failed[image]
	pause := min(m.cfg.Every<<min(f.times, 16), longestPause)
	return failed && time.Since(f.at) < pause
}

func (k *making) make(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, k.cfg.TaskTimeout, fmt.Errorf("not done within %s", k.cfg.TaskTimeout))
	defer cancel()
	for _, s := range []struct {
		name string
		do   func(context.Context, *ops.StepRun) error
	}{
		{stepChoose, k.choose},
		{stepCopy, k.copy},
		{stepImport, k.importDisks},
		{stepTemplate, k.template},
		{stepRecord, k.enter},
		{stepTidy, k.tidy},
	} {
		if err := k.run.Step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

func (k *making) note() error {
	return k.run.Note(k.memo, ops.Subject{Name: k.order.Image, ID: record.NewID(max(k.memo.VMID, record.MinVMID), k.memo.UUID).String()})
}

func (k *making) act(what string) string {
	return fmt.Sprintf("replica of %q on node %s: %s", k.order.Image, k.cfg.Node, what)
}

// choose decides what is copied where, and makes sure that there is room for it.
func (k *making) choose(ctx context.Context, _ *ops.StepRun) error {
	if err := k.cfg.Watcher.Refresh(ctx); err != nil { // the template may have been made a moment ago
		return fault.New(fault.Precondition, "%s: %w", k.act("read its template"), err)
	}
	set, err := k.Resolve(ctx, k.order.Image)
	if err != nil {
		return err
	}
	world, err := k.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", k.act("choose a source"), err)
	}
	if err := k.number(ctx, world); err != nil {
		return err
	}
	from, err := k.chooseSource(ctx, world, set)
	if err != nil {
		return err
	}
	if err := k.room(ctx, from.VM.Conf); err != nil {
		return err
	}
	return k.note()
}

// number chooses the VMID and the uuid of the replica.
func (k *making) number(ctx context.Context, world *pmxcfs.World) (err error) {
	if k.memo.VMID != 0 {
		return nil
	}
	k.memo.VMID, err = k.cfg.IDs.Allocate(ctx, k.cfg.VMIDs, world.Has)
	if _, full := errors.AsType[*record.RangeError](err); full {
		return fault.New(fault.Exhausted, "%s: %w", k.act("choose a VMID"), err)
	}
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", k.act("choose a VMID"), err)
	}
	k.memo.UUID = uuid.NewString()
	return k.note()
}

// chooseSource takes the first template whose agent answers, and plans the copying of its disks.
func (k *making) chooseSource(ctx context.Context, world *pmxcfs.World, set Set) (Member, error) {
	var silent []string
	var last error
	for {
		from, ok := pick(world, set, k.cfg.Node, "", silent)
		if !ok && last != nil {
			return from, last
		}
		if !ok {
			return from, fault.New(fault.Precondition, "%s: no node that is online has a template of it", k.act("choose a source"))
		}
		t, err := targetOn(world, from.VM.Conf, k.cfg.Node)
		if err != nil {
			return from, fault.New(fault.Precondition, "%s: %w", k.act("choose storages"), err)
		}
		k.memo.Target, k.memo.Source, k.memo.Name = t, sourceOf(from), from.VM.Conf.Name()
		last = k.plan(ctx, from.VM.Conf)
		if _, dead := errors.AsType[*forward.PeerError](last); !dead {
			return from, last
		}
		silent = append(silent, from.Node)
	}
}

// pick returns a member to copy from, on a node that is online: an administrator's template if possible. version limits it
// to what has the same content as a template of that version; without leaves out nodes.
func pick(world *pmxcfs.World, set Set, here, version string, without []string) (Member, bool) {
	usable := func(m Member) bool {
		return m.Node != here && world.Online(m.Node) && !slices.Contains(without, m.Node) && (version == "" || sourceOf(m).Version == version)
	}
	if m, ok := set.first(func(m Member) bool { return usable(m) && !m.Replica }); ok {
		return m, true
	}
	return set.first(usable)
}

func sourceOf(m Member) source {
	if m.Replica {
		return source{Node: m.Node, VMID: m.VMID, Version: m.Record.Of, Root: m.Record.From}
	}
	return source{Node: m.Node, VMID: m.VMID, Version: Version(m.VM.Conf), Root: m.VMID}
}

// plan says which disks are copied into which files.
func (k *making) plan(ctx context.Context, conf *pmxcfs.Conf) error {
	k.memo.Disks = nil
	for n, d := range copied(conf) {
		if d.Size == 0 && d.Disk() {
			return fault.New(fault.Precondition, "%s: the config of VM %d does not say how large %s is (qm rescan --vmid %d)", k.act("read its template"), k.memo.Source.VMID, d.Key, k.memo.Source.VMID)
		}
		resp, err := k.ask(ctx, d.Volume, 0, 0)
		if err != nil {
			return fault.New(fault.Precondition, "%s: %w", k.act("read "+d.Volume), err)
		}
		staged := fmt.Sprintf("%s:import/pve-rigaud-%d-%s.%s", k.memo.Target.Staging, k.memo.VMID, d.Key, resp.GetFormat())
		if k.memo.Target.Content == "images" {
			staged = fmt.Sprintf("%s:%d/vm-%d-disk-%d.%s", k.memo.Target.Staging, k.memo.VMID, k.memo.VMID, 90+n, resp.GetFormat())
		}
		k.memo.Disks = append(k.memo.Disks, disk{Key: d.Key, Volume: d.Volume, Staged: staged, Format: resp.GetFormat(), Size: resp.GetSize()})
	}
	return nil
}

// room fails when a storage has less space than is needed, before anything is made.
func (k *making) room(ctx context.Context, conf *pmxcfs.Conf) error {
	need := map[string]int64{}
	for _, d := range k.memo.Disks {
		need[k.memo.Target.Staging] += d.Size
	}
	for _, d := range copied(conf) {
		need[k.memo.Target.Storages[d.Key]] += d.Size
	}
	storages, err := k.cfg.PVE.Storages(ctx, k.cfg.Node)
	if err != nil {
		return explain(k.act("look for space"), err)
	}
	for _, s := range storages {
		if n := need[s.Storage]; n > int64(s.Avail) && n > 0 {
			return fault.New(fault.Exhausted, "%s: storage %s has %s left, and %s are needed", k.act("look for space"), s.Storage, gib(int64(s.Avail)), gib(n))
		}
	}
	return nil
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

// enter writes the replica down: from then on VMs are made from it.
func (k *making) enter(ctx context.Context, _ *ops.StepRun) error {
	sums := map[string]string{}
	for _, d := range k.memo.Disks {
		sums[d.Key] = d.Sum
	}
	_, err := k.change(ctx, k.order.Image, func(i *record.Image) bool {
		if _, there := i.Replica(k.memo.VMID); there {
			return false
		}
		i.Replicas = append(i.Replicas, record.Replica{
			Node: k.cfg.Node, VMID: k.memo.VMID, UUID: k.memo.UUID, Of: k.memo.Source.Version, From: k.memo.Source.Root,
			Checksums: sums, Created: k.cfg.Now().UTC().Truncate(time.Second),
		})
		return true
	})
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", k.act("record it"), err)
	}
	if err := k.cfg.Watcher.Refresh(ctx); err != nil {
		return fault.New(fault.Precondition, "%s: %w", k.act("read it back"), err)
	}
	return nil
}

// change changes the record of an image, and waits while somebody else does.
func (m *Images) change(ctx context.Context, name string, f func(*record.Image) bool) (img record.Image, err error) {
	err = ops.Retry(ctx, underChange, func(context.Context) error {
		img, err = m.cfg.Records.Update(name, f)
		return err
	})
	return img, err
}

func underChange(err error) bool {
	_, writing := errors.AsType[*record.IncompleteError](err)
	return writing || errors.Is(err, record.ErrNotMounted)
}

// progress is how much of a replica is copied, 0 to 1.
func (o memo) progress() float64 {
	var all, done int64
	for _, d := range o.Disks {
		all, done = all+d.Size, done+d.Offset
	}
	if all == 0 {
		return 0
	}
	return float64(done) / float64(all)
}

// progressOf reads the progress of an operation.
func progressOf(op ops.Op) float64 {
	var o memo
	if json.Unmarshal(op.Memo, &o) != nil {
		return 0
	}
	return o.progress()
}

// confHere reads the config of a VM on this node; nil when there is none here.
func (m *Images) confHere(vmid int) (*pmxcfs.Conf, error) {
	conf, err := m.cfg.Tree.Conf(m.cfg.Node, vmid)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = m.cfg.Tree.Version() // where nothing is mounted nothing is found, and that is no answer
		return nil, err
	}
	return conf, err
}
