package placement

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// selector is a Term, or the Match of a policy, made ready to be compared with
// very many VMs.
type selector struct {
	kind   func(*selector, *VM) bool // does the VM have it?
	not    bool                      // those that do not are meant
	any    bool                      // any value will do
	values []string
	prefix string // of tags, for keys that are in tags
	match  *Match
	words  string // the term as the administrator wrote it
}

// matches says whether a VM is one of those that are meant.
func (s *selector) matches(vm *VM) bool { return s.kind(s, vm) != s.not }

// selectMatch selects the VMs that a policy matches; one without a match is for
// all.
func selectMatch(m *Match) selector {
	return selector{kind: (*selector).ofMatch, match: m, values: tagsOf("", m.Tags)}
}

// selectTerm reads a term. It is false if its key or operator is none.
func selectTerm(t Term) (selector, bool) {
	s := selector{values: t.Values, words: strings.TrimSpace(fmt.Sprintf("%s %s %s", t.Key, t.Operator, strings.Join(t.Values, ",")))}
	switch t.Operator {
	case "In":
	case "NotIn":
		s.not = true
	case "Exists":
		s.any = true
	case "DoesNotExist":
		s.any, s.not = true, true
	default:
		return s, false
	}
	switch t.Key {
	case "tag":
		s.kind, s.values = (*selector).ofTags, tagsOf("", t.Values)
	case "pool":
		s.kind = (*selector).ofPool
	case "name":
		s.kind = (*selector).ofName
	case "":
		return s, false
	default:
		s.kind, s.prefix, s.values = (*selector).ofKey, tagOf(t.Key), tagsOf(t.Key+"=", t.Values)
	}
	return s, true
}

// ofMatch says whether each list that is given has one that matches.
func (s *selector) ofMatch(vm *VM) bool {
	m := s.match
	return (len(m.Names) == 0 || anyPattern(m.Names, vm.Name)) &&
		(len(m.Pools) == 0 || slices.Contains(m.Pools, vm.Pool)) &&
		(len(m.Tags) == 0 || anyTag(vm.Tags, s.values))
}

func (s *selector) ofPool(vm *VM) bool {
	return vm.Pool != "" && (s.any || slices.Contains(s.values, vm.Pool))
}

func (s *selector) ofName(vm *VM) bool { return s.any || anyPattern(s.values, vm.Name) }

func (s *selector) ofTags(vm *VM) bool {
	if s.any {
		return len(vm.Tags) > 0
	}
	return anyTag(vm.Tags, s.values)
}

// ofKey looks for "k=v" among the tags, where it is "k-v". A tag "k" is a key
// without a value.
func (s *selector) ofKey(vm *VM) bool {
	if !s.any {
		return s.ofTags(vm)
	}
	for _, t := range vm.Tags {
		if hasTagPrefix(t, s.prefix) && (len(t) == len(s.prefix) || t[len(s.prefix)] == '-') {
			return true
		}
	}
	return false
}

// anyTag says whether a VM has one of some tags, which are as of tagOf.
func anyTag(has, tags []string) bool {
	for _, tag := range tags {
		for _, t := range has {
			if len(t) == len(tag) && hasTagPrefix(t, tag) {
				return true
			}
		}
	}
	return false
}

// anyPattern says whether a name matches one of the patterns. One that is no
// pattern matches nothing; the configuration is checked before.
func anyPattern(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

// hasTagPrefix compares as PVE does, which does not tell cases apart; prefix is
// in small letters.
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

func tagsOf(prefix string, words []string) []string {
	tags := make([]string, 0, len(words))
	for _, word := range words {
		tags = append(tags, tagOf(prefix+word))
	}
	return tags
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
