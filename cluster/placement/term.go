package placement

import (
	"slices"
	"strings"
)

// anyTag says whether one of a VM's tags is one of the words, as PVE keeps them.
func anyTag(tags, words []string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return hasTag(tags, tagOf(word)) })
}

func hasTag(tags []string, tag string) bool {
	for _, t := range tags {
		if sameTag(t, tag) {
			return true
		}
	}
	return false
}

// sameTag compares as PVE does, which does not tell cases apart; tag is in small
// letters.
func sameTag(t, tag string) bool { return len(t) == len(tag) && hasTagPrefix(t, tag) }

func hasTagPrefix(t, prefix string) bool {
	if len(t) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := t[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// tagOf is a word as PVE has it among its tags: small letters, digits and
// "_-+."; everything else is a '-'. A tag does not begin with a sign but '_'.
func tagOf(word string) string {
	tag := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+.", r) {
			return r
		}
		return '-'
	}, strings.ToLower(strings.TrimSpace(word)))
	if tag != "" && strings.Contains("-+.", tag[:1]) {
		tag = "_" + tag[1:]
	}
	return tag
}
