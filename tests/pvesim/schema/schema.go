// Package schema checks requests against Proxmox VE's own call schema (path ->
// method -> parameters), with PVE's words for what is wrong with them.
package schema

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Checker holds the schema of one PVE version.
type Checker struct {
	name  string
	paths map[string]map[string]*method
}

type method struct {
	Parameters struct {
		Additional any              `json:"additionalProperties"`
		Properties map[string]*prop `json:"properties"`
	} `json:"parameters"`
	Permissions json.RawMessage  `json:"permissions"`
	indexed     map[string]*prop // "scsi[n]" as "scsi"
}

// prop is one property's schema.
type prop struct {
	Type       string                                `json:"type"`
	Optional   flag                                  `json:"optional"`
	Format     json.RawMessage                       `json:"format"`
	Pattern    string                                `json:"pattern"`
	Minimum    *number                               `json:"minimum"`
	Maximum    *number                               `json:"maximum"`
	MinLength  *number                               `json:"minLength"`
	MaxLength  *number                               `json:"maxLength"`
	Enum       []string                              `json:"enum"`
	Requires   string                                `json:"requires"`
	Alias      string                                `json:"alias"`
	KeyAlias   string                                `json:"keyAlias"`
	DefaultKey flag                                  `json:"default_key"`
	Items      *prop                                 `json:"items"`
	object     map[string]*prop                      // Format, if it is a property string
	format     string                                // Format, if it is a name
	validate   func(values map[string]string) string // of a property string, beyond its properties; nil: none
	pattern    *regexp.Regexp                        // nil if Go cannot compile it
}

// flag is 1 or "1".
type flag bool

// UnmarshalJSON implements [json.Unmarshaler].
func (f *flag) UnmarshalJSON(b []byte) error {
	*f = string(b) == "1" || string(b) == `"1"` || string(b) == "true"
	return nil
}

// number is a number, or one in quotes; anything else is no limit.
type number float64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	if err != nil {
		return fmt.Errorf("limit %s: %w", b, err)
	}
	*n = number(v)
	return nil
}

// Load reads a schema file.
func Load(path string) (*Checker, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return Parse(path, b)
}

// Parse reads a schema. The name is for messages.
func Parse(name string, b []byte) (*Checker, error) {
	c := &Checker{name: name}
	if err := json.Unmarshal(b, &c.paths); err != nil {
		return nil, fmt.Errorf("schema %s: %w", name, err)
	}
	major := majorOf(name)
	for path, methods := range c.paths {
		for verb, m := range methods {
			m.indexed = map[string]*prop{}
			for key, p := range m.Parameters.Properties {
				if err := p.prepare(); err != nil {
					return nil, fmt.Errorf("schema %s: %s %s: %s: %w", name, verb, path, key, err)
				}
				if p.format == "pve-vm-cpu-conf" {
					p.validate = checkCPU(major)
				}
				if base, ok := strings.CutSuffix(key, "[n]"); ok {
					m.indexed[base] = p
				}
			}
		}
	}
	return c, nil
}

// majorOf reads the PVE version off a file's name ("7.4.json"), else it is a
// new one.
func majorOf(name string) int {
	base, _, _ := strings.Cut(filepath.Base(name), ".")
	if n, err := strconv.Atoi(base); err == nil {
		return n
	}
	return 9
}

// String names the schema.
func (c *Checker) String() string { return c.name }

var perlFlags = regexp.MustCompile(`\(\?\^([a-z]*):`)

