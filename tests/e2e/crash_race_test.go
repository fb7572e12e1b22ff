//go:build race

package e2e

// crashStride leaves out rows: with the race detector an agent takes long to start, and a part of the table goes through
// all of the code.
const crashStride = 4
