package placement

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Placer decides. It keeps its memory from one decision to the next, so that
// nothing is allocated per VM. It is not safe for concurrent use; its zero value
// is ready.
type Placer struct {
	order  []int     // the nodes by name
	scores []float64 // of the nodes
	around neighbours

	loads     []load // of the nodes that are compared by crs
	at        []int  // which nodes those are
	matrix    [][criteria]float64
	closeness []float64 // of loads
}

// Place chooses a node. The decision shares no memory with the Placer.
func (p *Placer) Place(c Cluster, w Want, s Settings, now time.Time) Decision {
	q := newQuestion(&w, &s, now)
	q.nodes = c.Nodes
	p.sort(c.Nodes)
	p.around.meet(&q, &c)
	p.score(&q, c.Nodes)
	d := Decision{Scorer: q.scorer, Rows: make([]Row, 0, len(c.Nodes))}
	best := p.choose(&q, &c, &d)
	if q.policy != nil {
		d.Policy = q.policy.Name
		q.warnOfNames("the node-selector of policy "+strconv.Quote(d.Policy), q.policy.NodeSelector)
	}
	q.warnOfNames("the node-selector", s.Nodes)
	if best >= 0 {
		d.Node = c.Nodes[best].Name
		if w.Source != nil {
			d.How = w.Source.Nodes[d.Node].How
		}
		q.absorb(best)
	}
	d.Warnings = q.warnings
	return d
}

// choose fills the rows, and returns the index of the best node, -1 if none
// fits.
func (p *Placer) choose(q *question, c *Cluster, d *Decision) int {
	best, highest := -1, merit{}
	for _, i := range p.order {
		n := &c.Nodes[i]
		row := Row{Node: n.Name, Score: p.scores[i], MemoryTotal: n.State.Digest.MemoryTotal}
		if row.MemoryTotal > 0 {
			row.MemoryFree = q.room(n)
		}
		r := q.reasons(n)
		q.crowd(p.around.vms[i]+n.Reserved.VMs, &r)
		p.around.refuse(q, c, i, &r)
		if row.Reasons = r; len(r) == 0 {
			var m merit
			if m, row.Notes = p.merit(q, n, i); best < 0 || m.compare(highest) > 0 {
				best, highest = i, m
			}
		}
		d.Rows = append(d.Rows, row)
	}
	return best
}

// sort makes the order by name.
func (p *Placer) sort(nodes []Node) {
	p.order = p.order[:0]
	for i := range nodes {
		p.order = append(p.order, i)
	}
	slices.SortFunc(p.order, func(a, b int) int {
		return cmp.Or(strings.Compare(nodes[a].Name, nodes[b].Name), a-b)
	})
}
