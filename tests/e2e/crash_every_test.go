//go:build every && !race

package e2e

// crashStride takes all rows.
const crashStride = 1

// crashReally says whether the rows are taken with real QEMU, too.
const crashReally = true
