//go:build !race && !every

package e2e

// crashStride leaves out rows: `make crash` takes them all.
const crashStride = 12

// crashReally says whether the rows are taken with real QEMU, too.
const crashReally = false
