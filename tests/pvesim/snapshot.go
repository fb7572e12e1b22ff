package pvesim

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// listSnapshots is GET .../snapshot; the live state is the last, "current".
func (c *Cluster) listSnapshots(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, name := range sortedKeys(conf.Snapshots) {
		s := conf.Snapshots[name]
		e := map[string]any{"name": name, "snaptime": s.Int("snaptime", 0), "vmstate": bit(s["vmstate"] != ""), "description": s[Description]}
		for _, key := range []string{"parent", "snapstate"} {
			if s[key] != "" {
				e[key] = s[key]
			}
		}
		out = append(out, e)
	}
	current := map[string]any{
		"name": "current", "digest": conf.Digest, "description": "You are here!",
		"running": bit(c.machines.on(rq.node.Name, rq.vmid()) != nil),
	}
	if p := conf.Main["parent"]; p != "" {
		current["parent"] = p
	}
	return append(out, current), nil
}

var snapshotName = regexp.MustCompile(`(?i)^[a-z][a-z0-9_-]+$`)

// createSnapshot is POST .../snapshot.
func (c *Cluster) createSnapshot(_ context.Context, rq *request) (any, error) {
	name := rq.param("snapname")
	switch {
	case name == "current" || name == "pending":
		return nil, dief("unable to use snapshot name '%s' (reserved name)", name)
	case !snapshotName.MatchString(name):
		return nil, paramError("snapname", "invalid format - invalid configuration ID '%s'\n", name)
	}
	n, vmid := rq.node, rq.vmid()
	if _, err := c.loadConf(n, vmid); err != nil {
		return nil, err
	}
	state, comment := rq.flag("vmstate"), rq.param("description")
	return c.fork(n.Name, "qmsnapshot", itoa(vmid), rq.who, work{slow: true, run: func(ctx context.Context, t *Task) error {
		return c.takeSnapshot(ctx, n, vmid, name, comment, state, t)
	}}), nil
}

// takeSnapshot does it in PVE's three steps: the config first (locked), the
// disks, the config again.
func (c *Cluster) takeSnapshot(ctx context.Context, n *Node, vmid int, name, comment string, state bool, t *Task) error {
	job := snapshotJob{n, vmid, name, comment, state, t}
	err := c.editConf(ctx, n, vmid, t, func(conf *vmconf.Conf) error {
		return c.prepareSnapshot(ctx, job, conf)
	})
	if err != nil {
		return err
	}
	err = c.slowPoint(ctx, t)
	if err == nil {
		err = c.snapshotDisks(ctx, n, vmid, name, t)
	}
	return c.finishSnapshot(ctx, n, vmid, name, err, t)
}

// snapshotJob is a snapshot that is about to be made.
type snapshotJob struct {
	node          *Node
	vmid          int
	name, comment string
	state         bool // with what is in memory
	t             *Task
}

// editConf changes a config under its lock.
func (c *Cluster) editConf(ctx context.Context, n *Node, vmid int, t *Task, edit func(*vmconf.Conf) error) error {
	return c.lockConf(ctx, n, vmid, t, func() error {
		conf, err := c.loadConf(n, vmid)
		if err != nil {
			return err
		}
		if err := edit(conf); err != nil {
			return err
		}
		return c.saveConf(n, vmid, conf)
	})
}

