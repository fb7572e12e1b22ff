//go:build !versions

package matrix

// olderVersions are left to the tag versions: they take as long again, each.
var olderVersions []string
