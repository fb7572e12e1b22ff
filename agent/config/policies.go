package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Policies are placement.policies. Each one's text is YAML, "name: {...}".
type Policies []Policy

func (p *Policies) parse(texts []string) error {
	*p = nil
	for _, text := range texts {
		n, err := document([]byte(text))
		if err == nil && n == nil {
			err = errors.New("empty")
		}
		if err != nil {
			return fmt.Errorf("expected %s: %w", expected(p), err)
		}
		read, errs := readPolicies(n)
		if len(errs) > 0 {
			return errs[0]
		}
		for _, policy := range read {
			if slices.ContainsFunc(*p, func(other Policy) bool { return other.Name == policy.Name }) {
				return fmt.Errorf("%s is given twice", policy.Name)
			}
			*p = append(*p, policy)
		}
	}
	return nil
}

func (p *Policies) texts() []string {
	var out []string
	for _, policy := range *p {
		raw, err := yaml.Marshal(pairs(0, policy.Name, policy.node()))
		if err != nil {
			panic("config: a policy has no text: " + err.Error()) // its node is made here
		}
		out = append(out, string(bytes.TrimSpace(raw)))
	}
	return out
}

func (p *Policies) node() *yaml.Node {
	n := pairs(yaml.FlowStyle)
	for _, policy := range *p {
		n.Content = append(n.Content, word(policy.Name), policy.node())
	}
	return n
}

// pairs is a mapping of names and nodes, which alternate. Nodes that are nil or empty are left out.
func pairs(style yaml.Style, content ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: style}
	for i := 0; i+1 < len(content); i += 2 {
		name, _ := content[i].(string)
		if value, _ := content[i+1].(*yaml.Node); value != nil {
			n.Content = append(n.Content, word(name), value)
		}
	}
	return n
}

func (p *Policy) node() *yaml.Node {
	m := pairs(yaml.FlowStyle, "names", some(p.Match.Names), "tags", some(p.Match.Tags), "pools", some(p.Match.Pools))
	if len(m.Content) == 0 {
		m = nil
	}
	return pairs(yaml.FlowStyle,
		"match", m, "node-selector", some(p.NodeSelector), "required", truth(p.Required),
		"affinity", terms(p.Affinity), "anti-affinity", terms(p.AntiAffinity),
		"max-vms-per-node", number(p.MaxVMsPerNode), "min-free-memory", bytesOf(p.MinFreeMemory),
		"spread", text(p.Spread), "scorer", text(p.Scorer))
}

func terms(list []Term) *yaml.Node {
	if len(list) == 0 {
		return nil
	}
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, t := range list {
		n.Content = append(n.Content, pairs(yaml.FlowStyle, "key", text(t.Key), "operator", text(t.Operator),
			"values", some(t.Values), "hard", truth(t.Hard), "zone", truth(t.Zone)))
	}
	return n
}

func some(list []string) *yaml.Node {
	if len(list) == 0 {
		return nil
	}
	return words(list)
}

func text(s string) *yaml.Node {
	if s == "" {
		return nil
	}
	return word(s)
}

