//go:build !soak && !race

package scenario

// seeds are those of the walks.
var seeds = seedsUpTo(5)

// thorough tells every story.
const thorough = true
