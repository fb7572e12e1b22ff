package pvesim

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// change is a checked request to change a config.
type change struct {
	set    map[string]string
	del    []string
	revert map[string]bool
	force  bool
	digest string
	also   []string // options that change with those
	log    string   // for the task log
	who    principal
}

// notOptions are parameters of the call that are no options of the VM.
var notOptions = []string{
	"node", "vmid", "digest", "background_delay", "skiplock", "delete", "revert", "force", "import-working-storage",
}

// putConfig is PUT .../config: done when it answers.
func (c *Cluster) putConfig(ctx context.Context, rq *request) (any, error) {
	ch, err := c.parseChange(rq)
	if err != nil {
		return nil, err
	}
	n, vmid := rq.node, rq.vmid()
	if _, err := c.checkedConf(n, vmid, ch); err != nil {
		return nil, err
	}
	return nil, c.lockConf(ctx, n, vmid, nil, func() error { return c.update(ctx, n, vmid, ch, nil) })
}

// postConfig is POST .../config: a task.
func (c *Cluster) postConfig(ctx context.Context, rq *request) (any, error) {
	ch, err := c.parseChange(rq)
	if err != nil {
		return nil, err
	}
	n, vmid := rq.node, rq.vmid()
	if _, err := c.checkedConf(n, vmid, ch); err != nil {
		return nil, err
	}
	upid := c.fork(n.Name, "qmconfig", itoa(vmid), rq.who, work{run: func(ctx context.Context, t *Task) error {
		return c.lockConf(ctx, n, vmid, t, func() error { return c.update(ctx, n, vmid, ch, t) })
	}})
	if delay := rq.number("background_delay", 0); delay > 0 {
		return c.awaitTask(ctx, upid, delay)
	}
	return upid, nil
}

func (c *Cluster) parseChange(rq *request) (*change, error) {
	if err := rq.rootOnly("skiplock"); err != nil {
		return nil, err
	}
	ch := &change{
		set: map[string]string{}, revert: map[string]bool{}, force: rq.flag("force"),
		digest: rq.param("digest"), who: rq.who, log: changeLog(rq.params),
	}
	for key := range rq.params {
		if !slices.Contains(notOptions, key) {
			ch.set[key] = rq.params.Get(key)
		}
	}
	if v, ok := ch.set["cdrom"]; ok { // PVE's older name for it
		if !strings.Contains(v, "media=") {
			v += ",media=cdrom"
		}
		delete(ch.set, "cdrom")
		ch.set["ide2"] = v
	}
	if err := ch.parseLists(rq); err != nil {
		return nil, err
	}
	if len(ch.set)+len(ch.del)+len(ch.revert) == 0 {
		return nil, dief("no options specified")
	}
	if err := c.checkDrives(rq, ch); err != nil {
		return nil, err
	}
	if err := c.mayChange(rq, ch); err != nil {
		return nil, err
	}
	c.completeOptions(ch)
	return ch, c.checkAccess(rq, ch.set)
}

// parseLists reads what to delete and what to revert.
func (ch *change) parseLists(rq *request) error {
	for _, key := range vmconf.SplitList(rq.param("revert")) {
		if !vmconf.IsOption(key) {
			return paramError("revert", "unknown option '%s'", key)
		}
		if _, ok := ch.set[key]; ok {
			return paramError("delete", "you can't use '-%s' and -revert %s' at the same time", key, key)
		}
		ch.revert[key] = true
	}
	for _, key := range vmconf.SplitList(rq.param("delete")) {
		if key == "cdrom" {
			key = "ide2"
		}
		_, set := ch.set[key]
		switch {
		case set:
			return paramError("delete", "you can't use '-%s' and -delete %s' at the same time", key, key)
		case ch.revert[key]:
			return paramError("revert", "you can't use '-delete %s' and -revert %s' at the same time", key, key)
		case !vmconf.IsOption(key):
			return paramError("delete", "unknown option '%s'", key)
		}
		ch.del = append(ch.del, key)
	}
	return nil
}

func changeLog(params url.Values) string {
	var parts []string
	for _, key := range sortedKeys(params) {
		if key == "digest" || key == "background_delay" || key == "node" || key == "vmid" {
			continue
		}
		v := params.Get(key)
		if key == "cipassword" {
			v = "<hidden>"
		}
		parts = append(parts, "-"+key+" "+v)
	}
	return strings.Join(parts, " ")
}