func truth(b bool) *yaml.Node {
	if !b {
		return nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"}
}

func number(n int) *yaml.Node {
	if n == 0 {
		return nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(n)}
}

func bytesOf(n uint64) *yaml.Node {
	if n == 0 {
		return nil
	}
	return word((*size)(&n).text())
}

// lineError is an error within a value that has more than one line.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// policyReader reads policies and collects what is wrong with them.
type policyReader struct{ errs []error }

// readPolicies reads the value of placement.policies. Either it is right, or there are errors, each a *lineError.
func readPolicies(n *yaml.Node) (Policies, []error) {
	var r policyReader
	var out Policies
	for _, e := range r.mapping(n, "") {
		p := Policy{Name: e.name}
		r.policy(e.value, &p)
		out = append(out, p)
	}
	return out, r.errs
}

func (r *policyReader) fail(n *yaml.Node, where string, err error) {
	line := n.Line
	if within, ok := errors.AsType[*lineError](err); ok {
		line = within.line
	}
	if where != "" {
		err = fmt.Errorf("%s: %w", where, err)
	}
	r.errs = append(r.errs, &lineError{line, err})
}

// mapping reads names with values.
func (r *policyReader) mapping(n *yaml.Node, where string) []entry {
	entries, err := mapping(n)
	if err != nil {
		r.fail(n, where, err)
	}
	return entries
}

// fields reads a mapping whose keys are known.
func (r *policyReader) fields(n *yaml.Node, where string, known map[string]func(n *yaml.Node, where string)) {
	for _, e := range r.mapping(n, where) {
		read, ok := known[e.name]
		if ok {
			read(e.value, where+"."+e.name)
			continue
		}
		err := errors.New("unknown key")
		if near := nearest(e.name, slices.Sorted(maps.Keys(known))); near != "" {
			err = fmt.Errorf("unknown key, did you mean %s?", near)
		}
		r.fail(e.value, where+"."+printable(e.name), err)
	}
}

func (r *policyReader) policy(n *yaml.Node, p *Policy) {
	before := len(r.errs)
	name := printable(p.Name)
	r.fields(n, name, map[string]func(*yaml.Node, string){
		"match": func(n *yaml.Node, where string) {
			r.fields(n, where, map[string]func(*yaml.Node, string){
				"names": r.list(&p.Match.Names, pattern),
				"tags":  r.list(&p.Match.Tags, printing),
				"pools": r.list(&p.Match.Pools, printing),
			})
		},
		"node-selector":    r.list(&p.NodeSelector, nodeOrGroup),
		"required":         r.scalar(&p.Required, nil),
		"affinity":         r.terms(&p.Affinity),
		"anti-affinity":    r.terms(&p.AntiAffinity),
		"max-vms-per-node": r.scalar(&p.MaxVMsPerNode, of(between(0, 1_000_000))),
		"min-free-memory":  r.scalar((*size)(&p.MinFreeMemory), nil),
		"spread":           r.scalar(&p.Spread, of(oneOf("node", "zone"))),
		"scorer":           r.scalar(&p.Scorer, of(oneOf(scorers...))),
	})
	if p.Required && len(p.NodeSelector) == 0 && len(r.errs) == before {
		r.fail(n, name+".required", errors.New("there is no node-selector"))
	}
}

func (r *policyReader) terms(to *[]Term) func(*yaml.Node, string) {
	return func(n *yaml.Node, where string) {
		if n.Kind != yaml.SequenceNode {
			r.fail(n, where, fmt.Errorf("expected a list of {key, operator, values}, got %s", describe(n)))
			return
		}
		for i, item := range n.Content {
			var t Term
			r.term(item, fmt.Sprintf("%s[%d]", where, i+1), &t)
			*to = append(*to, t)
		}
	}
}

func (r *policyReader) term(n *yaml.Node, where string, t *Term) {
	before := len(r.errs)
	r.fields(n, where, map[string]func(*yaml.Node, string){
		"key":      r.scalar(&t.Key, of(printing)),
		"operator": r.scalar(&t.Operator, of(oneOf("In", "NotIn", "Exists", "DoesNotExist"))),
		"values":   r.list(&t.Values, printing),
		"hard":     r.scalar(&t.Hard, nil),
		"zone":     r.scalar(&t.Zone, nil),
	})
	if len(r.errs) > before {
		return
	}
	switch valued := t.Operator == "In" || t.Operator == "NotIn"; {
	case t.Key == "":
		r.fail(n, where, errors.New("key is missing"))
	case t.Operator == "":
		r.fail(n, where, errors.New("operator is missing"))
	case valued && len(t.Values) == 0:
		r.fail(n, where, fmt.Errorf("operator %s needs values", t.Operator))
	case !valued && len(t.Values) > 0:
		r.fail(n, where, fmt.Errorf("operator %s has no values", t.Operator))
	}
}

// scalar reads one value as the files have it.
func (r *policyReader) scalar(to any, check func(any) error) func(*yaml.Node, string) {
	return func(n *yaml.Node, where string) {
		err := scalar(n, to)
		if err == nil {
			err = assign(to, []string{n.Value})
		}
		if err == nil && check != nil {
			err = check(to)
		}
		if err != nil {
			r.fail(n, where, err)
		}
	}
}

func (r *policyReader) list(to *[]string, check func(string) error) func(*yaml.Node, string) {
	return func(n *yaml.Node, where string) {
		list, err := stringList(n)
		if err == nil {
			err = each(check)(list)
		}
		if err != nil {
			r.fail(n, where, err)
		}
		*to = list
	}
}

// printing is what can be shown to people as it is.
func printing(s string) error {
	if s == "" || strings.TrimSpace(s) != s || len(s) > 255 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("expected a word, got %q", printable(s))
	}
	return nil
}

func pattern(s string) error {
	if err := printing(s); err != nil {
		return err
	}
	if _, err := path.Match(s, ""); err != nil {
		return fmt.Errorf("expected a pattern with *, ? and [a-z], got %q", printable(s))
	}
	return nil
}
