package pvesim

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// cloneJob is a clone that is about to be made.
type cloneJob struct {
	src, dst      int
	node          *Node
	target        *Node // nil: stays here
	storage       string
	format        string
	name, comment string
	pool          string
	snap          string
	full          bool

	conf    vmconf.Section // of the source
	drives  []vmconf.Drive
	next    *vmconf.Conf // of the clone
	pending []string     // keys of the source's pending changes, which are dropped
}

// cloneLockWait is how long a clone waits for the locks of its two VMs.
const cloneLockWait = time.Second

// clone is POST .../clone.
func (c *Cluster) clone(_ context.Context, rq *request) (any, error) {
	if _, err := c.running(rq.node, rq.vmid()); err != nil {
		return nil, err
	}
	job := &cloneJob{
		src: rq.vmid(), dst: rq.number("newid", 0), node: rq.node,
		storage: rq.param("storage"), format: rq.param("format"),
		name: rq.param("name"), comment: rq.param("description"), snap: rq.param("snapname"),
		pool: rq.param("pool"),
	}
	if job.dst < 100 {
		return nil, paramError("newid", "invalid format - value does not look like a valid VM ID\n")
	}
	if err := c.checkClone(rq, job); err != nil {
		return nil, err
	}
	return c.fork(job.node.Name, "qmclone", itoa(job.src), rq.who, work{slow: true, run: func(ctx context.Context, t *Task) error {
		shared := c.machines.on(job.node.Name, job.src) == nil
		return c.withLock(ctx, job.node, job.src, cloneLockWait, shared, t, func() error {
			return c.withLock(ctx, job.node, job.dst, cloneLockWait, false, t, func() error {
				if err := c.checkClone(rq, job); err != nil {
					return err
				}
				return c.runClone(ctx, job, t)
			})
		})
	}}), nil
}

// checkClone is done before the task starts and again inside it.
func (c *Cluster) checkClone(rq *request, job *cloneJob) error {
	if err := c.checkCloneTarget(rq, job); err != nil {
		return err
	}
	if err := c.needQuorum(job.node); err != nil {
		return err
	}
	conf, err := c.loadConf(job.node, job.src)
	if err != nil {
		return err
	}
	if err := checkLock(conf); err != nil {
		return err
	}
	job.conf = conf.Main
	if job.snap != "" {
		snap, ok := conf.Snapshots[job.snap]
		if !ok {
			return dief("snapshot '%s' does not exist", job.snap)
		}
		job.conf = snap
	}
	job.pending = sortedKeys(conf.Pending)
	job.full = !conf.Main.Bool("template", false)
	if rq.has("full") {
		job.full = rq.flag("full")
	}
	for name, v := range map[string]string{"storage": job.storage, "format": job.format} {
		if v != "" && !job.full {
			return dief("parameter '%s' not allowed for linked clones", name)
		}
	}
	shared, err := c.cloneAccess(rq, job)
	if err != nil {
		return err
	}
	if job.target != nil && !shared {
		return dief("can't clone VM to node '%s' (VM uses local storage)", job.target.Name)
	}
	if _, err := c.tree.readConf(job.node.Name, job.dst); err == nil {
		return dief("unable to create VM %d: config file already exists", job.dst)
	}
	return c.planClone(job)
}

func (c *Cluster) checkCloneTarget(rq *request, job *cloneJob) error {
	job.target = nil
	if job.pool != "" && !c.pools.exists(job.pool) {
		return dief("pool '%s' does not exist", job.pool)
	}
	if name := rq.param("target"); name != "" && name != job.node.Name && name != "localhost" {
		if job.target = c.byName[name]; job.target == nil {
			return dief("no such cluster node '%s'", name)
		}
	}
	if job.storage == "" {
		return nil
	}
	s, err := c.pool.enabled(job.storage, job.node.Name)
	if err != nil {
		return err
	}
	if !s.holds("images") {
		return paramError("storage", "storage '%s' does not support vm images", job.storage)
	}
	if job.target != nil {
		if _, err := c.pool.enabled(job.storage, job.target.Name); err != nil {
			return err
		}
		if !s.Shared {
			return dief("can't clone to non-shared storage '%s'", job.storage)
		}
	}
	return nil
}

