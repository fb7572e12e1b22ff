package pmxcfs

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
)

// Conf is one VM config file, nodes/<node>/qemu-server/<vmid>.conf. It is immutable and keeps the file as it was read,
// plus where its sections begin: Bytes of a parsed Conf is the input. Keys are looked up by walking the lines, which
// for a file of this size costs less than a map and its memory.
//
// The embedded Section is the file's first part, the VM as it is now. Lines PVE would not understand are kept and
// ignored, as PVE does.
type Conf struct {
	Section
	raw      string
	sections []mark // in the order of the file; nil for a file without further sections
}

// mark is where a section of a file begins: its header line, and the line after it.
type mark struct {
	kind       sectionKind
	name       string // shares the memory of Conf.raw
	head, body int    // offsets in Conf.raw
}

type sectionKind uint8

const (
	sectionUnknown sectionKind = iota
	sectionPending
	sectionSpecial
	sectionSnapshot
)

// ParseConf takes the content of a VM config; path only names the file in errors. The one thing that is an error is
// what no text file contains: a zero byte.
func ParseConf(path string, raw []byte) (*Conf, error) {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return nil, &FormatError{Path: path, Reason: fmt.Sprintf("zero byte at offset %d", i)}
	}
	return newConf(string(raw)), nil
}

func newConf(raw string) *Conf {
	c := &Conf{raw: raw}
	for at := 0; at < len(raw); {
		next := lineEnd(raw, at)
		if raw[at] == '[' {
			if kind, name, ok := header(raw[at:next]); ok {
				c.sections = append(c.sections, mark{kind: kind, name: name, head: at, body: next})
			}
		}
		at = next
	}
	c.Section = Section(raw[:c.mainEnd()])
	return c
}

// mainEnd is where the first part of the file ends.
func (c *Conf) mainEnd() int {
	if len(c.sections) == 0 {
		return len(c.raw)
	}
	return c.sections[0].head
}

// body is the text of section i, without its header.
func (c *Conf) body(i int) Section {
	end := len(c.raw)
	if i+1 < len(c.sections) {
		end = c.sections[i+1].head
	}
	return Section(c.raw[c.sections[i].body:end])
}

// last finds the last section of a kind and name: of two with one name PVE keeps the later.
func (c *Conf) last(kind sectionKind, name string) (Section, bool) {
	for i := len(c.sections) - 1; i >= 0; i-- {
		if c.sections[i].kind == kind && c.sections[i].name == name {
			return c.body(i), true
		}
	}
	return "", false
}

// header recognises a section header, `[PENDING]`, `[special:cloudinit]` or `[<snapshot>]`. Any other bracketed line
// also ends the section before it.
func header(line string) (kind sectionKind, name string, ok bool) {
	line = strings.TrimRight(line, whitespace)
	if len(line) < 2 || line[0] != '[' || strings.IndexByte(line, ']') != len(line)-1 {
		return 0, "", false
	}
	name = line[1 : len(line)-1]
	special, isSpecial := cutPrefixFold(name, "special:")
	switch {
	case strings.EqualFold(name, "pending"):
		return sectionPending, "", true
	case isSpecial:
		return sectionSpecial, special, true
	case snapshotName(name):
		return sectionSnapshot, name, true
	default:
		return sectionUnknown, name, true
	}
}

// snapshotName reports whether PVE would read a section of this name as a snapshot.
func snapshotName(name string) bool {
	if len(name) < 2 || !letter(name[0]) {
		return false
	}
	for i := 1; i < len(name); i++ {
		if c := name[i]; !letter(c) && !digit(c) && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func letter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// Bytes is the content of the file, byte for byte.
func (c *Conf) Bytes() []byte { return []byte(c.raw) }

// Digest is PVE's digest of the config: the value of the `digest` parameter that detects a concurrent change.
func (c *Conf) Digest() string {
	sum := sha1.Sum([]byte(c.raw))
	return hex.EncodeToString(sum[:])
}

// Pending is what a power cycle would change.
func (c *Conf) Pending() Pending {
	s, _ := c.last(sectionPending, "")
	return Pending{Section: s}
}

// Next is the value key has after the pending changes are applied.
func (c *Conf) Next(key string) (string, bool) {
	p := c.Pending()
	if v, ok := p.Get(key); ok && key != "delete" {
		return v, true
	}
	if p.Deletes(key) {
		return "", false
	}
	return c.Get(key)
}

// CloudInit is the section [special:cloudinit]: the values the current cloud-init drive was made with where they differ.
func (c *Conf) CloudInit() Section {
	s, _ := c.last(sectionSpecial, "cloudinit")
	return s
}

// Pending is the section [PENDING] of a config.
type Pending struct {
	Section
}

// Empty reports that nothing waits for a power cycle.
func (p Pending) Empty() bool {
	for range p.lines() {
		return false
	}
	return true
}

// Deletes reports whether key will be removed.
func (p Pending) Deletes(key string) bool {
	list, _ := p.Get("delete")
	for _, k := range fields(list) {
		if strings.TrimPrefix(k, "!") == key {
			return true
		}
	}
	return false
}

// Deleted lists the keys that will be removed, in the order of the file.
func (p Pending) Deleted() []string {
	list, _ := p.Get("delete")
	keys := fields(list)
	for i, k := range keys {
		// PVE marks with "!" a drive whose volume is to be removed as well (PVE::AbstractConfig).
		keys[i] = strings.TrimPrefix(k, "!")
	}
	return keys
}

// Snapshot is one snapshot's section: the config at that time.
type Snapshot struct {
	Section
	Name string
}

// Parent is the snapshot this one was taken after, "" for a first one.
func (s Snapshot) Parent() string { return s.value("parent") }

// Time is when it was taken, Unix seconds, 0 if unknown.
func (s Snapshot) Time() int64 { return int64(s.number("snaptime", 0)) }

// Memory reports whether it holds the VM's memory.
func (s Snapshot) Memory() bool { return s.value("vmstate") != "" }

// State is "prepare" or "delete" while PVE is at work on it, else "".
func (s Snapshot) State() string { return s.value("snapstate") }

// Snapshot returns the snapshot of that name.
func (c *Conf) Snapshot(name string) (Snapshot, bool) {
	s, ok := c.last(sectionSnapshot, name)
	return Snapshot{Section: s, Name: name}, ok
}

// Snapshots lists the snapshots in the order of the file, which PVE sorts by name.
func (c *Conf) Snapshots() []Snapshot {
	var list []Snapshot
	for i, m := range c.sections {
		if m.kind == sectionSnapshot {
			list = append(list, Snapshot{Section: c.body(i), Name: m.name})
		}
	}
	return list
}