// completeOptions adds what PVE makes up: MAC addresses, generation ids.
func (c *Cluster) completeOptions(ch *change) {
	for key, v := range ch.set {
		switch {
		case vmconf.IsNIC(key):
			nic := vmconf.ParseNIC(key, v)
			def(&nic.MAC, newMAC())
			ch.set[key] = nic.String()
		case key == "vmgenid" && v == "1":
			ch.set[key] = newUUID()
		case key == "cpuunits" && atoi(v) > 10000: // what a cgroup of version 2 takes
			ch.set[key] = "10000"
		}
	}
}

// newDiskValue is "<storage>:<size in GiB>", a volume to be made.
var newDiskValue = regexp.MustCompile(`^([^/:\s]+):(\d+(?:\.\d+)?)$`)

// checkDrives refuses values that name storages or volumes that are not there.
func (c *Cluster) checkDrives(rq *request, ch *change) error {
	for _, key := range sortedKeys(ch.set) {
		if !vmconf.IsDrive(key) {
			continue
		}
		d := vmconf.ParseDrive(key, ch.set[key])
		if d.File == "" {
			return paramError(key, "unable to parse drive options")
		}
		if err := checkImport(d); err != nil {
			return err
		}
		ch.set[key] = d.String()
		if d.File == "none" || d.File == "cdrom" {
			continue
		}
		if !strings.Contains(d.File, ":") {
			return paramError(key, "invalid format - format error\n%s.file: invalid format - unable to parse volume ID '%s'\n\n", key, d.File)
		}
		if _, err := c.pool.enabled(d.Storage(), rq.node.Name); err != nil {
			return err
		}
		if v, err := parseVolume(d.File); err == nil && v.kind == "iso" && !d.CDROM() {
			return paramError(key, "explicit 'media=cdrom' is required for iso images")
		}
	}
	return nil
}

func checkImport(d vmconf.Drive) error {
	if _, ok := d.Opts["import-from"]; !ok {
		return nil
	}
	if m := newDiskValue.FindStringSubmatch(d.File); m == nil || strings.Trim(m[2], "0.") != "" {
		return paramError(d.Key, "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>")
	}
	needs := map[string][]string{"efidisk0": {"efitype", "pre-enrolled-keys"}, "tpmstate0": {"version"}}
	for _, opt := range needs[d.Key] {
		if d.Opts[opt] == "" {
			return paramError(d.Key, "need to specify '%s' when using 'import-from'", opt)
		}
	}
	return nil
}

