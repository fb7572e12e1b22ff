// Package snapname gives snapshots names that PVE takes, from which the names that were asked for can be told again.
//
// A client asks for the name of a DNS subdomain: 1 to 253 of a-z, 0-9, "-" and ".". PVE takes 2 to 40 of A-Z, a-z, 0-9,
// "-" and "_" with a letter first, and keeps some names for itself. Most names are the same on both sides. Where they
// are not:
//
//   - "." becomes "_", which no name that is asked for has;
//   - what begins with a digit, is one letter, or is kept by PVE, gets "S-" in front: no name asked for has an upper case
//     letter;
//   - what is too long even so, or is no name of a DNS subdomain, becomes its beginning, "-X" and 16 letters and digits
//     of its hash. Such a snapshot carries the name asked for in a line of its description.
//
// It is pure.
package snapname

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLength = 40  // of names that PVE takes
	maxAsked  = 253 // of names of DNS subdomains
)

// Marks in names. Names of DNS subdomains have no upper case letters.
const (
	short = "S-" // before a name that could not stand as it is
	long  = "-X" // between the beginning of a name and its hash
)

// label begins the line of a snapshot's description that tells the name asked for.
const label = "Snapshot name: "

var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	taken     = regexp.MustCompile(`^[a-z][a-z0-9_-]+$`) // what PVE takes as it is, once the dots are gone
	hashed    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*-X[a-z2-7]{16}$`)
)

// reserved are the names PVE keeps for itself: the state a VM is in, the section of pending changes, and what vzdump
// makes, for which PVE leaves out disks.
var reserved = map[string]bool{"current": true, "pending": true, "vzdump": true}

// Check says why a name cannot be asked for: it would not survive in a line of a description.
func Check(name string) error {
	printable := !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
	switch {
	case name == "":
		return errors.New("a snapshot needs a name")
	case len(name) > maxAsked:
		return fmt.Errorf("a snapshot's name has at most %d characters, this one has %d", maxAsked, len(name))
	case !utf8.ValidString(name) || !printable || strings.TrimSpace(name) != name:
		return fmt.Errorf("%q is no name for a snapshot: expected that of a DNS subdomain, such as before-upgrade.1", name)
	}
	return nil
}

// Encode returns the name that a snapshot gets in PVE when name is asked for. Two names that differ get names that
// differ.
func Encode(name string) string {
	if !subdomain.MatchString(name) {
		return hash(name)
	}
	id := strings.ReplaceAll(name, ".", "_")
	if !taken.MatchString(id) || reserved[id] {
		id = short + id
	}
	if len(id) > maxLength {
		return hash(name)
	}
	return id
}

// hash is the name of what cannot be written in full.
func hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	tail := long + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
	head := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
	if head == "" || !isLetter(head[0]) {
		head = short + head
	}
	return head[:min(len(head), maxLength-len(tail))] + tail
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// Describe returns the description that a snapshot gets: what the client said and, if the name asked for cannot be told
// from id, a line with it at the end.
func Describe(name, id, description string) string {
	if !hashed.MatchString(id) {
		return description
	}
	line := label + name
	if description == "" {
		return line
	}
	return strings.TrimRight(description, "\n") + "\n\n" + line
}

// Decode returns the name that was asked for, from the snapshot's name in PVE and its description. A snapshot that
// somebody else has made is called what PVE calls it.
func Decode(id, description string) string {
	if hashed.MatchString(id) {
		if name, ok := told(description); ok && Encode(name) == id {
			return name
		}
		return id
	}
	name := strings.ReplaceAll(strings.TrimPrefix(id, short), "_", ".")
	if Encode(name) == id {
		return name
	}
	return id
}

// told finds the name in the last line of ours in a description, wherever somebody has written below it.
func told(description string) (string, bool) {
	for {
		at := strings.LastIndexByte(description, '\n')
		if name, ok := strings.CutPrefix(description[at+1:], label); ok {
			return name, true
		}
		if at < 0 {
			return "", false
		}
		description = description[:at]
	}
}