func (p *prop) prepare() error {
	if len(p.Format) > 0 && p.Format[0] == '"' {
		if err := json.Unmarshal(p.Format, &p.format); err != nil {
			return fmt.Errorf("format: %w", err)
		}
		p.object = namedObjects()[p.format]
	} else if len(p.Format) > 0 && p.Format[0] == '{' {
		if err := json.Unmarshal(p.Format, &p.object); err != nil {
			return fmt.Errorf("format: %w", err)
		}
	}
	for key, sub := range p.object {
		if err := sub.prepare(); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	if p.Pattern != "" {
		text := perlFlags.ReplaceAllStringFunc(p.Pattern, func(m string) string {
			return strings.Replace(m, "^", "", 1)
		})
		text = strings.ReplaceAll(text, "{,", "{0,")
		// What Go cannot compile (look-around) is not checked.
		if re, err := regexp.Compile(`^` + text + `$`); err == nil {
			p.pattern = re
		}
	}
	return nil
}

// Has says whether PVE has that method on that path template.
func (c *Checker) Has(verb, tmpl string) bool { return c.paths[tmpl][verb] != nil }

// Match finds the template of a path.
func (c *Checker) Match(verb, path string) (tmpl string, ok bool) {
	parts := strings.Split(path, "/")
	for tmpl, methods := range c.paths {
		if methods[verb] != nil && matches(strings.Split(tmpl, "/"), parts) {
			return tmpl, true
		}
	}
	return "", false
}

func matches(tmpl, parts []string) bool {
	if len(tmpl) != len(parts) {
		return false
	}
	for i, t := range tmpl {
		if t != parts[i] && !strings.HasPrefix(t, "{") {
			return false
		}
	}
	return true
}

// Permissions returns what the schema says about who may make the call.
func (c *Checker) Permissions(verb, tmpl string) json.RawMessage {
	if m := c.paths[tmpl][verb]; m != nil {
		return m.Permissions
	}
	return nil
}

// Check returns what is wrong with the parameters of a call, those of the
// path included: parameter to PVE's text. Nothing is nil.
func (c *Checker) Check(verb, tmpl string, params url.Values) map[string]string {
	m := c.paths[tmpl][verb]
	if m == nil {
		return map[string]string{"_root": fmt.Sprintf("no method '%s %s' in schema", verb, tmpl)}
	}
	errs := errorMap{}
	for key, p := range m.Parameters.Properties {
		if !bool(p.Optional) && !params.Has(key) && !strings.HasSuffix(key, "[n]") {
			errs.add(key, "property is missing and it is not optional")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(params)) {
		p := m.property(key)
		if p == nil {
			if m.closed() {
				errs.add(key, "property is not defined in schema and the schema does not allow additional properties")
			}
			continue
		}
		if p.Requires != "" && !params.Has(p.Requires) {
			errs.add(p.Requires, "missing property required by '"+key+"'")
		}
		p.checkAll(key, params[key], errs)
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

func (m *method) closed() bool {
	switch v := m.Parameters.Additional.(type) {
	case float64:
		return v == 0
	case nil:
		return false
	}
	return false
}

// property finds the schema of a parameter: its own, or that of an indexed
// one ("scsi[n]" for "scsi3").
func (m *method) property(key string) *prop {
	if p := m.Parameters.Properties[key]; p != nil && !strings.HasSuffix(key, "[n]") {
		return p
	}
	base := strings.TrimRight(key, "0123456789")
	p := m.indexed[base]
	if p == nil || base == key {
		return nil
	}
	i := key[len(base):]
	n, err := strconv.Atoi(i)
	if err != nil || strconv.Itoa(n) != i || n > highest(base) {
		return nil
	}
	return p
}

// highest is the last index that an indexed option has.
func highest(base string) int {
	switch base {
	case "ide":
		return 3
	case "sata":
		return 5
	case "scsi":
		return 30
	case "virtio", "hostpci":
		return 15
	case "net", "ipconfig":
		return 31
	case "serial":
		return 3
	case "parallel":
		return 2
	case "usb":
		return 13
	case "numa":
		return 7
	case "unused":
		return 255
	case "virtiofs":
		return 9
	}
	return 255
}

type errorMap map[string]string

func (e errorMap) add(key, text string) {
	if old, ok := e[key]; ok {
		text = old + `\n` + text
	}
	e[key] = text
}