func (c *Cluster) prepareSnapshot(ctx context.Context, job snapshotJob, conf *vmconf.Conf) error {
	name := job.name
	if conf.Main.Bool("template", false) {
		return dief("you can't take a snapshot if it's a template")
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	if _, ok := conf.Snapshots[name]; ok {
		return dief("snapshot name '%s' already used", name)
	}
	for _, d := range conf.Main.Drives() {
		if !d.CDROM() && !c.pool.hasFeature("snapshot", d.File, false) {
			return dief("snapshot feature is not available")
		}
	}
	state, err := c.stateVolume(ctx, job, conf.Main)
	if err != nil {
		return err
	}
	snap := conf.Main.Clone()
	for _, key := range []string{"lock", "digest", Description} {
		delete(snap, key)
	}
	for key := range snap {
		if isUnused(key) {
			delete(snap, key)
		}
	}
	snap["snapstate"] = "prepare"
	snap["snaptime"] = fmt.Sprint(time.Now().Unix())
	if job.comment != "" {
		snap[Description] = job.comment
	}
	if state != "" {
		snap["vmstate"] = state
		snap["runningmachine"], snap["runningcpu"] = c.newestMachine("i440fx"), "qemu64"
	}
	conf.Snapshots[name] = snap
	conf.Main["lock"] = "snapshot"
	return nil
}

// stateVolume makes the volume for what is in the memory of a running VM: in
// the storage that the config names, else a shared one it has a disk on, else
// one of its others. It has room for twice the memory.
func (c *Cluster) stateVolume(ctx context.Context, job snapshotJob, conf vmconf.Section) (string, error) {
	if !job.state || c.machines.on(job.node.Name, job.vmid) == nil {
		return "", nil
	}
	target := conf["vmstatestorage"]
	for _, d := range conf.Drives() {
		s, err := c.pool.get(d.Storage())
		if err != nil || conf["vmstatestorage"] != "" {
			continue
		}
		if now, err := c.pool.get(target); err != nil || s.Shared && !now.Shared || s.Shared == now.Shared && !s.block() {
			target = s.Name
		}
	}
	def(&target, StorageLocal)
	s, err := c.pool.enabled(target, job.node.Name)
	if err != nil {
		return "", err
	}
	size := int64(2*conf.MemoryMiB()+500) << 20
	return c.allocate(ctx, job.node, s.Name, job.vmid, s.volumeName(job.vmid, "state-"+job.name, "raw"), "raw", size, job.t)
}

// saveMemory snapshots the disks of a real machine together with its memory. Stock QEMU lacks Proxmox VE's savevm-start,
// which writes the memory into a volume of its own: its savevm writes it into the first disk.
func saveMemory(ctx context.Context, m *machine, name string) error {
	raw, err := m.proc.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "savevm " + name})
	if err != nil {
		return dief("unable to save VM state and RAM - %s", err)
	}
	var said string
	if err := json.Unmarshal(raw, &said); err != nil || said != "" {
		return dief("unable to save VM state and RAM - %s", strings.TrimSpace(said))
	}
	return nil
}

func (c *Cluster) snapshotDisks(ctx context.Context, n *Node, vmid int, name string, t *Task) error {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return err
	}
	m := c.machines.on(n.Name, vmid)
	if state := conf.Snapshots[name]["vmstate"]; state != "" {
		t.logf("saving VM state and RAM using storage '%s'", vmconf.ParseDrive("vmstate", state).Storage())
		if m != nil && m.real {
			return saveMemory(ctx, m, name)
		}
	}
	for _, d := range conf.Snapshots[name].Drives() {
		if d.CDROM() || d.Storage() == "" {
			continue
		}
		t.logf("snapshotting 'drive-%s' (%s)", d.Key, d.File)
		path, err := c.pool.exists(n.Name, d.File)
		if err != nil {
			return err
		}
		if m != nil && m.real {
			t.logf("internal qemu snapshot")
			args := map[string]any{"device": "drive-" + d.Key, "name": name}
			if _, err := m.proc.Execute(ctx, "blockdev-snapshot-internal-sync", args); err != nil {
				return dief("VM %d qmp command 'blockdev-snapshot-internal-sync' failed - %s", vmid, err)
			}
			continue
		}
		if err := c.disks.Snapshot(ctx, path, name); err != nil {
			return dief("qemu-img snapshot failed: %s", err)
		}
	}
	return nil
}

