//go:build soak

package scenario

// seeds are those of the walks.
var seeds = seedsUpTo(100)

// thorough tells every story.
const thorough = true
