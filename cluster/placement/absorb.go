package placement

// absorb warns if the cluster could not take the VMs of a node that is lost,
// with the VM on the node that was chosen: the memory promised on each node is
// compared with what is free on the others together. Whether each VM fits as a
// whole is not looked at.
func (q *question) absorb(chosen int) {
	nodes := q.nodes
	var spare int64 // of all nodes that take VMs
	alive := 0
	for i := range nodes {
		if q.counts(&nodes[i]) {
			alive++
		}
		spare += q.spare(&nodes[i], i == chosen)
	}
	if alive < 2 {
		return
	}
	worst, missing, also := -1, int64(0), 0
	for i := range nodes {
		n := &nodes[i]
		if !q.counts(n) {
			continue
		}
		lack := q.carried(n, i == chosen) - (spare - q.spare(n, i == chosen))
		if lack <= 0 {
			continue
		}
		also++
		if lack > missing || lack == missing && n.Name < nodes[worst].Name {
			worst, missing = i, lack
		}
	}
	if worst < 0 {
		return
	}
	n := &nodes[worst]
	more := ""
	switch also {
	case 1:
	case 2:
		more = "; nor would those of another node"
	default:
		more = words("; nor would those of %d other nodes", []any{also - 1})
	}
	carried := q.carried(n, worst == chosen)
	q.warn("if %s were lost, the %s GiB of its VMs would not fit on the other nodes (%s free)%s",
		n.Name, gibUp(carried), gibDown(carried-missing), more)
}

// carried is the memory of the VMs of a node, with the one that is placed.
func (q *question) carried(n *Node, chosen bool) int64 {
	sum := clamp(n.State.Digest.MemoryPromised) + clamp(n.Reserved.Memory)
	switch {
	case chosen:
		sum += clamp(q.want.Memory)
	case n.Name == q.want.Current:
		sum = max(0, sum-clamp(q.want.Memory))
	}
	return sum
}

// spare is what a node has free for the VMs of another one.
func (q *question) spare(n *Node, chosen bool) int64 {
	var r refusals
	if q.willing(n, &r); len(r) > 0 || !q.counts(n) {
		return 0
	}
	return max(0, q.usable(n)-q.carried(n, chosen))
}