// checkAccess wants the privileges on storages and bridges that the new
// values use.
func (c *Cluster) checkAccess(rq *request, set map[string]string) error {
	for _, key := range sortedKeys(set) {
		var err error
		switch {
		case vmconf.IsNIC(key):
			err = c.checkBridge(rq.who, vmconf.ParseNIC(key, set[key]))
		case vmconf.IsDrive(key):
			err = c.checkDriveAccess(rq, vmconf.ParseDrive(key, set[key]))
		case isUnused(key):
			err = c.checkVolume(rq, vmconf.ParseDrive(key, set[key]).File)
		case key == "vmstatestorage":
			err = rq.who.check("/storage/"+set[key], "Datastore.AllocateSpace")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) checkDriveAccess(rq *request, d vmconf.Drive) error {
	switch m := newDiskValue.FindStringSubmatch(d.File); {
	case d.File == "none", strings.HasSuffix(d.File, ":cloudinit"):
		return nil
	case d.File == "cdrom":
		return rq.who.check("/", "Sys.Console")
	case m == nil:
		return c.checkVolume(rq, d.File)
	default:
		if err := rq.who.check("/storage/"+m[1], "Datastore.AllocateSpace"); err != nil {
			return err
		}
		if s, err := c.pool.get(m[1]); err != nil || !s.holds("images") {
			return errors.Join(err, paramError("storage", "storage '%s' does not support vm images", m[1]))
		}
	}
	return c.checkImportAccess(rq, d)
}

func (c *Cluster) checkImportAccess(rq *request, d vmconf.Drive) error {
	src, ok := d.Opts["import-from"]
	if !ok {
		return nil
	}
	if !strings.Contains(src, ":") {
		return c.checkVolume(rq, src)
	}
	v, err := parseVolume(src)
	switch {
	case err != nil:
		return err
	case v.kind != "images" && v.kind != "import":
		return paramError(d.Key, "%s has wrong type '%s' - needs to be 'images' or 'import'", src, v.kind)
	case v.owner != 0:
		return rq.who.check("/vms/"+itoa(v.owner), "VM.Clone")
	}
	return c.checkVolume(rq, src)
}

// checkVolume is check_volume_access of PVE::Storage.
func (c *Cluster) checkVolume(rq *request, volid string) error {
	if !strings.Contains(volid, ":") {
		if rq.who.root() {
			return nil
		}
		return dief("Only root can pass arbitrary filesystem paths.")
	}
	v, err := parseVolume(volid)
	if err != nil {
		return err
	}
	if _, err := c.pool.get(v.storage); err != nil {
		return err
	}
	path := "/storage/" + v.storage
	if rq.who.may(path, "Datastore.Allocate") {
		return nil
	}
	switch {
	case v.kind == "iso", v.kind == "vztmpl", v.kind == "import":
		return rq.who.checkAny(path, "Datastore.AllocateSpace", "Datastore.Audit")
	case v.kind == "images" && v.owner == rq.vmid():
		return nil
	case v.kind == "images":
		if err := rq.who.check(path, "Datastore.Audit"); err != nil {
			return err
		}
		return rq.who.check("/vms/"+itoa(v.owner), "VM.Config.Disk")
	}
	return dief("missing privileges to access %s", volid)
}

// checkBridge is asked since PVE 8.
func (c *Cluster) checkBridge(who principal, nic vmconf.NIC) error {
	bridge := nic.Opts["bridge"]
	if c.cfg.major() < 8 || bridge == "" {
		return nil
	}
	path := "/sdn/zones/localnetwork/" + bridge
	if tag := nic.Opts["tag"]; tag != "" {
		path += "/" + tag
	}
	return who.checkAny(path, "SDN.Use")
}

// checkedConf loads the config and refuses a wrong digest, a lock, and
// numbers that do not fit together.
func (c *Cluster) checkedConf(n *Node, vmid int, ch *change) (*vmconf.Conf, error) {
	conf, err := c.loadConf(n, vmid)
	if err != nil {
		return nil, err
	}
	if ch.digest != "" && ch.digest != conf.Digest {
		return nil, dief("checksum mismatch (file change by other user?)")
	}
	if err := checkLock(conf); err != nil {
		return nil, err
	}
	next := effective(conf)
	maps.Copy(next, ch.set)
	_, mem := ch.set["memory"]
	_, bal := ch.set["balloon"]
	if (mem || bal) && next.Int("balloon", 0) > next.MemoryMiB() {
		return nil, dief("balloon value too large (must be smaller than assigned memory)")
	}
	return conf, nil
}

// update carries a change out. The caller holds the VM's lock. Like PVE it
// writes the config after each option: what comes before one that fails stays
// pending.
func (c *Cluster) update(ctx context.Context, n *Node, vmid int, ch *change, t *Task) error {
	conf, err := c.checkedConf(n, vmid, ch)
	if err != nil {
		return err
	}
	if t != nil {
		t.logf("update VM %d: %s", vmid, ch.log)
	}
	u := &updating{c: c, driveJob: driveJob{n, vmid, conf, ch.who, t}, ch: ch, order: bootOrder(conf.Main)}
	u.revert()
	for _, key := range ch.del {
		if err := u.remove(key); err != nil {
			return err
		}
	}
	for _, key := range sortedKeys(ch.set) {
		if err := u.put(ctx, key, ch.set[key]); err != nil {
			return err
		}
	}
	cleanPending(conf)
	if err := c.saveConf(n, vmid, conf); err != nil {
		return err
	}
	if len(conf.Pending) == 0 {
		return nil
	}
	errs := map[string]string{}
	if m := c.machines.on(n.Name, vmid); m != nil {
		err = c.hotplug(ctx, m, conf, ch, errs)
	} else {
		err = c.applyPending(ctx, n, vmid, conf, errs)
	}
	if err == nil && len(errs) > 0 {
		err = paramErrors(errs)
	}
	return err
}

// Description is the option for a VM's notes.
const Description = vmconf.Description

func checkBoot(conf *vmconf.Conf, ch *change, v string) error {
	for _, dev := range vmconf.SplitList(vmconf.Props(v, "legacy")["order"]) {
		_, now := conf.Main[dev]
		_, soon := conf.Pending[dev]
		_, asked := ch.set[dev]
		if (!now && !soon && !asked) || slices.Contains(ch.del, dev) {
			return dief("invalid bootorder: device '%s' does not exist'", dev)
		}
	}
	return nil
}

// cleanTags sorts, lowers and makes unique, as PVE does by default.
func cleanTags(v string) string {
	tags := vmconf.SplitList(strings.ToLower(v))
	slices.Sort(tags)
	return strings.Join(slices.Compact(tags), ";")
}

// cleanPending drops what changes nothing.
func cleanPending(conf *vmconf.Conf) {
	for key, v := range conf.Pending {
		if key != "delete" && conf.Main[key] == v {
			delete(conf.Pending, key)
		}
	}
	gone := conf.PendingDelete()
	for key := range gone {
		if _, ok := conf.Main[key]; !ok {
			delete(gone, key)
		}
	}
	conf.SetPendingDelete(gone)
}
