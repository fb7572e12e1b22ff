package config

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// unknownKey says why name is not a key and which one may be meant.
func unknownKey(name string) error {
	switch last := name[strings.LastIndexByte(name, '.')+1:]; last {
	case "token-secret", "password":
		return fmt.Errorf("a secret does not stand in a configuration file: put it into a file of mode 0600 and name that file in pve.%s-file", last)
	}
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
		if section, _, ok := strings.Cut(k.name, "."); ok {
			names = append(names, section)
		}
	}
	if near := nearest(name, names); near != "" {
		return fmt.Errorf("unknown key, did you mean %s?", near)
	}
	return errors.New("unknown key")
}

// nearest finds the name that differs least from what was written, or "". A
// name in the wrong section, or with another separator, differs by nothing.
func nearest(written string, names []string) string {
	best, bestDistance := "", len(written)/3+1
	if len(written) > maxKey {
		return ""
	}
	for _, name := range names {
		d := min(distance(normal(written), normal(name)), distance(normal(lastPart(written)), normal(lastPart(name)))+1)
		if d < bestDistance {
			best, bestDistance = name, d
		}
	}
	return best
}

// maxKey bounds what is compared and printed; no key is nearly as long.
const maxKey = 60

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// normal makes allowedSANs, allowed_sans and allowed-sans one name.
func normal(name string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(name))
}

// distance counts the bytes to insert, delete or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// printable keeps error messages one line and short, whatever a file holds.
func printable(name string) string {
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
	if runes := []rune(name); len(runes) > maxKey {
		return string(runes[:maxKey]) + "..."
	}
	return name
}