// cloneAccess wants the privileges on storages and bridges, and says whether
// every volume is on shared storage.
func (c *Cluster) cloneAccess(rq *request, job *cloneJob) (shared bool, err error) {
	shared = true
	for _, d := range job.conf.Drives() {
		name := d.Storage()
		if name == "" {
			continue
		}
		s, err := c.pool.get(name)
		if err != nil {
			return false, err
		}
		shared = shared && s.Shared
		if d.CDROM() {
			continue
		}
		if job.storage != "" {
			name = job.storage
		}
		if err := rq.who.check("/storage/"+name, "Datastore.AllocateSpace"); err != nil {
			return false, err
		}
	}
	for _, key := range sortedKeys(job.conf) {
		if vmconf.IsNIC(key) {
			if err := c.checkBridge(rq.who, vmconf.ParseNIC(key, job.conf[key])); err != nil {
				return false, err
			}
		}
	}
	return shared, nil
}

var notCloned = regexp.MustCompile(`^(parent|snaptime|vmstate|snapstate|runningcpu|runningmachine|running-nets-host-mtu|template|lock|unused\d+)$`)

// planClone makes the clone's config but for the disks.
func (c *Cluster) planClone(job *cloneJob) error {
	job.next, job.drives = vmconf.New(), nil
	next := job.next.Main
	for _, key := range sortedKeys(job.conf) {
		v := job.conf[key]
		switch {
		case notCloned.MatchString(key):
		case vmconf.IsNIC(key):
			nic := vmconf.ParseNIC(key, v)
			nic.MAC = newMAC()
			next[key] = nic.String()
		case vmconf.IsDrive(key):
			d := vmconf.ParseDrive(key, v)
			if d.CDROM() && !d.CloudInit() {
				next[key] = v
				continue
			}
			if err := c.cloneable(job, d); err != nil {
				return err
			}
			job.drives = append(job.drives, d)
		default:
			next[key] = v
		}
	}
	smbios := vmconf.Props(next["smbios1"], "")
	smbios["uuid"] = newUUID()
	next["smbios1"] = joinProps(smbios)
	if next["vmgenid"] != "" {
		next["vmgenid"] = newUUID()
	}
	next["lock"] = "clone"
	next["name"] = job.name
	if job.name == "" {
		next["name"] = "Copy-of-VM-" + job.conf["name"]
	}
	if job.comment != "" {
		next[Description] = strings.TrimRight(job.comment, "\n")
	}
	return nil
}

// copied says whether a drive is copied rather than linked.
func (job *cloneJob) copied(d vmconf.Drive) bool {
	return job.full || d.CloudInit() || d.Key == "tpmstate0"
}

// cloneable refuses drives that their storage cannot clone that way.
func (c *Cluster) cloneable(job *cloneJob, d vmconf.Drive) error {
	if d.Key == "tpmstate0" && job.full && job.snap == "" && c.machines.on(job.node.Name, job.src) != nil {
		return dief("cannot clone TPM state while VM is running")
	}
	how, feature := "Linked", "clone"
	if job.copied(d) {
		how, feature = "Full", "copy"
	}
	// The cloud-init drive is made anew and not copied from a snapshot.
	if c.pool.hasFeature(feature, d.File, job.snap != "" && !d.CloudInit()) {
		return nil
	}
	of := ""
	if job.snap != "" {
		of = " a snapshot of"
	}
	return dief("%s clone feature is not supported for%s '%s' (%s)", how, of, d.File, d.Key)
}

func joinProps(m map[string]string) string {
	var parts []string
	for _, k := range sortedKeys(m) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}

// runClone makes the clone. The caller holds both locks.
func (c *Cluster) runClone(ctx context.Context, job *cloneJob, t *Task) error {
	if c.cfg.QuietClones {
		t.logf("clone VM %d", job.src)
	} else {
		t.logf("creating a clone of VM %d with ID %d", job.src, job.dst)
	}
	// Until the first disk is there the config says no more than this.
	if err := c.tree.writeConf(job.node.Name, job.dst, []byte("# qmclone temporary file\nlock: clone\n")); err != nil {
		return err
	}
	made, err := c.cloneDisks(ctx, job, t)
	if err == nil {
		err = c.finishClone(job, t)
	}
	if err == nil || abandoned(ctx, err) {
		return err
	}
	for _, volid := range made {
		if err := c.pool.free(job.node.Name, volid); err != nil {
			t.logf("%s", err)
		}
	}
	if err := c.tree.removeConf(job.node.Name, job.dst); err != nil {
		c.log.WarnContext(ctx, "remove config of a failed clone", "vmid", job.dst, "err", err)
	}
	return fmt.Errorf("clone failed: %w", err)
}

