package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Placement says on which node a new VM is made.
type Placement struct {
	// Scorer orders the nodes that can take a VM: "crs" (as Proxmox's own
	// scheduler does), "spread" or "pack".
	Scorer string
	// MemoryOvercommit is how much of a node's memory may be promised to VMs,
	// as a factor.
	MemoryOvercommit float64
	// MemoryReserve is what every node keeps for itself, in bytes.
	MemoryReserve uint64
	// SelectorRequired says that no other nodes than those of
	// Config.NodeSelector are allowed.
	SelectorRequired bool
	// Groups are nodes that policies and requests may name together.
	Groups Lists
	// Zones are nodes that fail together. A node is in one zone at most.
	Zones Lists
	// ImageReplicas is on how many nodes an image is to be, or AllNodes.
	ImageReplicas int
	// Policies are the rules for some of the VMs, in the order of the file: the
	// first one that matches a VM counts.
	Policies Policies
}

// Policy is one entry of placement.policies.
type Policy struct {
	Name string
	// Match says which VMs it is for: those that fit everything that is given.
	Match Match
	// NodeSelector names nodes or groups that are preferred, or all that are
	// allowed if Required.
	NodeSelector []string
	Required     bool
	// Affinity and AntiAffinity are the VMs to be near, and not to be near.
	Affinity, AntiAffinity []Term
	// MaxVMsPerNode limits how many VMs a node may have; 0: no limit.
	MaxVMsPerNode int
	// MinFreeMemory is how many bytes of a node stay free of promises.
	MinFreeMemory uint64
	// Spread keeps the VMs of the policy on different nodes ("node") or in
	// different zones ("zone"); "": it does not.
	Spread string
	// Scorer replaces Placement.Scorer; "": it does not.
	Scorer string
}

// Match says which VMs a policy is for.
type Match struct {
	Names []string // patterns as of path.Match; one has to fit
	Tags  []string // as PVE has them; the VM has one
	Pools []string // the VM is in one
}

// Term matches VMs by something they have.
type Term struct {
	// Key is "tag", "pool", "name", or what stands before the "=" of a tag.
	Key string
	// Operator is "In", "NotIn", "Exists" or "DoesNotExist". Only the first two
	// have Values.
	Operator string
	Values   []string
	Hard     bool // else it is a wish
	Zone     bool // it is about the zone, not the node
}

// Lists maps names to nodes, as placement.groups has them.
type Lists map[string][]string

func (t *Lists) parse(texts []string) error {
	*t = Lists{}
	for _, text := range texts {
		name, list, ok := strings.Cut(text, "=")
		if !ok || !tableName.MatchString(name) {
			return fmt.Errorf("expected %s, got %q", expected(t), printable(text))
		}
		(*t)[name] = splitList(list)
	}
	return nil
}

func (t *Lists) texts() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		out = append(out, name+"="+strings.Join((*t)[name], ","))
	}
	return out
}

func (t *Lists) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		n.Content = append(n.Content, word(name), words((*t)[name]))
	}
	return n
}

func words(list []string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, s := range list {
		n.Content = append(n.Content, word(s))
	}
	return n
}

// listText reads one list of nodes.
func listText(e entry) (string, error) {
	list, err := stringList(e.value)
	if err == nil {
		err = each(nodeName)(list) // also before a comma in one could make two of it
	}
	return e.name + "=" + strings.Join(list, ","), err
}

// nodeLists checks that lists hold names of nodes.
func nodeLists(t Lists) error {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if err := each(nodeName)(t[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// zoneLists checks that a node is in one zone.
func zoneLists(t Lists) error {
	zone := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		for _, node := range t[name] {
			if other, taken := zone[node]; taken && other != name {
				return fmt.Errorf("node %s is in %s and in %s; it can be in one", node, other, name)
			}
			zone[node] = name
		}
	}
	return nodeLists(t)
}

// checkPlacement looks at what policies say of other settings.
func (l *loader) checkPlacement() {
	p := &l.c.Placement
	if err := p.selectable(l.c.NodeSelector); err != nil {
		l.wrong("node-selector", "%w", err)
	}
	for _, policy := range p.Policies {
		if err := policy.fits(p); err != nil {
			l.wrong("placement.policies", "%s.%w", policy.Name, err)
		}
	}
}

// selectable says which of the names of a node-selector cannot be one.
func (p *Placement) selectable(names []string) error {
	for _, name := range names {
		if _, group := p.Groups[name]; !group && nodeName(name) != nil {
			return fmt.Errorf("%q is neither in placement.groups nor the name of a node", name)
		}
	}
	return nil
}

// fits says what of a policy goes together with no other setting.
func (p *Policy) fits(all *Placement) error {
	if err := all.selectable(p.NodeSelector); err != nil {
		return fmt.Errorf("node-selector: %w", err)
	}
	if len(all.Zones) > 0 {
		return nil
	}
	if p.Spread == "zone" {
		return errors.New("spread: zone needs placement.zones")
	}
	for _, term := range slices.Concat(p.Affinity, p.AntiAffinity) {
		if term.Zone {
			return fmt.Errorf("affinity by zone (%s) needs placement.zones", term.Key)
		}
	}
	return nil
}
