package pmxcfs

import (
	"iter"
	"net/url"
	"strconv"
	"strings"
)

// whitespace is what PVE's parser skips around keys and values.
const whitespace = " \t\r\n\f\v"

// Section is the text of one part of a VM config: `key: value` lines and `#` lines, which are its description.
type Section string

// Get returns the value of key as the file has it. Of two lines with one key PVE uses the later.
func (s Section) Get(key string) (string, bool) {
	value, found := "", false
	for at := 0; at < len(s); {
		next := lineEnd(string(s), at)
		line := string(s[at:next])
		at = next
		if !mayHold(line, key) {
			continue
		}
		if k, v, ok := keyLine(line); ok && k == key {
			value, found = v, true
		}
	}
	return value, found
}

// mayHold is a quick look whether a line can be the one of key.
func mayHold(line, key string) bool {
	if len(line) > len(key) && line[len(key)] == ':' && line[:len(key)] == key {
		return true
	}
	return key == "ide2" && strings.HasPrefix(line, "cdrom:")
}

// Keys lists the keys in the order of the file, each once.
func (s Section) Keys() []string {
	var keys []string
	seen := make(map[string]bool)
	for k := range s.lines() {
		if !seen[k] {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	return keys
}

// Description is the `#` lines (and `description:` lines, which PVE no longer writes), decoded: %-escapes are
// characters again, lines are separated by "\n", trailing white space is gone.
func (s Section) Description() string {
	var b strings.Builder
	for at := 0; at < len(s); {
		next := lineEnd(string(s), at)
		line := string(s[at:next])
		at = next
		if text, ok := strings.CutPrefix(line, "#"); ok {
			b.WriteString(unescape(strings.TrimSuffix(text, "\n")))
			b.WriteByte('\n')
		} else if k, v, ok := keyLine(line); ok && k == "description" {
			b.WriteString(unescape(v))
		}
	}
	return strings.TrimRight(b.String(), whitespace)
}

// lines yields the `key: value` lines.
func (s Section) lines() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for at := 0; at < len(s); {
			next := lineEnd(string(s), at)
			if k, v, ok := keyLine(string(s[at:next])); ok && !yield(k, v) {
				return
			}
			at = next
		}
	}
}

func (s Section) value(key string) string {
	v, _ := s.Get(key)
	return v
}

// number is the decimal value of key, or def.
func (s Section) number(key string, def int) int {
	n, err := strconv.Atoi(s.value(key))
	if err != nil {
		return def
	}
	return n
}

func (s Section) boolean(key string) bool { return boolean(s.value(key)) }

// boolean reads a boolean as PVE does.
func boolean(v string) bool {
	switch strings.ToLower(v) {
	case "1", "on", "yes", "true":
		return true
	default:
		return false
	}
}

// lineEnd is the offset after the line that begins at at, newline included.
func lineEnd(text string, at int) int {
	if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(text)
}

// keyLine splits a `key: value` line. PVE's keys are lower-case letters, "_" and "-", then digits; a key without a value
// is no key line. The old name "cdrom" stands for "ide2".
func keyLine(line string) (key, value string, ok bool) {
	n := keyLen(line)
	if n == 0 || n >= len(line) || line[n] != ':' {
		return "", "", false
	}
	value = strings.Trim(line[n+1:], whitespace)
	if value == "" {
		return "", "", false
	}
	if key = line[:n]; key == "cdrom" {
		key = "ide2"
	}
	return key, value, true
}

// keyLen is the length of the key at the beginning of a line, 0 if there is none.
func keyLen(line string) int {
	n := 0
	for n < len(line) && (('a' <= line[n] && line[n] <= 'z') || n > 0 && (line[n] == '_' || line[n] == '-')) {
		n++
	}
	if n == 0 {
		return 0
	}
	for n < len(line) && digit(line[n]) {
		n++
	}
	return n
}

// fields splits a PVE list: by comma, semicolon or white space.
func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool {
		return r == ',' || r == ';' || strings.ContainsRune(whitespace, r)
	})
}

// unescape turns %XX into bytes; what is no escape stays as it is.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return unescapeLoose(s)
}

func unescapeLoose(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