func (c *Cluster) cloneDisks(ctx context.Context, job *cloneJob, t *Task) (made []string, err error) {
	if err := c.slowPoint(ctx, t); err != nil {
		return nil, err
	}
	for _, d := range job.drives {
		volid, err := c.cloneDisk(ctx, job, d, t)
		if volid != "" {
			made = append(made, volid)
		}
		if err != nil {
			return made, err
		}
		path, err := c.pool.exists(job.node.Name, volid)
		if err != nil {
			return made, err
		}
		info, err := c.disks.Info(ctx, path)
		if err != nil {
			return made, err
		}
		d.File = volid
		d.Opts["size"] = vmconf.FormatSize(info.Virtual)
		job.next.Main[d.Key] = d.String()
		if err := c.saveConf(job.node, job.dst, job.next); err != nil {
			return made, err
		}
	}
	return made, nil
}

func (c *Cluster) cloneDisk(ctx context.Context, job *cloneJob, d vmconf.Drive, t *Task) (string, error) {
	storage := job.storage
	if storage == "" {
		storage = d.Storage()
	}
	if d.CloudInit() {
		t.logf("create full clone of drive %s (%s)", d.Key, d.File)
		s, err := c.pool.get(storage)
		if err != nil {
			return "", err
		}
		format := "qcow2"
		if s.block() {
			format = "raw"
		}
		return c.allocate(ctx, job.node, storage, job.dst, s.volumeName(job.dst, "cloudinit", format), format, cloudInitSize, t)
	}
	src, err := c.pool.exists(job.node.Name, d.File)
	if err != nil {
		return "", err
	}
	if job.copied(d) {
		t.logf("create full clone of drive %s (%s)", d.Key, d.File)
		format, err := c.cloneFormat(storage, d.File, job.format, t)
		if err != nil {
			return "", err
		}
		return c.copyVolume(ctx, job.node, src, job.snap, storage, job.dst, format, t)
	}
	return c.linkVolume(ctx, job, d, src, t)
}

// cloneFormat is the format asked for, else the source's, as far as the
// storage has it.
func (c *Cluster) cloneFormat(storage, src, asked string, t *Task) (string, error) {
	s, err := c.pool.get(storage)
	if err != nil {
		return "", err
	}
	v, err := parseVolume(src)
	if err != nil {
		return "", err
	}
	format := asked
	def(&format, v.format)
	if !s.block() {
		return s.chooseFormat(format)
	}
	if asked != "" && asked != "raw" {
		t.logf("format '%s' is not supported by the target storage '%s' - using 'raw' instead", asked, storage)
	}
	return "raw", nil
}

func (c *Cluster) linkVolume(ctx context.Context, job *cloneJob, d vmconf.Drive, src string, t *Task) (string, error) {
	t.logf("create linked clone of drive %s (%s)", d.Key, d.File)
	base, err := parseVolume(d.File)
	if err != nil {
		return "", err
	}
	volid, path, done, err := c.place(job.node, base.storage, job.dst, "", "qcow2")
	if err != nil {
		return "", err
	}
	defer done()
	s, err := c.pool.get(base.storage)
	if err != nil {
		return "", err
	}
	// A thin volume does not know what it came from, nor does one of a snapshot.
	alone := s.Type == TypeLVMThin || job.snap != ""
	make := c.disks.Linked
	if alone {
		make = func(ctx context.Context, src, dst string) error { return c.cloneImage(ctx, src, job.snap, dst) }
	}
	if err := c.makeImage(path, volid, 0, func() error { return make(ctx, src, path) }); err != nil {
		return "", err
	}
	v, err := parseVolume(volid)
	if err != nil || alone {
		return volid, err
	}
	v.base = base.asBase()
	t.logf("clone %s: images, %s, %d to %s (base=../%s)", v.base, v.name, job.dst, v.name, v.base)
	return v.String(), nil
}

func (c *Cluster) finishClone(job *cloneJob, t *Task) error {
	delete(job.next.Main, "lock")
	if len(job.pending) > 0 {
		t.logf("found pending changes for '%s', discarding for clone", strings.Join(job.pending, ","))
	}
	if err := c.saveConf(job.node, job.dst, job.next); err != nil {
		return err
	}
	if job.target != nil {
		if err := c.tree.moveConf(job.dst, job.node.Name, job.target.Name, nil); err != nil {
			return err
		}
	}
	if job.pool == "" {
		return nil
	}
	return c.pools.addVM(job.dst, job.pool)
}
