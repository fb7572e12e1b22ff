package pmxcfs

import (
	"fmt"
	"slices"
	"strings"
)

// Set returns the config with key of its first part set to value; c itself stays as it is. Only that line changes; a new
// key goes where PVE, which sorts keys, would write it. An error says that key or value cannot stand in a config.
func (c *Conf) Set(key, value string) (*Conf, error) {
	if err := checkLine(key, value); err != nil {
		return nil, err
	}
	if start, end, ok := c.findValue(key); ok {
		return newConf(c.raw[:start] + value + c.raw[end:]), nil
	}
	at := c.insertAt(key)
	line := key + ": " + value + "\n"
	if at > 0 && c.raw[at-1] != '\n' {
		line = "\n" + line
	}
	return newConf(c.raw[:at] + line + c.raw[at:]), nil
}

// Delete returns the config without key in its first part; c itself stays as it is.
func (c *Conf) Delete(key string) *Conf {
	main := string(c.Section)
	return newConf(without(main, key) + c.raw[len(main):])
}

// without returns a section's text without the lines of key.
func without(text, key string) string {
	var b strings.Builder
	b.Grow(len(text))
	for at := 0; at < len(text); {
		next := lineEnd(text, at)
		if k, _, ok := keyLine(text[at:next]); !ok || k != key {
			b.WriteString(text[at:next])
		}
		at = next
	}
	return b.String()
}

// DropPending returns the config in which nothing of key waits for a power cycle, neither a value nor its removal; c itself
// stays as it is. A [PENDING] that this leaves empty goes, too.
func (c *Conf) DropPending(key string) *Conf {
	for i, m := range slices.Backward(c.sections) {
		if m.kind != sectionPending {
			continue
		}
		old := string(c.body(i))
		kept, rest := settle(old, key), c.raw[m.body+len(old):]
		if strings.Trim(kept, whitespace) != "" {
			return newConf(c.raw[:m.body] + kept + rest)
		}
		before := c.raw[:m.head]
		if rest == "" && strings.HasSuffix(before, "\n\n") {
			before = before[:len(before)-1]
		}
		return newConf(before + rest)
	}
	return c
}

// settle takes a key, and its removal, out of the text of [PENDING].
func settle(text, key string) string {
	var b strings.Builder
	for at := 0; at < len(text); {
		next := lineEnd(text, at)
		line := text[at:next]
		at = next
		k, v, ok := keyLine(line)
		if ok && k == key {
			continue
		}
		if ok && k == "delete" {
			list := fields(v)
			kept := slices.DeleteFunc(slices.Clone(list), func(e string) bool { return strings.TrimPrefix(e, "!") == key })
			if len(kept) == 0 {
				continue
			}
			if len(kept) < len(list) {
				line = "delete: " + strings.Join(kept, ",") + "\n"
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// findValue locates the value that counts for key: the last line's.
func (c *Conf) findValue(key string) (start, end int, found bool) {
	main := string(c.Section)
	for at := 0; at < len(main); {
		next := lineEnd(main, at)
		line := main[at:next]
		if k, v, ok := keyLine(line); ok && k == key {
			start = at + strings.Index(line, ":") + 1
			start += strings.Index(main[start:next], v)
			end, found = start+len(v), true
		}
		at = next
	}
	return start, end, found
}

// insertAt is the offset at which a new key belongs: before the first greater one, else after the last line.
func (c *Conf) insertAt(key string) int {
	main := string(c.Section)
	after := 0
	for at := 0; at < len(main); {
		next := lineEnd(main, at)
		k, _, ok := keyLine(main[at:next])
		if ok && k > key {
			return at
		}
		if strings.Trim(main[at:next], whitespace) != "" {
			after = next
		}
		at = next
	}
	return after
}

// checkLine refuses what would not be read back as the same key and value.
func checkLine(key, value string) error {
	k, v, ok := keyLine(key + ": " + value)
	if !ok || k != key || v != value || strings.ContainsAny(value, "\n\x00") {
		return fmt.Errorf("cannot write %q: %q into a vm config", key, value)
	}
	switch key {
	case "description", "delete", "snapstate":
		return fmt.Errorf("cannot write %q into a vm config: not a plain key there", key)
	}
	return nil
}
