package pvesim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// onVM makes a verb whose first argument is a VM.
func onVM(usage, doc string, least, most int, do func(c *Cluster, vmid int, args []string) error) verb {
	return verb{strings.TrimSpace("<vm> " + usage), doc, func(c *Cluster, args []string) (string, error) {
		if len(args) < 1+least || most >= 0 && len(args) > 1+most {
			return "", errUsage
		}
		vmid, err := strconv.Atoi(args[0])
		if err != nil {
			return "", errUsage
		}
		return "", do(c, vmid, args[1:])
	}}
}

func vmVerbs() map[string]verb {
	return map[string]verb{
		"migrate": onVM("<node> [gap <d>]", "migrate a VM; .vmlist misses it for a time", 1, 3, (*Cluster).doMigrate),
		"move": onVM("<node>", "hand a VM over; a running one is killed", 1, 1, func(c *Cluster, vmid int, args []string) error {
			return c.MoveVM(vmid, args[0])
		}),
		"vanish": onVM("", "remove config and process", 0, 0, func(c *Cluster, vmid int, _ []string) error { return c.VanishVM(vmid) }),
		"stranger": onVM("<node>", "put somebody else's VM there with that number", 1, 1, func(c *Cluster, vmid int, args []string) error {
			return c.Stranger(vmid, args[0])
		}),
		"add": onVM("<node> [key=value]", "add a stopped VM", 1, -1, func(c *Cluster, vmid int, args []string) error {
			options, err := pairs(args[1:])
			if err != nil {
				return err
			}
			return c.AddVM(vmid, args[0], options)
		}),
		"set": onVM("key=value", "change its config as an editor would", 1, -1, func(c *Cluster, vmid int, args []string) error {
			options, err := pairs(args)
			if err != nil {
				return err
			}
			return c.SetConfig(vmid, options)
		}),
		"kill":  onVM("", "end its process as a crash does", 0, 0, func(c *Cluster, vmid int, _ []string) error { return c.KillVM(vmid) }),
		"start": onVM("", "start it behind PVE's back", 0, 0, func(c *Cluster, vmid int, _ []string) error { return c.StartVM(vmid) }),
		"deaf": onVM("on|off", "ignore shutdowns", 1, 1, func(c *Cluster, vmid int, args []string) error {
			if args[0] != "on" && args[0] != "off" {
				return errUsage
			}
			c.SetDeaf(vmid, args[0] == "on")
			return nil
		}),
		"lock": onVM("<lock>|none", "lock its config as a task of PVE does", 1, 1, func(c *Cluster, vmid int, args []string) error {
			if args[0] == "none" {
				args[0] = ""
			}
			return c.SetLock(vmid, args[0])
		}),
		"guest-agent":    guestVerb("let its guest agent be silent, or answer", func(q *qmptest.QEMU, on bool) { q.SetAgentSilent(!on) }),
		"balloon-driver": guestVerb("take the guest's balloon driver away, or give it back", (*qmptest.QEMU).SetBalloonDriver),
		"keep-cpus":      guestVerb("let the guest keep CPUs that it is asked for", (*qmptest.QEMU).SetKeepCPUs),
		"ha":             onVM("started|stopped|ignored|none", "put it under HA's care, or take it away", 1, 1, (*Cluster).doHA),
		"vms":            {"", "number, node, name, uuid, lock, power of all", (*Cluster).doVMs},
		"migrate-gap": {"<d>", "the time for migrations by the API and HA", func(c *Cluster, args []string) (string, error) {
			if len(args) != 1 {
				return "", errUsage
			}
			gap, err := time.ParseDuration(args[0])
			if err != nil {
				return "", errUsage
			}
			c.SetMigrateGap(gap)
			return "", nil
		}},
	}
}

// guestVerb makes a verb that changes how the guest of a stand-in behaves, as
// long as it runs.
func guestVerb(doc string, set func(q *qmptest.QEMU, on bool)) verb {
	return onVM("on|off", doc, 1, 1, func(c *Cluster, vmid int, args []string) error {
		if args[0] != "on" && args[0] != "off" {
			return errUsage
		}
		q, ok := c.QEMU(vmid)
		if !ok {
			return fmt.Errorf("pvesim: VM %d is no stand-in that runs", vmid)
		}
		set(q, args[0] == "on")
		return nil
	})
}

// pairs reads key=value words. Values have no spaces.
func pairs(words []string) (map[string]string, error) {
	out := map[string]string{}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, errUsage
		}
		out[k] = v
	}
	return out, nil
}

func (c *Cluster) doMigrate(vmid int, args []string) error {
	var o MigrateOptions
	switch {
	case len(args) == 3 && args[1] == "gap":
		gap, err := time.ParseDuration(args[2])
		if err != nil {
			return errUsage
		}
		o.Gap = gap
	case len(args) != 1:
		return errUsage
	}
	return c.Migrate(vmid, args[0], o)
}

func (c *Cluster) doHA(vmid int, args []string) error {
	switch state := args[0]; state {
	case "none":
		return c.haRemove(vmid)
	case "started", "stopped", "ignored":
		return c.AddHA(vmid, state)
	}
	return errUsage
}

// Stranger puts a VM of somebody else on a node: another one with that number.
// The VM that has it now vanishes.
func (c *Cluster) Stranger(vmid int, node string) error {
	if err := c.known(node); err != nil {
		return err
	}
	if _, ok := c.tree.owner(vmid); ok {
		if err := c.VanishVM(vmid); err != nil {
			return err
		}
	}
	return c.AddVM(vmid, node, map[string]string{"name": "stranger-" + itoa(vmid)})
}

// VM is what the control API's "vms" says of one.
type VM struct {
	ID         int
	Node, Name string
	UUID, Lock string // "" without
	Running    bool
	Template   bool
}

// VMs returns all VMs as they are, whoever may see them, in order.
func (c *Cluster) VMs() ([]VM, error) {
	var (
		out  []VM
		errs []error
	)
	ids, owners := c.tree.ids()
	for _, id := range ids {
		if c.tree.isContainer(id) {
			continue
		}
		b, err := c.tree.readLive(owners[id], id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		conf := vmconf.Parse(b).Main
		out = append(out, VM{
			ID: id, Node: owners[id], Name: conf["name"], UUID: conf.UUID(), Lock: conf["lock"],
			Running: c.machines.on(owners[id], id) != nil, Template: conf.Bool("template", false),
		})
	}
	return out, errors.Join(errs...)
}

func (c *Cluster) doVMs(args []string) (string, error) {
	if len(args) > 0 {
		return "", errUsage
	}
	all, err := c.VMs()
	var b strings.Builder
	for _, vm := range all {
		fmt.Fprintf(&b, "%d node=%s name=%s uuid=%s lock=%s running=%t template=%t\n", vm.ID, vm.Node, vm.Name, vm.UUID, vm.Lock, vm.Running, vm.Template)
	}
	return b.String(), err
}
