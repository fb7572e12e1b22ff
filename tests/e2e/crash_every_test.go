//go:build every && !race

package e2e

// crashStride takes all rows.
const crashStride = 1
