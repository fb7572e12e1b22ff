//go:build !soak && race

package scenario

// seeds are those of the walks: the race detector takes ten times the time.
var seeds = seedsUpTo(1)

// thorough leaves out what takes long.
const thorough = false
