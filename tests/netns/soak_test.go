//go:build soak

package netns

import "time"

// faultsTime is for how long stories are told.
const faultsTime = 30 * time.Minute
