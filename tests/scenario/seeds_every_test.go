//go:build every && !soak && !race

package scenario

// seeds are those of the walks.
var seeds = seedsUpTo(3)

// thorough tells every story.
const thorough = true
