package pvesim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// verb is a command of Do.
type verb struct {
	usage string // arguments
	doc   string
	run   func(c *Cluster, args []string) (string, error)
}

// errUsage is for arguments that are not what a verb wants.
var errUsage = errors.New("wrong arguments")

// verbs are what Do understands.
func verbs() map[string]verb {
	all := map[string]verb{}
	for _, group := range []map[string]verb{nodeVerbs(), linkVerbs(), vmVerbs(), faultVerbs()} {
		for name, v := range group {
			all[name] = v
		}
	}
	return all
}

// Do carries out one command, a line of words, and returns what it prints.
// It comes back when the command is done, a migration included. "help" lists
// the commands; an empty line and one that begins with "#" do nothing. With a
// "&" as the last word it does not wait, and an error is only logged. The
// commands are, with <node> for a node's name, <vm> for a VM's number and <d> for a
// time such as 1.5s:
//
//	node <node> off|on            take a node's power, or give it back
//	partition <node>,<node>|<node> only nodes of one group reach each other
//	cut <node> <node>             lose all packets between two nodes
//	cut <node>><node>             lose what the first one sends to the second
//	cut-agents ...                as cut, but only what agents send each other
//	heal                          let everything through again
//	quorum <node>|all off|on      take quorum from nodes, or give it back
//	readonly <node> on|off        let every write to /etc/pve fail
//	mount <node> off|on           stop a node's pmxcfs, or start it
//	api <node> off|on             close a node's API, or open it
//	maintenance <node> on|off     HA's maintenance mode
//	vmlist-lag <node> <d>         let .vmlist and .version be late
//	migrate <vm> <node> [gap <d>] migrate a VM; .vmlist misses it for a time
//	migrate-gap <d>               that time, for migrations by the API and HA
//	move <vm> <node>              hand a VM over; a running one is killed
//	vanish <vm>                   remove config and process
//	stranger <vm> <node>          put somebody else's VM there with that number
//	add <vm> <node> [key=value]   add a stopped VM
//	set <vm> key=value            change its config as an editor would; "key=" removes
//	kill <vm>                     end its process as a crash does
//	start <vm>                    start it behind PVE's back
//	deaf <vm> on|off              ignore shutdowns
//	lock <vm> <lock>|none         set the "lock" of its config (backup, ...), or remove it
//	guest-agent <vm> on|off       let a stand-in's guest agent be silent, or answer
//	balloon-driver <vm> on|off    take the balloon driver from a stand-in's guest
//	keep-cpus <vm> on|off         let a stand-in's guest keep CPUs that it is asked for
//	ha <vm> started|stopped|ignored|none
//	vms                           number, node, name, uuid, lock, power of all
//	nodes                         address, power and what each node sees
//	tasks                         all tasks that are not finished
//	hold <type> [<node>]          let tasks ("clone", "qmclone") start but not work
//	release <type> [<node>]       let them
//	fail <method> <path> <status> [x<n>] [message]
//	fail-after ...                as fail, after the request was carried out
//	fail-task <type> <vm>|any <exit status>
//	disk-full <n> [<storage>]     let the n-th volume from now on find no room; 1 is the next
//	clear-faults                  forget fail, fail-after, fail-task and disk-full
//	help
func (c *Cluster) Do(ctx context.Context, line string) (string, error) {
	if err := errors.Join(ctx.Err(), c.ctx.Err()); err != nil {
		return "", fmt.Errorf("pvesim: %w", err)
	}
	words := strings.Fields(line)
	if len(words) == 0 || strings.HasPrefix(words[0], "#") {
		return "", nil
	}
	all := verbs()
	if words[0] == "help" {
		return helpText(all), nil
	}
	if last := len(words) - 1; words[last] == "&" {
		words = words[:last]
		return "", c.background(all, words)
	}
	return c.command(all, words)
}

// background carries a command out without waiting for it.
func (c *Cluster) background(all map[string]verb, words []string) error {
	if len(words) == 0 {
		return errors.New("pvesim: &: no command before it")
	}
	c.wg.Go(func() {
		if _, err := c.command(all, words); err != nil && c.ctx.Err() == nil {
			c.log.Error("command", "line", strings.Join(words, " "), "err", err)
		}
	})
	return nil
}

