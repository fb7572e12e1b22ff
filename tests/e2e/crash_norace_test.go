//go:build !race && !every

package e2e

// crashStride leaves out rows: `make crash` takes them all.
const crashStride = 3
