//go:build race

package e2e

// crashStride leaves out rows: with the race detector an agent takes long to start, and a part of the table goes through
// all of the code.
const crashStride = 12

// crashReally says whether the rows are taken with real QEMU, too.
const crashReally = false
