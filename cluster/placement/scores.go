package placement

import "slices"

// defaultScorer is Proxmox's own, so that HA agrees with what was chosen here.
const defaultScorer = "crs"

// scorers fill the scores of all nodes.
var scorers = map[string]func(*Placer, *question, []Node){
	defaultScorer: (*Placer).crs,
	"spread":      (*Placer).emptiest,
	"pack":        (*Placer).fullest,
}

// score sets the score of each node. One that was not heard of has 0.
func (p *Placer) score(q *question, nodes []Node) {
	p.scores = slices.Grow(p.scores[:0], len(nodes))[:len(nodes)]
	clear(p.scores)
	scorers[q.scorer](p, q, nodes)
}

// others is how many agents are taken to place VMs as this one does, in a burst
// that comes through several of them. Each would level by itself what it sees
// too late, and together they would do so several times over. So what this agent
// has just placed on a node is counted for them too when nodes are compared; the
// filters count it once.
const others = 2

// emptiest scores by the share of a node's memory that stays free of promises.
func (p *Placer) emptiest(q *question, nodes []Node) {
	for i := range nodes {
		if share, ok := q.share(&nodes[i], others*clamp(nodes[i].Recent.Memory)); ok {
			p.scores[i] = 1 - share
		}
	}
}

// fullest scores by the share that is promised then.
func (p *Placer) fullest(q *question, nodes []Node) {
	for i := range nodes {
		p.scores[i], _ = q.share(&nodes[i], 0)
	}
}

// share is how much of a node's memory is promised with the VM and something
// more. It is false if that is not known.
func (q *question) share(n *Node, more int64) (float64, bool) {
	usable := q.usable(n)
	if !q.counts(n) || usable <= 0 {
		return 0, false
	}
	return float64(usable-q.room(n)+clamp(q.want.Memory)+more) / float64(usable), true
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
			cpus: float64(max(1, n.cpus())), cpusUsed: float64(told.VCPUsPromised) + float64(n.Reserved.CPUs+others*n.Recent.CPUs),
			memory: float64(told.MemoryTotal), memUsed: float64(told.MemoryPromised) + float64(n.Reserved.Memory) + others*float64(n.Recent.Memory),
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
