package qmp

// Targets is the number of VMs that the gate remembers.
func (g *Gate) Targets() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.targets)
}
