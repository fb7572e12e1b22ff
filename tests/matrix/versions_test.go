//go:build versions

package matrix

// olderVersions are those of PVE that are asked beside the newest.
var olderVersions = []string{"8.4", "7.4"}