// finishSnapshot commits it, or takes it back when the disks failed.
func (c *Cluster) finishSnapshot(ctx context.Context, n *Node, vmid int, name string, failed error, t *Task) error {
	if failed != nil {
		t.logf("snapshot create failed: starting cleanup")
	}
	err := c.editConf(context.WithoutCancel(ctx), n, vmid, t, func(conf *vmconf.Conf) error {
		if conf.Main["lock"] != "snapshot" {
			return dief("missing snapshot lock")
		}
		delete(conf.Main, "lock")
		snap := conf.Snapshots[name]
		if failed != nil {
			delete(conf.Snapshots, name)
			return c.freeState(n, snap)
		}
		delete(snap, "snapstate")
		conf.Main["parent"] = name
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// freeState removes the volume with a snapshot's memory.
func (c *Cluster) freeState(n *Node, snap vmconf.Section) error {
	if snap["vmstate"] == "" {
		return nil
	}
	return c.pool.free(n.Name, snap["vmstate"])
}

// deleteSnapshot is DELETE .../snapshot/{snapname}.
func (c *Cluster) deleteSnapshot(_ context.Context, rq *request) (any, error) {
	n, vmid, name := rq.node, rq.vmid(), rq.vars["snapname"]
	return c.fork(n.Name, "qmdelsnapshot", itoa(vmid), rq.who, work{slow: true, run: func(ctx context.Context, t *Task) error {
		err := c.editConf(ctx, n, vmid, t, func(conf *vmconf.Conf) error {
			if _, ok := conf.Snapshots[name]; !ok {
				return dief("snapshot '%s' does not exist", name)
			}
			if err := checkLock(conf); err != nil {
				return err
			}
			conf.Main["lock"] = "snapshot-delete"
			conf.Snapshots[name]["snapstate"] = "delete"
			return nil
		})
		if err != nil {
			return err
		}
		if err := c.slowPoint(ctx, t); err != nil {
			return err
		}
		return c.dropSnapshot(ctx, n, vmid, name, rq.flag("force"), t)
	}}), nil
}

func (c *Cluster) dropSnapshot(ctx context.Context, n *Node, vmid int, name string, force bool, t *Task) error {
	return c.editConf(ctx, n, vmid, t, func(conf *vmconf.Conf) error {
		snap := conf.Snapshots[name]
		m := c.machines.on(n.Name, vmid)
		for _, d := range snap.Drives() {
			path, err := c.pool.exists(n.Name, d.File)
			if err != nil || d.CDROM() {
				continue
			}
			if m != nil && m.real {
				_, err = m.proc.Execute(ctx, "blockdev-snapshot-delete-internal-sync", map[string]any{"device": "drive-" + d.Key, "name": name})
			} else {
				err = c.disks.DeleteSnapshot(ctx, path, name)
			}
			if err != nil && !force {
				return dief("%s", err)
			}
		}
		if err := c.freeState(n, snap); err != nil && !force {
			return err
		}
		relink := func(s vmconf.Section) {
			if s["parent"] != name {
				return
			}
			delete(s, "parent")
			if snap["parent"] != "" {
				s["parent"] = snap["parent"]
			}
		}
		relink(conf.Main)
		for _, s := range conf.Snapshots {
			relink(s)
		}
		delete(conf.Snapshots, name)
		delete(conf.Main, "lock")
		return nil
	})
}

// snapshotConfig is GET .../snapshot/{snapname}/config.
func (c *Cluster) snapshotConfig(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	snap, ok := conf.Snapshots[rq.vars["snapname"]]
	if !ok {
		return nil, dief("snapshot '%s' does not exist", rq.vars["snapname"])
	}
	return sectionJSON(snap), nil
}

// describeSnapshot is PUT .../snapshot/{snapname}/config.
func (c *Cluster) describeSnapshot(ctx context.Context, rq *request) (any, error) {
	name := rq.vars["snapname"]
	return nil, c.editConf(ctx, rq.node, rq.vmid(), nil, func(conf *vmconf.Conf) error {
		if err := checkLock(conf); err != nil {
			return err
		}
		snap, ok := conf.Snapshots[name]
		if !ok {
			return dief("snapshot '%s' does not exist", name)
		}
		if rq.has("description") {
			snap[Description] = rq.param("description")
		}
		return nil
	})
}
