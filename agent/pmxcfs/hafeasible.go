package pmxcfs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// feasible leaves out the rules that PVE drops because they cannot be followed together (PVE::HA::Rules). All are judged
// before any is left out, as there. known is how many nodes HA knows, 0 if nobody has said so yet.
func feasible(rules []*rule, known int) (kept []*rule, problems []error) {
	d := dropped{}
	d.pinnedTwice(rules)
	d.apartFromTooMany(rules, known)
	d.togetherAndApart(rules)
	d.manyPriorities(rules)
	d.groupPinnedTwice(rules)
	d.apartOnTooFewNodes(rules)
	for _, r := range rules {
		if r.kind != ruleNodes && len(r.members) < 2 {
			continue // means nothing, and harms nothing
		}
		if why, out := d[r]; out {
			problems = append(problems, fmt.Errorf("%s has no effect: %s", r.name, why))
			continue
		}
		kept = append(kept, r)
	}
	return kept, problems
}

// dropped are rules without effect, and why.
type dropped map[*rule]string

func (d dropped) drop(why string, rules ...*rule) {
	for _, r := range rules {
		if d[r] == "" {
			d[r] = why
		}
	}
}

// pinnedTwice: a guest may be in one rule about nodes.
func (d dropped) pinnedTwice(rules []*rule) {
	of := make(map[int][]*rule)
	for _, r := range only(rules, ruleNodes) {
		for _, m := range r.members {
			of[m] = append(of[m], r)
		}
	}
	for _, vmid := range slices.Sorted(maps.Keys(of)) {
		if len(of[vmid]) > 1 {
			d.drop(fmt.Sprintf("guest %d is in more than one rule about nodes", vmid), of[vmid]...)
		}
	}
}

// apartFromTooMany: there are not enough nodes to keep so many apart.
func (d dropped) apartFromTooMany(rules []*rule, known int) {
	for _, r := range only(rules, ruleApart) {
		if known > 0 && len(r.members) > known {
			d.drop(fmt.Sprintf("%d guests cannot be kept apart on %d nodes", len(r.members), known), r)
		}
	}
}

// togetherAndApart: two guests cannot be kept both together and apart.
func (d dropped) togetherAndApart(rules []*rule) {
	for _, g := range connected(rules) {
		for _, r := range only(rules, ruleApart) {
			if common := g.common(r); len(common) > 1 {
				d.drop(fmt.Sprintf("guests %d and %d are to be kept both together and apart", common[0], common[1]), slices.Concat(g.rules, []*rule{r})...)
			}
		}
	}
}

// manyPriorities: PVE does not take rules about guests together with nodes of different priorities.
func (d dropped) manyPriorities(rules []*rule) {
	for _, r := range rules {
		if r.kind == ruleNodes {
			continue
		}
		with := touching(only(rules, ruleNodes), r.members)
		if slices.ContainsFunc(with, func(n *rule) bool { return n.priorities() > 1 }) {
			d.drop("its guests are also in rules about nodes with different priorities", r)
			d.drop("its nodes have different priorities, and its guests are tied to others", with...)
		}
	}
}

// groupPinnedTwice: guests that are kept together may be in one rule about nodes.
func (d dropped) groupPinnedTwice(rules []*rule) {
	for _, g := range connected(rules) {
		if with := touching(only(rules, ruleNodes), g.members); len(with) > 1 {
			d.drop("guests that are kept together are in more than one rule about nodes", slices.Concat(with, g.rules)...)
		}
	}
}

// apartOnTooFewNodes: guests that are kept apart need a node each.
func (d dropped) apartOnTooFewNodes(rules []*rule) {
	for _, r := range only(rules, ruleApart) {
		with := touching(only(rules, ruleNodes), r.members)
		bound, places := make(map[int]bool), make(map[string]bool)
		for _, n := range with {
			for _, m := range n.members {
				if slices.Contains(r.members, m) {
					bound[m] = true
				}
			}
			for name := range n.nodes {
				places[name] = true
			}
		}
		if len(places) < len(bound) {
			d.drop(fmt.Sprintf("%d guests cannot be kept apart on %d nodes", len(bound), len(places)), slices.Concat(with, []*rule{r})...)
		}
	}
}

func (r *rule) priorities() int {
	seen := make(map[int]bool)
	for _, p := range r.nodes {
		seen[p] = true
	}
	return len(seen)
}

func only(rules []*rule, kind string) []*rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r *rule) bool { return r.kind != kind })
}

// touching are the rules with at least one of some guests.
func touching(rules []*rule, members []int) []*rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r *rule) bool {
		return !slices.ContainsFunc(r.members, func(m int) bool { return slices.Contains(members, m) })
	})
}

// group is guests that rules keep together, directly or by way of others.
type group struct {
	members []int // sorted
	rules   []*rule
	name    string // of the rules, in words
}

func (g *group) common(r *rule) []int {
	return slices.DeleteFunc(slices.Clone(g.members), func(m int) bool { return !slices.Contains(r.members, m) })
}

type groups []*group

// of are the guests that have to be where one is, itself included.
func (gs groups) of(vmid int) []int {
	for _, g := range gs {
		if slices.Contains(g.members, vmid) {
			return g.members
		}
	}
	return []int{vmid}
}

// connected makes groups of the rules that keep guests together: no guest is in two of them.
func connected(rules []*rule) groups {
	var out groups
	for _, r := range only(rules, ruleTogether) {
		g := &group{members: slices.Clone(r.members), rules: []*rule{r}}
		rest := out[:0]
		for _, other := range out {
			if len(other.common(r)) == 0 {
				rest = append(rest, other)
				continue
			}
			g.members, g.rules = slices.Concat(g.members, other.members), slices.Concat(other.rules, g.rules)
		}
		out = append(rest, g)
	}
	for _, g := range out {
		slices.Sort(g.members)
		g.members = slices.Compact(g.members)
		var names []string
		for _, r := range g.rules {
			names = append(names, r.name)
		}
		g.name = strings.Join(names, " and ")
	}
	return out
}
