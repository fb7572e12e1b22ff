package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Now is a VM as it is, as far as a plan for changing it has to know.
type Now struct {
	Conf      *pmxcfs.Conf
	Ours      bool     // we have made it: its balloon is ours to set
	Running   bool     // it has a QEMU process; what follows is of that
	CPUs      int      // vCPUs that QEMU has; 0: unknown
	MemoryMiB int      // what the balloon leaves to the guest (query-balloon: actual); 0: unknown, or no balloon device
	Tags      []string // of the last request, as it wrote them
}

// Way is how a step is carried out.
type Way string

// The ways.
const (
	Set     Way = "set"     // PUT of config keys
	SetTask Way = "task"    // POST of config keys: the same as a task, for what takes long
	Plug    Way = "plug"    // vCPUs through QMP
	Balloon Way = "balloon" // PUT of config keys, then the balloon through QMP
	Resize  Way = "resize"  // of a disk
)

// Step is one change of a VM.
type Step struct {
	Part   string // "cpu", "memory", "options", or the config key of a disk
	Way    Way
	Waits  bool // what it writes has its effect at the VM's next start
	Config Values
	Delete []string // config keys
	CPUs   int      // of Plug
	MiB    int      // of Balloon
	Grow   Growth   // of Resize
	Why    string
}

// What says in words what the step changes.
func (s Step) What() string {
	switch s.Way {
	case Plug:
		return fmt.Sprintf("%d vCPUs", s.CPUs)
	case Balloon:
		return strings.TrimSuffix(fmt.Sprintf("balloon to %d MiB, %s", s.MiB, s.keys()), ", ")
	case Resize:
		return fmt.Sprintf("%s to %d GiB", s.Grow.Disk, s.Grow.GiB)
	}
	return s.keys()
}

func (s Step) keys() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(s.Config)) {
		parts = append(parts, k+": "+s.Config[k])
	}
	for _, k := range s.Delete {
		parts = append(parts, "no "+k)
	}
	return strings.Join(parts, ", ")
}

// Changes is what makes a VM as it is wished.
type Changes struct {
	Steps   []Step
	Refused []error  // parts of the wish that cannot be; the steps are right without them
	Ignored []string // what differs from the wish and is decided when a VM is made
}

// None reports that the VM is as it is wished, as far as it can be.
func (c Changes) None() bool { return len(c.Steps) == 0 && len(c.Refused) == 0 }

// Reconfigure plans the changes that make a VM what a class and disks say. What a running VM cannot take waits for its
// next start; nothing restarts it. Errors are of package fault.
func Reconfigure(wish spec.Reconfigure, now Now, site Site) (Changes, error) {
	r := reconfiguring{wish: wish, now: now, site: site, next: settled(now.Conf)}
	base := r.next
	if r.pinned() {
		// The balloon is where an earlier Reconfigure has put it, which says nothing about what the VM was made with.
		base = base.Delete("balloon").Delete("shares")
	}
	var err error
	if r.want, err = Hardware(wish.Class, base, site); err != nil {
		return Changes{}, err
	}
	r.cpus()
	r.memory()
	r.options()
	r.disks()
	r.lasting()
	return r.out, nil
}

// reconfiguring is a plan in the making.
type reconfiguring struct {
	wish spec.Reconfigure
	now  Now
	site Site
	next *pmxcfs.Conf // the config at the next start, what waits for it included
	want Values
	out  Changes
}

// settled returns the config as the next start makes it of conf.
func settled(conf *pmxcfs.Conf) *pmxcfs.Conf {
	pending, next := conf.Pending(), conf
	for _, k := range pending.Deleted() {
		next = next.Delete(k)
	}
	for _, k := range pending.Keys() {
		v, _ := pending.Get(k)
		if changed, err := next.Set(k, v); err == nil { // "delete" is no key
			next = changed
		}
	}
	return next
}

func (r *reconfiguring) add(s Step) { r.out.Steps = append(r.out.Steps, s) }

// change adds a step for the keys of values that the next start would find different, if there are any.
func (r *reconfiguring) change(s Step, values Values, gone ...string) {
	s.Config = Values{}
	for k, v := range values {
		if !says(r.next, k, v) {
			s.Config[k] = v
		}
	}
	for _, k := range gone {
		if _, ok := r.next.Get(k); ok {
			s.Delete = append(s.Delete, k)
		}
	}
	if len(s.Config)+len(s.Delete) > 0 {
		r.add(s)
	}
}

// hotplugFeatures are what `hotplug` may list.
var hotplugFeatures = []string{"network", "disk", "cpu", "memory", "usb", "cloudinit"}

// says reports whether key has a value in conf, however it is written there.
func says(conf *pmxcfs.Conf, key, value string) bool {
	switch key {
	case "description":
		return conf.Description() == strings.TrimRight(value, " \t\r\n")
	case "hotplug":
		wanted := pmxcfs.Section("hotplug: " + value)
		return !slices.ContainsFunc(hotplugFeatures, func(f string) bool { return wanted.Hotplugs(f) != conf.Hotplugs(f) })
	}
	have, ok := conf.Get(key)
	return ok && have == value
}

