//go:build !soak && !race && !every

package scenario

// seeds are those of the walks: `make crash` tells more.
var seeds = seedsUpTo(1)

// thorough tells every story.
const thorough = true
