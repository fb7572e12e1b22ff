package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Names maps names to names, as bridges has them.
type Names map[string]string

// Classes maps the name of a class to its settings, as storage-classes has them.
type Classes map[string]map[string]string

// A table is a value with entries of its own. Each is one text: "name=value", or "name:key=value,key=value".
type table interface {
	parse(texts []string) error
	texts() []string
	node() *yaml.Node
}

func (t *Names) parse(texts []string) error {
	*t = Names{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" {
			return fmt.Errorf("expected %s, got %q", expected(t), text)
		}
		(*t)[strings.ToLower(name)] = value
	}
	return nil
}

func (t *Names) texts() []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(*t)) {
		out = append(out, k+"="+(*t)[k])
	}
	return out
}

func (t *Names) node() *yaml.Node { return flow(*t) }

func (t *Classes) parse(texts []string) error {
	*t = Classes{}
	for _, text := range texts {
		name, rest, ok := strings.Cut(text, ":")
		settings := map[string]string{}
		for part := range strings.SplitSeq(rest, ",") {
			k, v, has := strings.Cut(part, "=")
			ok = ok && has && k != "" && v != ""
			settings[k] = v
		}
		if !ok || name == "" {
			return fmt.Errorf("expected %s, got %q", expected(t), text)
		}
		(*t)[name] = settings
	}
	return nil
}

func (t *Classes) texts() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		var parts []string
		for _, k := range slices.Sorted(maps.Keys((*t)[name])) {
			parts = append(parts, k+"="+(*t)[name][k])
		}
		out = append(out, name+":"+strings.Join(parts, ","))
	}
	return out
}

func (t *Classes) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		n.Content = append(n.Content, word(name), flow((*t)[name]))
	}
	return n
}

func flow(m map[string]string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		n.Content = append(n.Content, word(k), word(m[k]))
	}
	return n
}

// tableTexts reads a table of the file. Errors within it know their line.
func tableTexts(n *yaml.Node, field table) ([]string, error) {
	entries, err := mapping(n)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, e := range entries {
		var text string
		switch field.(type) {
		case *Classes:
			text, err = classText(e)
		case *Lists:
			text, err = listText(e)
		default:
			text, err = e.name+"="+e.value.Value, plain(e.value)
		}
		if err != nil {
			return nil, &lineError{e.value.Line, fmt.Errorf("%s: %w", printable(e.name), err)}
		}
		texts = append(texts, text)
	}
	return texts, nil
}

func classText(e entry) (string, error) {
	settings, err := mapping(e.value)
	if err != nil {
		return "", err
	}
	var parts []string
	for _, s := range settings {
		if err := plain(s.value); err != nil {
			return "", fmt.Errorf("%s: %w", printable(s.name), err)
		}
		parts = append(parts, s.name+"="+s.value.Value)
	}
	return e.name + ":" + strings.Join(parts, ","), nil
}

// plain refuses values that cannot stand in a text.
func plain(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return fmt.Errorf("expected a value, got %s", describe(n))
	}
	if strings.ContainsAny(n.Value, ",=\n") {
		return errors.New("expected a value without comma, '=' and line feed")
	}
	return nil
}

// entry is one key of a mapping with its value.
type entry struct {
	name  string
	value *yaml.Node
}

// mapping reads the keys of a node in their order.
func mapping(n *yaml.Node) ([]entry, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("expected names with values, got %s", describe(n))
	}
	var entries []entry
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		switch {
		case name.Kind != yaml.ScalarNode || name.ShortTag() == "!!merge" || !tableName.MatchString(name.Value):
			return nil, &lineError{name.Line, fmt.Errorf("expected a name of letters, digits, '-', '_' and '.', got %s", describe(name))}
		case seen[name.Value]:
			return nil, &lineError{name.Line, fmt.Errorf("%s is given twice", printable(name.Value))}
		}
		seen[name.Value] = true
		entries = append(entries, entry{name.Value, value})
	}
	return entries, nil
}

// bridgeTable checks that every name stands for an interface, as the kernel takes its name.
func bridgeTable(t Names) error {
	for name, bridge := range t {
		if !interfacePattern.MatchString(bridge) {
			return fmt.Errorf("%s: expected the name of a bridge or of a VNet, got %q", name, bridge)
		}
	}
	return nil
}

// classTable checks what can be told of storage classes without knowing drives.
func classTable(t Classes) error {
	for name, settings := range t {
		if storage, ok := settings["storage"]; ok {
			if err := storageID(storage); err != nil {
				return fmt.Errorf("%s.storage: %w", name, err)
			}
		}
	}
	return nil
}
