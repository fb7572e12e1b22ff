// Package vmconf reads and writes the VM configuration files of the simulated
// cluster (nodes/<node>/qemu-server/<vmid>.conf).
//
// It is written on its own and shares nothing with the agent's reader: a bug
// in one of them shows as a difference instead of being played twice.
package vmconf

import (
	"crypto/sha1" //nolint:gosec // PVE's digest of a config file is SHA-1.
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Section is one section of a config file: option to value. The text of a
// leading comment block stands under "description", decoded.
type Section map[string]string

// Description is the key of a section's comment block.
const Description = "description"

// Conf is a whole config file.
type Conf struct {
	Main      Section
	Pending   Section            // "[PENDING]"; "delete" holds the keys that go away
	Special   map[string]Section // "[special:<name>]"
	Snapshots map[string]Section // "[<name>]"
	Digest    string             // SHA-1 of the bytes it was read from, hex
}

// New returns an empty config.
func New() *Conf {
	return &Conf{
		Main: Section{}, Pending: Section{},
		Special: map[string]Section{}, Snapshots: map[string]Section{},
	}
}

var (
	sectionLine = regexp.MustCompile(`(?i)^\[(special:[a-z]+|[a-z][a-z0-9_-]+)\]\s*$`)
	optionLine  = regexp.MustCompile(`^([a-z][a-z_-]*\d*):\s*(.+?)\s*$`)
)

// Parse reads a config file. Like PVE it passes over lines it cannot read.
func Parse(raw []byte) *Conf {
	sum := sha1.Sum(raw) //nolint:gosec // see import
	c := New()
	c.Digest = hex.EncodeToString(sum[:])
	section := c.Main
	var comment strings.Builder
	finish := func() {
		if text := strings.TrimRight(comment.String(), " \t\r\n"); text != "" {
			section[Description] = text
		}
		comment.Reset()
	}
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSuffix(line, "\n")
		if m := sectionLine.FindStringSubmatch(line); m != nil {
			finish()
			section = c.section(m[1])
			continue
		}
		if text, ok := strings.CutPrefix(line, "#"); ok {
			comment.WriteString(decodeText(text) + "\n")
			continue
		}
		if m := optionLine.FindStringSubmatch(line); m != nil {
			section[m[1]] = m[2]
		}
	}
	finish()
	return c
}

func (c *Conf) section(name string) Section {
	if strings.EqualFold(name, "pending") {
		return c.Pending
	}
	into, key := c.Snapshots, name
	if rest, ok := strings.CutPrefix(name, "special:"); ok {
		into, key = c.Special, rest
	}
	into[key] = Section{}
	return into[key]
}

// Bytes renders the config as PVE writes it: the description first, then the
// options in order of their names, then the other sections.
func (c *Conf) Bytes() []byte {
	var b strings.Builder
	c.Main.render(&b)
	if len(c.Pending) > 0 {
		b.WriteString("\n[PENDING]\n")
		c.Pending.render(&b)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Special)) {
		if len(c.Special[name]) > 0 {
			fmt.Fprintf(&b, "\n[special:%s]\n", name)
			c.Special[name].render(&b)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Snapshots)) {
		fmt.Fprintf(&b, "\n[%s]\n", name)
		c.Snapshots[name].render(&b)
	}
	return []byte(b.String())
}

func (s Section) render(b *strings.Builder) {
	if text := s[Description]; text != "" {
		for _, line := range strings.Split(text, "\n") {
			b.WriteString("#" + encodeText(line) + "\n")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if key != Description {
			b.WriteString(key + ": " + s[key] + "\n")
		}
	}
}

// Clone copies a section.
func (s Section) Clone() Section { return maps.Clone(s) }

// PendingDelete returns the keys that [PENDING] deletes; the value says
// whether the volume behind the key goes too ("!key" in the file).
func (c *Conf) PendingDelete() map[string]bool {
	out := map[string]bool{}
	for _, key := range SplitList(c.Pending["delete"]) {
		name, force := strings.CutPrefix(key, "!")
		out[name] = force
	}
	return out
}

// SetPendingDelete writes the list that PendingDelete reads.
func (c *Conf) SetPendingDelete(keys map[string]bool) {
	if len(keys) == 0 {
		delete(c.Pending, "delete")
		return
	}
	var list []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if keys[key] {
			key = "!" + key
		}
		list = append(list, key)
	}
	c.Pending["delete"] = strings.Join(list, ",")
}

// SplitList splits PVE's lists: separated by comma, semicolon or white space.
func SplitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool {
		return r == ',' || r == ';' || r == ' ' || r == '\t' || r == '\n' || r == 0
	})
}

// encodeText writes what may not stand in a comment as %XX: control
// characters, '%', ':' and all that is not ASCII.
func encodeText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' || c == ':' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func decodeText(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.WriteByte(v[0])
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
