package qmp

// Targets is the number of VMs that the gate remembers.
func (g *Gate) Targets() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.targets)
}

// LetInAndWithdraw has a turn come at the moment in which its context ends.
func (g *Gate) LetInAndWithdraw(path string, cause error) error {
	w, err := g.queue(path, User)
	if err != nil {
		return err
	}
	return g.withdraw(w, cause)
}
