package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// maxFile is far more than any configuration needs; pmxcfs has the same limit.
const maxFile = 1 << 20

// A file is one YAML file and the settings in it.
type file struct {
	path     string
	settings []setting
	errs     []error
}

// parseFile reads data, which came from path, strictly. What is wrong is
// collected, so that one start of the agent shows all of it.
func parseFile(path string, data []byte) *file {
	f := &file{path: path}
	root, err := document(data)
	if err != nil {
		f.errs = append(f.errs, &Error{Source: path, Err: err})
		return f
	}
	if root != nil {
		f.section("", root)
	}
	return f
}

// document gives the only document of data, or nil if there is none.
func document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // an empty file has no settings
	} else if err != nil {
		return nil, syntax(err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document (a line with ---)")
	}
	return doc.Content[0], nil
}

// syntax keeps the line and the reason of the YAML library, but not the names
// it quotes: a password that begins with "*" is an unknown anchor to it.
func syntax(err error) error {
	if strings.Contains(err.Error(), "anchor") {
		return errors.New("not valid YAML: a value that begins with * or & needs quotes")
	}
	return fmt.Errorf("not valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// section reads the keys of one mapping; prefix is its name, "" for the file.
func (f *file) section(prefix string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // all keys of the section are commented out
	}
	if n.Kind != yaml.MappingNode {
		f.fail(n, prefix, fmt.Errorf("expected keys with values, got %s", describe(n)))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		full := name.Value
		if prefix != "" {
			full = prefix + "." + name.Value
		}
		if line, again := seen[full]; again {
			f.fail(name, full, fmt.Errorf("given twice, first in line %d", line))
			continue
		}
		seen[full] = name.Line
		f.entry(full, name, value)
	}
}

// entry reads one key of a mapping.
func (f *file) entry(full string, name, value *yaml.Node) {
	k := keyByName(full)
	switch {
	case name.Kind != yaml.ScalarNode || name.ShortTag() == "!!merge":
		f.fail(name, "", fmt.Errorf("expected a key, got %s", describe(name)))
	case k != nil:
		f.value(k, value)
	case isSection(full):
		f.section(full, value)
	default:
		f.fail(name, printable(full), unknownKey(full))
	}
}

// value reads the value of a known key.
func (f *file) value(k *key, n *yaml.Node) {
	s := setting{key: k, source: fmt.Sprintf("%s:%d", f.path, n.Line)}
	field := k.field(new(Config))
	var err error
	switch f := field.(type) {
	case *[]string:
		s.texts, err = stringList(n)
	case *Policies:
		read, errs := readPolicies(n)
		s.texts, err = read.texts(), errors.Join(errs...)
	case table:
		s.texts, err = tableTexts(n, f)
	default:
		s.texts = []string{n.Value}
		err = scalar(n, field)
	}
	if err != nil {
		f.fail(n, k.name, err)
		return
	}
	f.settings = append(f.settings, s)
}

// fail reports what is wrong with a value: each error of a joined one by itself, where it says that it stands.
func (f *file) fail(n *yaml.Node, name string, err error) {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range all.Unwrap() {
			f.fail(n, name, err)
		}
		return
	}
	line := n.Line
	if within, ok := errors.AsType[*lineError](err); ok {
		line = within.line
	}
	f.errs = append(f.errs, &Error{Source: fmt.Sprintf("%s:%d", f.path, line), Key: name, Err: err})
}

// scalar checks that n has the YAML type of field. The value is not printed:
// it may be a secret under the wrong key.
func scalar(n *yaml.Node, field any) error {
	want := []string{"!!str"}
	switch f := field.(type) {
	case *bool:
		want = []string{"!!bool"}
	case *int:
		want = []string{"!!int"}
	case notation:
		want = f.tags()
	}
	if n.Kind == yaml.ScalarNode && slices.Contains(want, n.ShortTag()) {
		return nil
	}
	hint := ""
	if _, ok := field.(*string); ok && n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		hint = " (put it in quotes)"
	}
	return fmt.Errorf("expected %s, got %s%s", expected(field), describe(n), hint)
}

func stringList(n *yaml.Node) ([]string, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("expected a list of strings, got %s", describe(n))
	}
	var list []string
	for i, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.ShortTag() != "!!str" {
			return nil, fmt.Errorf("entry %d: expected a string, got %s", i+1, describe(item))
		}
		list = append(list, item.Value)
	}
	return list, nil
}

// describe names the type of a node.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	names := map[string]string{
		"!!str": "a string", "!!int": "a number", "!!float": "a number", "!!bool": "true or false",
		"!!null": "nothing", "!!timestamp": "a date", "!!binary": "binary data", "!!merge": "a merge key",
	}
	if name, ok := names[n.ShortTag()]; ok {
		return name
	}
	return "an unknown type"
}

// readFile reads a small regular file. O_NONBLOCK keeps a FIFO from blocking us.
func readFile(path string) ([]byte, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, reason(err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, nil, reason(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, reason(err)
	}
	if len(data) > maxFile {
		return nil, nil, errors.New("larger than 1 MiB")
	}
	return data, info, nil
}

// reason drops the path from an error: the caller names it already.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return err
}
