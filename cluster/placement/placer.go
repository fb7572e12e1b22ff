package placement

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Placer decides. It keeps its memory from one decision to the next, so that
// nothing is allocated per VM. It is not safe for concurrent use; its zero value
// is ready.
type Placer struct {
	order  []int     // the nodes by name
	scores []float64 // of the nodes

	loads     []load // of the nodes that are compared by crs
	at        []int  // which nodes those are
	matrix    [][criteria]float64
	closeness []float64 // of loads
}

// Place chooses a node. The decision shares no memory with the Placer.
func (p *Placer) Place(c Cluster, w Want, s Settings, now time.Time) Decision {
	q := newQuestion(&w, &s, now)
	p.sort(c.Nodes)
	p.score(&q, c.Nodes)
	d := Decision{Scorer: q.scorer, Rows: make([]Row, 0, len(c.Nodes)), Warnings: q.warnings}
	if q.policy != nil {
		d.Policy = q.policy.Name
	}
	best := -1
	for _, i := range p.order {
		n := &c.Nodes[i]
		row := Row{Node: n.Name, Reasons: q.reasons(n), Score: p.scores[i], MemoryTotal: n.State.Digest.MemoryTotal, MemoryFree: q.room(n)}
		d.Rows = append(d.Rows, row)
		if len(row.Reasons) == 0 && (best < 0 || p.scores[i] > p.scores[best]) {
			best = i
		}
	}
	if best >= 0 {
		d.Node = c.Nodes[best].Name
		if w.Source != nil {
			d.How = w.Source.Nodes[d.Node].How
		}
	}
	return d
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
