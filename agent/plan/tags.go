package plan

import (
	"slices"
	"strconv"
	"strings"
)

// Tags returns PVE's tags of a VM: those it has, without those that an earlier request gave it (earlier), and those that
// are asked for now. The result is sorted and has no doubles.
//
// PVE's tags are of letters, digits and `_-+.`, begin with a letter, a digit or `_`, and do not tell cases apart. What a
// request may say is anything: capitals become small, other characters '-' (a leading one '_'). The original words stay
// in the VM's record.
func Tags(asked, have, earlier []string) []string {
	var gone, all []string
	for _, t := range earlier {
		gone = append(gone, Tag(t))
	}
	for _, t := range have {
		if !slices.Contains(gone, strings.ToLower(t)) {
			all = append(all, strings.ToLower(t))
		}
	}
	for _, t := range asked {
		if t = Tag(t); t != "" {
			all = append(all, t)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Tag is one word as PVE takes it for a tag, "" if nothing is left of it.
func Tag(word string) string {
	tag := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', strings.ContainsRune("_-+.", r):
			return r
		}
		return '-'
	}, strings.ToLower(strings.TrimSpace(word)))
	if strings.Trim(tag, "-") == "" {
		return ""
	}
	if strings.ContainsRune("-+.", rune(tag[0])) {
		tag = "_" + tag[1:]
	}
	return tag
}

// tagNotes tells which words cannot be tags at all.
func tagNotes(asked []string) []string {
	var lost []string
	for _, word := range asked {
		if Tag(word) == "" {
			lost = append(lost, strconv.Quote(word))
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return []string{"left out of the tags, because PVE takes nothing of them: " + strings.Join(lost, ", ")}
}

func joinTags(tags []string) string { return strings.Join(tags, ";") }

// poolName is PVE's pool for a folder: pools are nested by '/', without one at the ends.
func poolName(folder string) string { return strings.Trim(folder, "/") }
