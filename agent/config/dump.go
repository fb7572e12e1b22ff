package config

import (
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Dump writes the effective settings as a configuration file, each with its
// origin as a comment. It shows the paths of secrets, never secrets.
func (c Config) Dump(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	sections := map[string]*yaml.Node{"": root}
	for _, k := range keys {
		section, name := "", k.name
		if before, after, ok := strings.Cut(k.name, "."); ok {
			section, name = before, after
		}
		if sections[section] == nil {
			sections[section] = &yaml.Node{Kind: yaml.MappingNode}
			root.Content = append(root.Content, word(section), sections[section])
		}
		value := valueNode(k.field(&c))
		value.LineComment = c.origin(k)
		sections[section].Content = append(sections[section].Content, word(name), value)
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return enc.Close()
}

// origin is the comment of one key.
func (c *Config) origin(k *key) string {
	source := c.Sources[k.name]
	switch {
	case k.name == "pve.ca-bundle" && c.PVE.CABundlePEM != "":
		return source + ", PEM text"
	case (k.name == "pve.token-secret-file" || k.name == "pve.password-file") && strings.HasPrefix(source, "env "):
		return source + ", " + redacted
	}
	return source
}

func word(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// valueNode gives the YAML of a field with the tag that the parser wants.
func valueNode(field any) *yaml.Node {
	values := texts(field)
	switch f := field.(type) {
	case *[]string:
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, v := range values {
			list.Content = append(list.Content, word(v))
		}
		return list
	case table:
		return f.node()
	case notation:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tagOf(f, values[0]), Value: values[0]}
	case *bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: values[0]}
	case *int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: values[0]}
	}
	return word(values[0])
}
