package placement

// defaultScorer is Proxmox's own, so that HA agrees with what was chosen here.
const defaultScorer = "crs"

// scorers fill the scores of all nodes.
var scorers = map[string]func(*Placer, *question, []Node){
	defaultScorer: (*Placer).crs,
	"spread": func(p *Placer, q *question, nodes []Node) {
		p.shares(q, nodes, func(share float64) float64 { return 1 - share })
	},
	"pack": func(p *Placer, q *question, nodes []Node) {
		p.shares(q, nodes, func(share float64) float64 { return share })
	},
}

// score sets the score of each node. One that was not heard of has 0.
func (p *Placer) score(q *question, nodes []Node) {
	p.scores = append(p.scores[:0], make([]float64, len(nodes))...)
	scorers[q.scorer](p, q, nodes)
}

// shares scores by the share of a node's memory that would be promised.
func (p *Placer) shares(q *question, nodes []Node, score func(share float64) float64) {
	for i := range nodes {
		n := &nodes[i]
		if usable := q.usable(n); q.counts(n) && usable > 0 {
			p.scores[i] = score(float64(usable-q.room(n)+clamp(q.want.Memory)) / float64(usable))
		}
	}
}

// crs scores by what becomes of the cluster, of the nodes that can be asked.
func (p *Placer) crs(q *question, nodes []Node) {
	p.loads, p.at = p.loads[:0], p.at[:0]
	for i := range nodes {
		n := &nodes[i]
		if !q.counts(n) {
			continue
		}
		told := &n.State.Digest
		p.at = append(p.at, i)
		p.loads = append(p.loads, load{
			cpus: float64(max(1, n.cpus())), cpusUsed: float64(told.VCPUsPromised) + float64(n.Reserved.CPUs),
			memory: float64(told.MemoryTotal), memUsed: float64(told.MemoryPromised) + float64(n.Reserved.Memory),
		})
	}
	p.matrix, p.closeness = crs(p.loads, guest{cpus: float64(q.want.CPUs), memory: float64(q.want.Memory)}, p.matrix, p.closeness)
	for k, i := range p.at {
		p.scores[i] = p.closeness[k]
	}
}

// counts says whether what a node told of itself may be compared.
func (q *question) counts(n *Node) bool {
	var r refusals
	return q.heard(n, &r) && n.State.Digest.MemoryTotal > 0
}
