package placement

import "math"

// load is what a node carries, as Proxmox's scheduler counts it.
type load struct {
	cpus     float64 // of the host; not 0
	memory   float64 // of the host, in bytes; not 0
	cpusUsed float64
	memUsed  float64 // in bytes
}

// guest is what a guest may use of its node.
type guest struct {
	cpus   float64 // 0: as many as the node has
	memory float64 // in bytes
}

// with returns the node with the guest on it.
func (l load) with(g guest) load {
	if g.cpus == 0 {
		l.cpusUsed += l.cpus
	} else {
		l.cpusUsed += g.cpus
	}
	l.memUsed += g.memory
	return l
}

// The criteria by which the cluster as a whole is judged with the guest on one of the nodes, and their weights: less is
// better in all of them. These are those of Proxmox's own cluster resource scheduling (static mode), so that HA, which
// decides by them, agrees with what was chosen here.
const (
	averageCPU = iota
	highestCPU
	averageMemory
	highestMemory
	criteria
)

var weights = [criteria]float64{averageCPU: 1, highestCPU: 2, averageMemory: 5, highestMemory: 10}

// crs scores each node for a guest, from 0 (worst) to 1 (best), by TOPSIS: an
// alternative is the better, the nearer it is to the best that any alternative
// has in each criterion, and the farther from the worst. What is handed in for
// the results is used again.
func crs(nodes []load, g guest, matrix [][criteria]float64, scores []float64) ([][criteria]float64, []float64) {
	matrix = matrix[:0]
	sums := measure(nodes)
	for i := range nodes {
		matrix = append(matrix, sums.alternative(nodes, i, g))
	}
	return matrix, topsis(matrix, scores[:0])
}

// measured is what the loads of all nodes come to, so that an alternative differs in one node only.
type measured struct {
	cpuSquares, memSquares float64
	highCPU, highMem       [2]top // the two highest: one of them may be the node that changes
}

type top struct {
	load float64
	node int
}

func measure(nodes []load) measured {
	m := measured{highCPU: [2]top{{node: -1}, {node: -1}}, highMem: [2]top{{node: -1}, {node: -1}}}
	for i, n := range nodes {
		cpu, mem := n.cpusUsed/n.cpus, n.memUsed/n.memory
		m.cpuSquares += cpu * cpu
		m.memSquares += mem * mem
		raise(&m.highCPU, top{cpu, i})
		raise(&m.highMem, top{mem, i})
	}
	return m
}

func raise(high *[2]top, t top) {
	switch {
	case high[0].node < 0 || t.load > high[0].load:
		high[0], high[1] = t, high[0]
	case high[1].node < 0 || t.load > high[1].load:
		high[1] = t
	}
}

// without is the highest load of all nodes but one.
func without(high [2]top, node int) float64 {
	if high[0].node != node {
		return high[0].load
	}
	return high[1].load // 0 where there is no other node
}

// alternative describes the cluster with the guest on a node: for CPU and memory 1 + the root mean square of the loads,
// and 1 + the highest.
func (m measured) alternative(nodes []load, at int, g guest) [criteria]float64 {
	old, n := nodes[at], float64(len(nodes))
	now := old.with(g)
	cpuOld, memOld := old.cpusUsed/old.cpus, old.memUsed/old.memory
	cpu, mem := now.cpusUsed/now.cpus, now.memUsed/now.memory
	return [criteria]float64{
		averageCPU:    1 + math.Sqrt(max(0, m.cpuSquares-cpuOld*cpuOld+cpu*cpu)/n),
		highestCPU:    1 + max(cpu, without(m.highCPU, at)),
		averageMemory: 1 + math.Sqrt(max(0, m.memSquares-memOld*memOld+mem*mem)/n),
		highestMemory: 1 + max(mem, without(m.highMem, at)),
	}
}

// topsis returns the relative closeness of each alternative to the ideal one. Where all are equal, each is ideal.
func topsis(matrix [][criteria]float64, into []float64) []float64 {
	var best, worst [criteria]float64
	normalize(matrix)
	for c := range criteria {
		best[c], worst[c] = math.Inf(1), math.Inf(-1)
		for _, row := range matrix {
			best[c], worst[c] = min(best[c], row[c]), max(worst[c], row[c])
		}
	}
	for _, row := range matrix {
		toBest, toWorst := distance(row, best), distance(row, worst)
		score := 1.0
		if toBest+toWorst > 0 {
			score = toWorst / (toBest + toWorst)
		}
		into = append(into, score)
	}
	return into
}

// normalize makes the columns comparable: each is divided by its Euclidean norm and multiplied by its share of the
// weights.
func normalize(matrix [][criteria]float64) {
	total := 0.0
	for _, w := range weights {
		total += w
	}
	for c := range criteria {
		norm := 0.0
		for _, row := range matrix {
			norm += row[c] * row[c]
		}
		norm = math.Sqrt(norm)
		for i := range matrix {
			matrix[i][c] = matrix[i][c] / norm * weights[c] / total
		}
	}
}

func distance(a, b [criteria]float64) float64 {
	sum := 0.0
	for c := range criteria {
		sum += (a[c] - b[c]) * (a[c] - b[c])
	}
	return math.Sqrt(sum)
}
