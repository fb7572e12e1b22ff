//go:build race

package cluster

// Races show in small clusters too, and the great ones take minutes.
func init() { spreads = []int{3, 12} }
