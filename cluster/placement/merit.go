package placement

import (
	"cmp"
	"fmt"
)

// merit is how good a node is that fits. The fields are in the order of their
// weight: a later one counts only between nodes that are equal in all before it.
type merit struct {
	ready    bool    // no replica has to be made first
	selected int     // node-selectors it is in: the request's or the agent's, and the policy's
	weight   int     // that HA gives it
	company  int     // soft affinities that hold
	crowd    int     // VMs to be apart from; fewer are better
	score    float64 // by the scorer
	hash     uint64
}

// compare is more than 0 if m is better.
func (m merit) compare(other merit) int {
	return cmp.Or(
		cmp.Compare(number(m.ready), number(other.ready)),
		cmp.Compare(m.selected, other.selected),
		cmp.Compare(m.weight, other.weight),
		cmp.Compare(m.company, other.company),
		cmp.Compare(other.crowd, m.crowd),
		cmp.Compare(m.score, other.score),
		cmp.Compare(m.hash, other.hash),
	)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// merit is what speaks for a node that fits, and the words for it.
func (p *Placer) merit(q *question, n *Node, i int) (merit, []string) {
	w, s := q.want, q.settings
	m := merit{ready: true, weight: w.Prefer[n.Name], score: p.scores[i], hash: hash(w.Name, n.Name)}
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, words(format, args)) }
	if q.names(s.Nodes, n.Name) && !s.NodesRequired {
		m.selected++
		note("in the node-selector")
	}
	if q.policy != nil && !q.policy.Required && q.names(q.policy.NodeSelector, n.Name) {
		m.selected++
		note("in the node-selector of policy %q", q.policy.Name)
	}
	if m.weight != 0 {
		note("preferred with %d", m.weight)
	}
	company, crowd, more := p.around.tally(q, i)
	m.company, m.crowd, notes = company, crowd, append(notes, more...)
	if w.Source != nil {
		switch w.Source.Nodes[n.Name].How {
		case Here:
			note("has the %s", w.Source.Name)
		case Shared:
			note("shares the %s", w.Source.Name)
		case OnDemand:
			m.ready = false
			note("needs a %s first", w.Source.Name)
		}
	}
	return m, append(notes, q.remarks(n)...)
}

// remarks are what else is good to know of a node.
func (q *question) remarks(n *Node) []string {
	var notes []string
	if n.Reserved.Memory > 0 || n.Reserved.VMs > 0 {
		notes = append(notes, fmt.Sprintf("%s GiB reserved for what is under way", gibUp(clamp(n.Reserved.Memory))))
	}
	if n.Recent.VMs > 0 {
		notes = append(notes, fmt.Sprintf("%s placed here in the last %s", vms(n.Recent.VMs), burstLasts))
	}
	disks := len(q.want.Disks)
	if q.want.Source != nil {
		disks += len(q.want.Source.Nodes[n.Name].Disks)
	}
	if !n.storagesKnown() && disks > 0 {
		notes = append(notes, "storages not known yet")
	}
	if n.State.FactsAt.IsZero() && len(q.want.Bridges) > 0 {
		notes = append(notes, "bridges not known yet")
	}
	return notes
}

// hash breaks ties alike everywhere: FNV-1a of both names, mixed well, because
// names differ in few bits.
func hash(want, node string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{want, "\x00", node} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