// cpus plans the vCPUs. Cores and sockets stay as they are as long as there is room in them.
func (r *reconfiguring) cpus() {
	asked := r.wish.Class.CPU
	most, said := r.now.Conf.CPUs()
	var later Values
	if room, start := r.next.CPUs(); room < asked {
		later = Values{"cores": r.want["cores"], "sockets": r.want["sockets"], "vcpus": r.want["vcpus"]}
	} else if start != asked {
		later = Values{"vcpus": r.want["vcpus"]}
	}
	if !r.now.Running {
		r.change(Step{Part: "cpu", Way: Set, Why: "the VM is stopped"}, later)
		return
	}
	if !r.now.Conf.Hotplugs("cpu") {
		r.change(Step{Part: "cpu", Way: Set, Waits: true, Why: "the VM was not started for plugging CPUs"}, later)
		return
	}
	if live := min(asked, most); live != said || r.now.CPUs > 0 && live != r.now.CPUs {
		r.add(Step{Part: "cpu", Way: Plug, CPUs: live, Why: fmt.Sprintf("the VM was started with room for %d", most)})
	}
	switch {
	case asked > most:
		r.change(Step{Part: "cpu", Way: Set, Waits: true, Why: fmt.Sprintf("the VM was started with room for %d", most)}, later)
	case said == asked: // else the plugging takes back what waits
		r.change(Step{Part: "cpu", Way: Set, Why: "what waited for the next start is taken back"}, later)
	}
}

// options plans the other keys of the class, and the tags.
func (r *reconfiguring) options() {
	now, later := Values{}, Values{}
	for k, v := range r.want {
		switch {
		case sized[k]:
		case made[k]:
			if !says(r.next, k, v) {
				r.out.Ignored = append(r.out.Ignored, k)
			}
		case r.now.Running && !atOnce[k] && (k != "hotplug" || r.risky(v)):
			later[k] = v
		default:
			now[k] = v
		}
	}
	slices.Sort(r.out.Ignored)
	why := "it needs no restart"
	if !r.now.Running {
		why = "the VM is stopped"
	}
	r.change(Step{Part: "options", Way: Set, Why: why}, now)
	r.change(Step{Part: "options", Way: Set, Waits: true, Why: "PVE changes it with the VM stopped only"}, later)
	tags := Tags(r.wish.Tags, r.next.Tags(), r.now.Tags)
	switch {
	case slices.Equal(tags, Tags(nil, r.next.Tags(), nil)):
	case len(tags) == 0:
		r.change(Step{Part: "options", Way: Set, Why: why}, nil, "tags")
	default:
		r.change(Step{Part: "options", Way: Set, Why: why}, Values{"tags": joinTags(tags)})
	}
}

// risky reports whether PVE keeps a change of hotplug for the next start (vmconfig_hotplug_pending).
func (r *reconfiguring) risky(value string) bool {
	return strings.Contains(value, "memory") || strings.Contains(value, "cpu") || r.now.Conf.Hotplugs("memory") || r.now.Conf.Hotplugs("cpu")
}

// sized are the keys that cpus and memory decide about.
var sized = keySet("cores", "sockets", "vcpus", "memory", "balloon", "shares")

// made are the keys of a class that are decided when a VM is made: the guest in it relies on them.
var made = keySet("bios", "machine", "ostype", "scsihw", "boot", "efidisk0", "tpmstate0")

// atOnce are the keys that PVE applies to a running VM, as far as a class can say them.
var atOnce = keySet("cpulimit", "cpuunits", "description", "migrate_downtime", "migrate_speed", "onboot", "protection", "startup", "vmstatestorage", "tags")

func keySet(keys ...string) map[string]bool {
	set := map[string]bool{}
	for _, k := range keys {
		set[k] = true
	}
	return set
}

// disks plans the growth of the root disk and the data disks. One that cannot be as it is wished is no reason to leave
// the others as they are.
func (r *reconfiguring) disks() {
	boot, bootable := r.next.BootDisk()
	if d := r.wish.Class.DiskDefaults; bootable || d != nil && d.SizeGiB > 0 {
		root, err := RootDisk(r.wish.Class, r.next)
		r.refuse(err)
		r.resize(root)
	}
	data := newDataDisks(r.next, boot.Storage, r.wish.Placement.Datastore, r.wish.Class.ExtraConfig, r.site)
	for i, d := range r.wish.Disks {
		fresh, grow, err := data.next(i, d)
		r.refuse(err)
		r.resize(grow)
		if err == nil && fresh.Key != "" {
			r.newDrive(fresh)
		}
	}
}

func (r *reconfiguring) refuse(err error) {
	if err != nil {
		r.out.Refused = append(r.out.Refused, err)
	}
}

func (r *reconfiguring) resize(g Growth) {
	if g.Disk != "" {
		r.add(Step{Part: g.Disk, Way: Resize, Grow: g, Why: "disks grow at any time"})
	}
}

// newDrive is a step that has PVE allocate a disk.
func (r *reconfiguring) newDrive(d Drive) {
	s := Step{Part: d.Key, Way: SetTask, Config: Values{d.Key: d.Value}, Why: "the VM is stopped"}
	if r.now.Running {
		s.Why = "disks are plugged in"
		if s.Waits = !r.now.Conf.Hotplugs("disk") || strings.HasPrefix(d.Key, "sata") || strings.HasPrefix(d.Key, "ide"); s.Waits {
			s.Why = "this VM, or this bus, takes no disks while it runs"
		}
	}
	r.add(s)
}