func (c *Cluster) command(all map[string]verb, words []string) (string, error) {
	v, ok := all[words[0]]
	if !ok {
		return "", fmt.Errorf("pvesim: no command %q; try help", words[0])
	}
	out, err := v.run(c, words[1:])
	if errors.Is(err, errUsage) {
		return "", fmt.Errorf("pvesim: %s: want: %s %s", strings.Join(words, " "), words[0], v.usage)
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w", words[0], err)
	}
	return out, nil
}

func helpText(all map[string]verb) string {
	var b strings.Builder
	for _, name := range sortedKeys(all) {
		fmt.Fprintf(&b, "%-32s %s\n", strings.TrimSpace(name+" "+all[name].usage), all[name].doc)
	}
	return b.String()
}

// onOff makes a verb that switches something of a node.
func onOff(doc string, do func(c *Cluster, node string, on bool) error) verb {
	return verb{"<node> on|off", doc, func(c *Cluster, args []string) (string, error) {
		if len(args) != 2 || args[1] != "on" && args[1] != "off" {
			return "", errUsage
		}
		return "", do(c, args[0], args[1] == "on")
	}}
}

func nodeVerbs() map[string]verb {
	return map[string]verb{
		"node":        onOff("take a node's power, or give it back", (*Cluster).SetOnline),
		"readonly":    onOff("let every write to /etc/pve fail", (*Cluster).SetReadOnly),
		"mount":       onOff("stop a node's pmxcfs, or start it", (*Cluster).SetMounted),
		"maintenance": onOff("put it into HA's maintenance mode, or end that", (*Cluster).SetMaintenance),
		"api":         onOff("close a node's API, or open it", (*Cluster).SetAPI),
		"quorum": onOff("take quorum from a node or from all, or give it back", func(c *Cluster, node string, on bool) error {
			if node == "all" {
				return c.SetQuorate(on)
			}
			return c.SetNodeQuorate(node, on)
		}),
		"vmlist-lag": {"<node> <d>", "let .vmlist and .version be late", func(c *Cluster, args []string) (string, error) {
			if len(args) != 2 {
				return "", errUsage
			}
			d, err := time.ParseDuration(args[1])
			if err != nil {
				return "", err
			}
			return "", c.LagVMList(args[0], d)
		}},
		"nodes": {"", "address, power and what each node sees", (*Cluster).doNodes},
	}
}

func linkVerbs() map[string]verb {
	return map[string]verb{
		"partition": {"<node>,<node>|<node>", "only nodes of one group reach each other", func(c *Cluster, args []string) (string, error) {
			if len(args) != 1 {
				return "", errUsage
			}
			var groups [][]string
			for _, group := range strings.Split(args[0], "|") {
				groups = append(groups, strings.Split(group, ","))
			}
			return "", c.Partition(groups)
		}},
		"cut":        cutVerb("lose packets", (*Cluster).Cut, (*Cluster).CutOneWay),
		"cut-agents": cutVerb("lose what agents send each other", (*Cluster).CutAgents, (*Cluster).CutAgentsOneWay),
		"heal": {"", "let everything through again", func(c *Cluster, args []string) (string, error) {
			if len(args) > 0 {
				return "", errUsage
			}
			return "", c.Heal()
		}},
	}
}

func cutVerb(doc string, both, one func(c *Cluster, from, to string) error) verb {
	return verb{"<node> <node> | <node>><node>", doc, func(c *Cluster, args []string) (string, error) {
		if len(args) == 2 {
			return "", both(c, args[0], args[1])
		}
		if from, to, ok := strings.Cut(strings.Join(args, ""), ">"); ok && len(args) == 1 {
			return "", one(c, from, to)
		}
		return "", errUsage
	}}
}

// doNodes prints a line for each node.
func (c *Cluster) doNodes([]string) (string, error) {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	now := c.ring.lockedStandings()
	var b strings.Builder
	for _, n := range c.nodes {
		s := now[n.Name]
		power := "on"
		if c.ring.off[n.Name] {
			power, s.members, s.quorate = "off", nil, false
		}
		fmt.Fprintf(&b, "%s ip=%s power=%s online=%s quorate=%t writable=%t api=%s\n",
			n.Name, n.IP, power, strings.Join(s.members, ","), s.quorate, s.writable, n.API())
	}
	return b.String(), nil
}

