package placement

import (
	"fmt"
	"maps"
	"slices"
)

// ruleKind is what a rule wants of the VMs that are already on a node, or in its
// zone.
type ruleKind int

const (
	together ruleKind = iota // affinity: there is one
	apart                    // anti-affinity: there is none
	spread                   // there are few
)

// rule is one of the terms of the policy that applies.
type rule struct {
	selector
	kind  ruleKind
	hard  bool
	zone  bool // counts per zone
	total int  // VMs in the cluster that are meant
}

// neighbours is what is known of the VMs there are, as far as rules ask for it.
// Rule r has counted at [r*nodes+place], where the place is a node, or the first
// node of a zone.
type neighbours struct {
	rules []rule
	nodes int
	vms   []int // of each node
	count []int
	first []int    // index of the first VM that was counted; -1: none
	zones []int    // of each node, the first node of its zone
	names []string // of each node, its zone; "": in none
}

// meet reads the rules of the policy, and counts the VMs of the cluster once.
func (b *neighbours) meet(q *question, c *Cluster) {
	b.nodes, b.rules = len(c.Nodes), b.rules[:0]
	if q.policy != nil {
		b.read(q)
	}
	if slices.ContainsFunc(b.rules, func(r rule) bool { return r.zone }) {
		b.divide(q, c.Nodes)
	}
	b.vms = blank(b.vms, b.nodes, 0)
	b.count = blank(b.count, b.nodes*len(b.rules), 0)
	b.first = blank(b.first, b.nodes*len(b.rules), -1)
	moved := slices.IndexFunc(c.Nodes, func(n Node) bool { return q.want.Current != "" && n.Name == q.want.Current })
	for v := range c.VMs {
		vm := &c.VMs[v]
		if vm.Node < 0 || vm.Node >= b.nodes || vm.Node == moved && vm.Name == q.want.Name {
			continue
		}
		b.vms[vm.Node]++
		for i := range b.rules {
			if b.rules[i].matches(vm) {
				b.rules[i].total++
				b.add(b.place(i, vm.Node), v)
			}
		}
	}
}

func (b *neighbours) add(place, vm int) {
	b.count[place]++
	if b.first[place] < 0 {
		b.first[place] = vm
	}
}

// place is where a rule counts the VMs of a node.
func (b *neighbours) place(rule, node int) int {
	if b.rules[rule].zone {
		node = b.zones[node]
	}
	return rule*b.nodes + node
}

// blank returns n times a value, in the memory of a slice if that is enough.
func blank(s []int, n, value int) []int {
	s = slices.Grow(s[:0], n)[:n]
	for i := range s {
		s[i] = value
	}
	return s
}

// read makes the rules of the policy.
func (b *neighbours) read(q *question) {
	p := q.policy
	byZone := p.Spread == "zone"
	for _, list := range [...]struct {
		kind  ruleKind
		terms []Term
	}{{together, p.Affinity}, {apart, p.AntiAffinity}} {
		for _, t := range list.terms {
			s, ok := selectTerm(t)
			if !ok {
				q.warn("policy %q: the term %q cannot be read and is left out", p.Name, s.words)
				continue
			}
			b.rules = append(b.rules, rule{selector: s, kind: list.kind, hard: t.Hard, zone: t.Zone || list.kind == apart && byZone})
		}
	}
	if p.Spread != "" {
		b.rules = append(b.rules, rule{selector: selectMatch(&p.Match), kind: spread, zone: byZone})
	}
}

// divide finds the zone of each node. A node in two is in the first by name; one
// in none is a zone of its own.
func (b *neighbours) divide(q *question, nodes []Node) {
	b.zones, b.names = blank(b.zones, len(nodes), -1), append(b.names[:0], make([]string, len(nodes))...)
	for _, zone := range slices.Sorted(maps.Keys(q.settings.Zones)) {
		first := -1
		for i := range nodes {
			if b.zones[i] >= 0 || !slices.Contains(q.settings.Zones[zone], nodes[i].Name) {
				continue
			}
			if first < 0 {
				first = i
			}
			b.zones[i], b.names[i] = first, zone
		}
	}
	for i := range b.zones {
		if b.zones[i] < 0 {
			b.zones[i] = i
		}
	}
}

// refuse adds what the hard rules have against a node.
func (b *neighbours) refuse(q *question, c *Cluster, node int, r *refusals) {
	for i := range b.rules {
		rule := &b.rules[i]
		if !rule.hard {
			continue
		}
		at := b.place(i, node)
		switch {
		case rule.kind == apart && b.count[at] > 0:
			vm := &c.VMs[b.first[at]]
			r.add(filterAffinity, "has VM %d %q%s (anti-affinity of policy %q: %s)", vm.ID, vm.Name, b.inZone(rule, node), q.policy.Name, rule.words)
		case rule.kind == together && b.count[at] == 0 && !rule.begins(q):
			r.add(filterAffinity, "has no VM%s that policy %q wants it with (affinity: %s)", b.inZone(rule, node), q.policy.Name, rule.words)
		}
	}
}

// begins says whether the VM is the first of those that want to be together: it
// has to be somewhere.
func (r *rule) begins(q *question) bool { return r.total == 0 && r.matches(&q.asVM) }

func (b *neighbours) inZone(r *rule, node int) string {
	if !r.zone || b.names[node] == "" {
		return ""
	}
	return " in its zone " + b.names[node]
}

// crowd is the limit of VMs per node.
func (q *question) crowd(vms int, r *refusals) {
	if p := q.policy; p != nil && p.MaxVMsPerNode > 0 && vms >= p.MaxVMsPerNode {
		r.lack(filterVMs, "VMs (has %d, policy %q allows %d)", vms, p.Name, p.MaxVMsPerNode)
	}
}

// tally is what the soft rules say of a node.
func (b *neighbours) tally(q *question, node int) (company, crowd int, notes []string) {
	for i := range b.rules {
		rule := &b.rules[i]
		n := b.count[b.place(i, node)]
		switch {
		case rule.kind == spread:
			crowd += n
			notes = append(notes, fmt.Sprintf("%s of policy %q%s", vms(n), q.policy.Name, b.inZone(rule, node)))
		case rule.hard || n == 0:
		case rule.kind == apart:
			crowd += n
			notes = append(notes, fmt.Sprintf("%s to be apart from%s (%s)", vms(n), b.inZone(rule, node), rule.words))
		default:
			company++
			notes = append(notes, fmt.Sprintf("%s to be with%s (%s)", vms(n), b.inZone(rule, node), rule.words))
		}
	}
	return company, crowd, notes
}

func vms(n int) string {
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%d VMs", n)
}
