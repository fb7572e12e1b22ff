package pvesim

import (
	"context"
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
	log    string // for the task log
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
	for _, key := range vmconf.SplitList(rq.param("revert")) {
		ch.revert[key] = true
	}
	for _, key := range vmconf.SplitList(rq.param("delete")) {
		if _, ok := ch.set[key]; ok {
			return nil, paramError("delete", "you can't use '-%s' and -delete %s' at the same time", key, key)
		}
		ch.del = append(ch.del, key)
	}
	if len(ch.set)+len(ch.del)+len(ch.revert) == 0 {
		return nil, dief("no options specified")
	}
	if err := c.checkDrives(rq, ch); err != nil {
		return nil, err
	}
	if err := c.mayChange(rq, append(slices.Clone(ch.del), sortedKeys(ch.set)...)); err != nil {
		return nil, err
	}
	c.completeOptions(ch)
	return ch, c.checkAccess(rq, ch.set)
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
	}
	return nil
}

// checkAccess wants the privileges on storages and bridges that the new
// values use.
func (c *Cluster) checkAccess(rq *request, set map[string]string) error {
	for _, key := range sortedKeys(set) {
		switch {
		case vmconf.IsNIC(key):
			if err := c.checkBridge(rq.who, vmconf.ParseNIC(key, set[key])); err != nil {
				return err
			}
		case vmconf.IsDrive(key):
			d := vmconf.ParseDrive(key, set[key])
			if m := newDiskValue.FindStringSubmatch(d.File); m != nil {
				if err := rq.who.check("/storage/"+m[1], "Datastore.AllocateSpace"); err != nil {
					return err
				}
			}
		}
	}
	return nil
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
	for key, v := range ch.set {
		next[key] = v
	}
	_, mem := ch.set["memory"]
	_, bal := ch.set["balloon"]
	if (mem || bal) && next.Int("balloon", 0) > next.MemoryMiB() {
		return nil, dief("balloon value too large (must be smaller than assigned memory)")
	}
	return conf, nil
}

// update carries a change out. The caller holds the VM's lock.
func (c *Cluster) update(ctx context.Context, n *Node, vmid int, ch *change, t *Task) error {
	conf, err := c.checkedConf(n, vmid, ch)
	if err != nil {
		return err
	}
	if t != nil {
		t.logf("update VM %d: %s", vmid, ch.log)
	}
	for key := range ch.revert {
		delete(conf.Pending, key)
		gone := conf.PendingDelete()
		delete(gone, key)
		conf.SetPendingDelete(gone)
	}
	if err := c.pendDeletes(ctx, n, vmid, conf, ch, t); err != nil {
		return err
	}
	if err := c.pendValues(ctx, n, vmid, conf, ch, t); err != nil {
		return err
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

func (c *Cluster) pendDeletes(_ context.Context, n *Node, vmid int, conf *vmconf.Conf, ch *change, t *Task) error {
	gone := conf.PendingDelete()
	for _, key := range ch.del {
		v, ok := conf.Main[key]
		if !ok {
			v, ok = conf.Pending[key]
		}
		if !ok {
			if t != nil {
				t.warnf("cannot delete '%s' - not set in current configuration!", key)
			}
			continue
		}
		delete(conf.Pending, key)
		if strings.HasPrefix(key, "unused") {
			if err := checkProtection(conf, "can't remove unused disk '"+v+"'"); err != nil {
				return err
			}
			if err := c.pool.free(n.Name, vmconf.ParseDrive(key, v).File); err != nil {
				return err
			}
			delete(conf.Main, key)
			continue
		}
		if vmconf.IsDrive(key) {
			if err := checkProtection(conf, "can't remove drive '"+key+"'"); err != nil {
				return err
			}
		}
		gone[key] = ch.force
	}
	conf.SetPendingDelete(gone)
	return nil
}

func (c *Cluster) pendValues(ctx context.Context, n *Node, vmid int, conf *vmconf.Conf, ch *change, t *Task) error {
	gone := conf.PendingDelete()
	for _, key := range sortedKeys(ch.set) {
		v := ch.set[key]
		switch {
		case vmconf.IsDrive(key):
			var err error
			if v, err = c.makeDrive(ctx, n, vmid, vmconf.ParseDrive(key, v), t); err != nil {
				return err
			}
		case key == "cipassword" && !strings.HasPrefix(v, "$"):
			v = "$5$pvesim$" + randomHex(21)
		case key == "tags":
			v = cleanTags(v)
		case key == "boot":
			if err := checkBoot(conf, ch, v); err != nil {
				return err
			}
		}
		if key == Description && v == "" {
			gone[key] = false
			continue
		}
		conf.Pending[key] = v
		delete(gone, key)
	}
	conf.SetPendingDelete(gone)
	return nil
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
