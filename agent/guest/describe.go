package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// Description is what clients see of a VM. It is immutable: as long as nothing visible changes, every Describe of a
// VM returns the same pointer, so that callers can keep what they derive from it.
type Description struct {
	On         bool
	IPs        []string // stable order; no loopback, no link-local
	ConsoleURL string   // opens PVE's noVNC console of this VM
	Raw        string   // a JSON object of strings; none of them changes from poll to poll
}

// creating describes a VM that is being made and that PVE does not know yet.
var creating = &Description{Raw: `{"status":"creating"}`}

// view is what was last shown of a VM.
type view struct {
	described atomic.Int64 // when it was last asked for, Unix nanoseconds
	stopped   atomic.Bool  // seen here after its process had ended
	latest    atomic.Pointer[seen]
	listed    atomic.Pointer[listed]
	ignored   atomic.Pointer[string] // see noteIgnored
}

// seen is a description with what it was made from.
type seen struct {
	conf       *pmxcfs.Conf
	generation uint64
	desc       *Description
}

// IsAbsent reports whether err is the finding that a VM does not exist, without any doubt.
func IsAbsent(err error) bool { return errors.Is(err, errAbsent) }

// Describe returns what is known of a VM of this node. IsAbsent holds for its error only if the VM certainly does
// not exist.
func (g *Guests) Describe(ctx context.Context, id record.ID) (*Description, error) {
	vm, st, err := g.observe(ctx, id)
	switch {
	case errors.Is(err, errBeingMade) && !fault.Is(err, fault.Moved):
		return creating, nil
	case err != nil:
		if IsAbsent(err) {
			g.dropView(id.VMID)
		}
		return nil, err
	}
	v := g.viewOf(vm.ID)
	v.described.Store(time.Now().UnixNano())
	if s := v.latest.Load(); s != nil && s.conf == vm.Conf && s.generation == st.Generation {
		return s.desc, nil
	}
	s := &seen{conf: vm.Conf, generation: st.Generation, desc: g.describe(vm, st)}
	v.latest.Store(s)
	return s.desc, nil
}

// observe finds a VM of this node and its state. That it runs here proves that it is here; when it does not run any more,
// the config is looked at anew, because at the end of a migration both go at once.
func (g *Guests) observe(ctx context.Context, id record.ID) (*pmxcfs.VM, status.State, error) {
	vm, err := g.find(ctx, id)
	if err == nil {
		err = g.here(id, vm)
	}
	if err != nil {
		return nil, status.State{}, err
	}
	st, err := g.state(ctx, vm)
	stopped := &g.viewOf(vm.ID).stopped
	switch {
	case err != nil:
		return nil, st, err
	case st.Running:
		stopped.Store(false)
		return vm, st, nil
	case stopped.Load():
		return vm, st, nil
	}
	if vm, err = g.findHere(ctx, id); err == nil {
		stopped.Store(true)
	}
	return vm, st, err
}

func (g *Guests) viewOf(vmid int) *view {
	g.mu.RLock()
	v := g.views[vmid]
	g.mu.RUnlock()
	if v != nil {
		return v
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if v = g.views[vmid]; v == nil {
		v = &view{}
		g.views[vmid] = v
	}
	return v
}

func (g *Guests) dropView(vmid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.views, vmid)
}

// lastDescribed returns when a VM was last described by anybody.
func (g *Guests) lastDescribed(vmid int) (time.Time, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	v := g.views[vmid]
	if v == nil {
		return time.Time{}, false
	}
	return time.Unix(0, v.described.Load()), true
}

func (g *Guests) describe(vm *pmxcfs.VM, st status.State) *Description {
	raw, err := json.Marshal(rawFields(vm, st)) // a map of strings always encodes, in the order of its keys
	if err != nil {
		raw = []byte("{}")
	}
	return &Description{On: st.Power == status.On, IPs: st.IPs, ConsoleURL: g.consoleURL(vm), Raw: string(raw)}
}

// rawFields are the details a client may show. Counters and times are left out: each change is a write to etcd.
func rawFields(vm *pmxcfs.VM, st status.State) map[string]string {
	maximum, vcpus := vm.Conf.CPUs()
	fields := map[string]string{
		"vmid": strconv.Itoa(vm.ID), "node": vm.Node, "name": vm.Conf.Name(), "status": runText(st),
		"cpus": strconv.Itoa(vcpus), "cpus_max": strconv.Itoa(maximum), "memory_mib": strconv.FormatInt(plan.GuestMemoryMiB(vm.Conf), 10),
	}
	for k, v := range map[string]string{
		"lock": vm.Conf.Lock(), "os": st.OS, "hostname": st.HostName, "tags": strings.Join(vm.Conf.Tags(), ","),
		"pending": pendingText(vm.Conf), "next_start": nextStartText(vm.Conf), "memory_max_mib": maxMemoryText(vm.Conf),
	} {
		if v != "" {
			fields[k] = v
		}
	}
	return fields
}

func runText(st status.State) string {
	switch {
	case !st.Running:
		return "stopped"
	case st.Runstate == "":
		return "running"
	}
	return st.Runstate
}

// pendingText names the config keys that wait for the VM's next start.
func pendingText(conf *pmxcfs.Conf) string {
	p := conf.Pending()
	keys := slices.DeleteFunc(p.Keys(), func(k string) bool { return k == "delete" })
	for _, k := range p.Deleted() {
		keys = append(keys, "-"+k)
	}
	return strings.Join(keys, ",")
}

// plainKeys are the config keys whose values anybody may see and understands.
var plainKeys = map[string]bool{
	"balloon": true, "bios": true, "cores": true, "cpu": true, "hotplug": true, "machine": true, "memory": true, "numa": true, "sockets": true, "vcpus": true, "vga": true,
}

// nextStartText says in words what the VM's next start changes.
func nextStartText(conf *pmxcfs.Conf) string {
	var parts []string
	pending := conf.Pending()
	for _, k := range pending.Keys() {
		next, _ := pending.Get(k)
		now, set := conf.Get(k)
		switch {
		case k == "delete":
		case !plainKeys[k]:
			parts = append(parts, k+" changes")
		case set:
			parts = append(parts, fmt.Sprintf("%s becomes %s (now %s)", k, next, now))
		default:
			parts = append(parts, fmt.Sprintf("%s becomes %s", k, next))
		}
	}
	for _, k := range pending.Deleted() {
		parts = append(parts, k+" goes")
	}
	return strings.Join(parts, ", ")
}

// maxMemoryText is the memory that the guest could have, where its balloon keeps it from some of it.
func maxMemoryText(conf *pmxcfs.Conf) string {
	if plan.GuestMemoryMiB(conf) == conf.MemoryMiB() {
		return ""
	}
	return strconv.FormatInt(conf.MemoryMiB(), 10)
}

// consoleURL opens the same noVNC window as the Console button of PVE's GUI; the user logs in there.
func (g *Guests) consoleURL(vm *pmxcfs.VM) string {
	base := g.cfg.ConsoleURL
	if base == "" {
		host := vm.Node
		if world, err := g.cfg.Watcher.World(); err == nil && world.Members.Nodes[vm.Node].IP != "" {
			host = world.Members.Nodes[vm.Node].IP
		}
		base = "https://" + net.JoinHostPort(host, "8006")
	}
	q := url.Values{"console": {"kvm"}, "novnc": {"1"}, "vmid": {strconv.Itoa(vm.ID)}, "vmname": {vm.Conf.Name()}, "node": {vm.Node}}
	return fmt.Sprintf("%s/?%s", strings.TrimSuffix(base, "/"), q.Encode())
}