func faultVerbs() map[string]verb {
	return map[string]verb{
		"hold": {"<type> [<node>]", "let tasks start but not work", func(c *Cluster, args []string) (string, error) {
			gate, err := gateOf(args)
			if err != nil {
				return "", err
			}
			if node, _, ok := strings.Cut(gate, "/"); ok {
				if err := c.known(node); err != nil {
					return "", err
				}
			}
			c.HoldTasks(gate)
			return "", nil
		}},
		"release": {"<type> [<node>]", "let them", func(c *Cluster, args []string) (string, error) {
			gate, err := gateOf(args)
			if err != nil {
				return "", err
			}
			return "", c.workers.release(gate)
		}},
		"fail":       failVerb("answer requests with an error", (*Cluster).Fail),
		"fail-after": failVerb("as fail, after the request was carried out", (*Cluster).FailAfter),
		"fail-task": {"<type> <vm>|any <exit status>", "let the next task fail", func(c *Cluster, args []string) (string, error) {
			if len(args) < 3 {
				return "", errUsage
			}
			vmid, err := strconv.Atoi(args[1])
			if err != nil && args[1] != "any" {
				return "", errUsage
			}
			c.FailTask(taskType(args[0]), vmid, strings.Join(args[2:], " "))
			return "", nil
		}},
		"disk-full": {"<n> [<storage>]", "let the n-th volume from now on find no room", func(c *Cluster, args []string) (string, error) {
			if len(args) < 1 || len(args) > 2 {
				return "", errUsage
			}
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 {
				return "", errUsage
			}
			c.FailAllocation(strings.Join(args[1:], ""), n)
			return "", nil
		}},
		"clear-faults": {"", "forget fail, fail-after, fail-task and disk-full", func(c *Cluster, args []string) (string, error) {
			if len(args) > 0 {
				return "", errUsage
			}
			c.ClearFaults()
			return "", nil
		}},
		"tasks": {"", "all tasks that are not finished", func(c *Cluster, _ []string) (string, error) {
			var b strings.Builder
			for _, t := range c.Tasks() {
				if t.Exit() == "" {
					fmt.Fprintf(&b, "%s node=%s type=%s id=%s\n", t.UPID, t.Node(), t.Type(), t.ID())
				}
			}
			return b.String(), nil
		}},
	}
}

// taskType lets "clone" stand for "qmclone".
func taskType(word string) string {
	if slices.Contains([]string{"clone", "create", "start", "stop", "shutdown", "destroy", "config", "snapshot", "rollback", "reboot", "template"}, word) {
		return "qm" + word
	}
	if word == "migrate" {
		return "qmigrate"
	}
	return word
}

func gateOf(args []string) (string, error) {
	switch len(args) {
	case 1:
		return taskType(args[0]), nil
	case 2:
		return args[1] + "/" + taskType(args[0]), nil
	}
	return "", errUsage
}

// release opens a gate that HoldTasks closed.
func (w *workers) release(gate string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.gates[gate]
	if g == nil {
		return fmt.Errorf("pvesim: nothing holds %s", gate)
	}
	delete(w.gates, gate)
	g.open()
	return nil
}

func failVerb(doc string, do func(c *Cluster, match matcher, status int, message string, times int)) verb {
	return verb{"<method> <path> <status> [x<n>] [message]", doc, func(c *Cluster, args []string) (string, error) {
		if len(args) < 3 {
			return "", errUsage
		}
		status, err := strconv.Atoi(args[2])
		if err != nil {
			return "", errUsage
		}
		times, message := 1, args[3:]
		if len(message) > 0 {
			if n, ok := strings.CutPrefix(message[0], "x"); ok {
				if count, err := strconv.Atoi(n); err == nil {
					times, message = count, message[1:]
				}
			}
		}
		method := args[0]
		if method == "*" {
			method = ""
		}
		do(c, Match(method, args[1]), status, strings.Join(message, " "), times)
		return "", nil
	}}
}
