package guest

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// HardwareUpgrade raises the machine version of a VM that is off: to the newest that this node has for target 0, to the
// newest of a major version (10), or to one of which target says both parts (1001 is 10.1). The kind of machine and its
// options stay. A VM without a version has the newest at each start. That nothing is to be done is success.
func (g *Guests) HardwareUpgrade(ctx context.Context, id record.ID, target int) error {
	if target < 0 {
		return fault.New(fault.Invalid, "target_version: %d is negative", target)
	}
	conf, id, err := g.snapshotted(ctx, id)
	if err != nil {
		return err
	}
	act := "upgrade the hardware of VM " + id.String()
	if err := g.mayStart(ctx, act, true); err != nil {
		return err
	}
	have, err := g.cfg.PVE.Machines(ctx, g.cfg.Node)
	if err != nil {
		return explain(act+": ask which machine versions there are", err)
	}
	now := valueOf(conf.Section, "machine")
	next, err := raiseMachine(now, target, have)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	if next == now {
		return nil
	}
	on, err := g.runs(ctx, id.VMID, conf)
	if err != nil {
		return err
	}
	if on {
		return fault.New(fault.Precondition, "%s from %s to %s: it runs; turn it off first", act, cmp.Or(now, "no version"), next)
	}
	err = pve.RetryLocked(ctx, func(ctx context.Context) error {
		return g.cfg.PVE.SetConfig(ctx, g.cfg.Node, id.VMID, url.Values{"machine": {next}})
	})
	if err != nil {
		return explain(act+" to "+next, err)
	}
	return g.confirmMachine(ctx, id, act, next)
}

// confirmMachine reads the version back: had the VM been started a moment ago it would be pending.
func (g *Guests) confirmMachine(ctx context.Context, id record.ID, act, want string) error {
	conf, _, err := g.snapshotted(ctx, id)
	if err != nil {
		return err
	}
	if got := valueOf(conf.Section, "machine"); got != want {
		return fault.New(fault.Aborted, "%s: its machine is %s, not %s; was it started meanwhile?", act, got, want)
	}
	g.refresh(ctx)
	return nil
}

// machineID is a machine with its version, as "pc-q35-9.2+pve1".
var machineID = regexp.MustCompile(`^(pc-q35|pc-i440fx|virt)-(\d+)\.(\d+)(?:\.\d+)*(?:\+pve(\d+))?$`)

// machineVersion is a parsed machineID.
type machineVersion struct {
	id, kind          string
	major, minor, pve int
}

func parseMachine(id string) (machineVersion, bool) {
	p := machineID.FindStringSubmatch(id)
	if p == nil {
		return machineVersion{}, false
	}
	m := machineVersion{id: id, kind: p[1]}
	for i, n := range []*int{&m.major, &m.minor, &m.pve} {
		*n, _ = strconv.Atoi(cmp.Or(p[2+i], "0")) // digits
	}
	return m, true
}

func (m machineVersion) compare(o machineVersion) int {
	return cmp.Or(cmp.Compare(m.major, o.major), cmp.Compare(m.minor, o.minor), cmp.Compare(m.pve, o.pve))
}

// means reports whether a machine is of the version that a client asks for.
func (m machineVersion) means(target int) bool {
	return target == 0 || target == m.major || target == 100*m.major+m.minor
}

// machineKinds are the machines of PVE without a version.
var machineKinds = map[string]string{"": "pc-i440fx", "pc": "pc-i440fx", "q35": "pc-q35", "virt": "virt"}

// raiseMachine returns the value of `machine` for the version that is asked for; the same value if there is nothing to
// do.
func raiseMachine(value string, target int, have []pve.Machine) (string, error) {
	token, typ := machineToken(value)
	now, versioned := parseMachine(typ)
	kind, known := machineKinds[typ]
	if !versioned {
		now = machineVersion{kind: kind}
	}
	if !versioned && !known {
		return "", fmt.Errorf("machine %s has a version that is not known", typ)
	}
	if !versioned && target == 0 {
		return value, nil // the newest at each start
	}
	best, found := newestMachine(now.kind, target, have)
	switch {
	case !found:
		top, _ := newestMachine(now.kind, 0, have)
		return "", fmt.Errorf("target_version %d: this node has no such %s; its newest is %s", target, now.kind, cmp.Or(top.id, "none at all"))
	case versioned && best.compare(now) < 0 && target != 0:
		return "", fmt.Errorf("target_version %d: %s is older than %s, which it is", target, best.id, typ)
	case versioned && best.compare(now) <= 0:
		return value, nil
	case token == "":
		return strings.TrimSuffix(best.id+","+value, ","), nil // only options, or nothing
	}
	return strings.Replace(value, token, strings.TrimSuffix(token, typ)+best.id, 1), nil
}

// machineToken returns the part of the value that names the machine, and its name.
func machineToken(value string) (token, typ string) {
	for k, v := range pmxcfs.Props(value).All() {
		switch k {
		case "":
			return v, v
		case "type":
			return "type=" + v, v
		}
	}
	return "", ""
}

// newestMachine returns the newest machine of a kind that target means.
func newestMachine(kind string, target int, have []pve.Machine) (best machineVersion, found bool) {
	for _, h := range have {
		m, ok := parseMachine(h.ID)
		if ok && m.kind == kind && m.means(target) && (!found || m.compare(best) > 0) {
			best, found = m, true
		}
	}
	return best, found
}
