//go:build netns && !soak

package netns

// faultsTime is for how long stories are told.
const faultsTime = 0
