package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A notation is a field that is written otherwise than Go writes its type. Each stands for a plain field of the Config,
// which has that type.
type notation interface {
	parse(text string) error
	text() string
	// expected names what may be written, in error messages, and tags are its types in YAML.
	expected() string
	tags() []string
}

// size is a number of bytes, written with a unit: 8GiB.
type size uint64

var units = []struct {
	name string
	size uint64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
}

// parse takes a number with or without a fraction and one of the units, with or without its B; zero needs none. Units
// in powers of ten are refused: nobody means them for memory.
func (s *size) parse(text string) error {
	if text == "0" {
		*s = 0
		return nil
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			number, ok = strings.CutSuffix(text, u.name[:2])
		}
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || n < 0 || !(n*float64(u.size) < 1<<60) { // not NaN either
			break
		}
		*s = size(math.Round(n * float64(u.size)))
		return nil
	}
	return fmt.Errorf("expected %s, got %q", s.expected(), printable(text))
}

// text is the value in the largest unit without a fraction.
func (s *size) text() string {
	if *s == 0 {
		return "0"
	}
	for _, u := range units {
		if uint64(*s)%u.size == 0 {
			return strconv.FormatUint(uint64(*s)/u.size, 10) + u.name
		}
	}
	return strconv.FormatFloat(float64(*s)/(1<<10), 'f', -1, 64) + "KiB"
}

func (*size) expected() string { return "a size such as 8GiB or 512MiB" }

// tags has numbers for the sake of zero; others are refused with the hint that a unit is missing.
func (*size) tags() []string { return []string{"!!str", "!!int"} }

// ratio is a factor: 1.5.
type ratio float64

func (r *ratio) parse(text string) error {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return fmt.Errorf("expected %s, got %q", r.expected(), printable(text))
	}
	*r = ratio(n)
	return nil
}

func (r *ratio) text() string {
	text := strconv.FormatFloat(float64(*r), 'f', -1, 64)
	if !strings.ContainsAny(text, ".NI") { // NaN and Inf stay as they are, for the message that refuses them
		text += ".0"
	}
	return text
}

func (*ratio) expected() string { return "a number such as 1.5" }
func (*ratio) tags() []string   { return []string{"!!float", "!!int"} }

func ratioBetween(lo, hi ratio) func(ratio) error {
	return func(r ratio) error {
		if !(r >= lo && r <= hi) { // not NaN either
			return fmt.Errorf("expected %s to %s, got %s", lo.text(), hi.text(), r.text())
		}
		return nil
	}
}

// replicas is a number, or AllNodes.
type replicas int

// AllNodes as a number of replicas means one on each node of the cluster.
const AllNodes = -1

const maxReplicas = 64

func (r *replicas) parse(text string) error {
	if text == "all" {
		*r = AllNodes
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxReplicas {
		return fmt.Errorf("expected %s, got %q", r.expected(), printable(text))
	}
	*r = replicas(n)
	return nil
}

func (r *replicas) text() string {
	if *r == AllNodes {
		return "all"
	}
	return strconv.Itoa(int(*r))
}

func (*replicas) expected() string { return fmt.Sprintf("1 to %d, or all", maxReplicas) }
func (*replicas) tags() []string   { return []string{"!!int", "!!str"} }

// selector says whether node-selector must be followed.
type selector bool

func (s *selector) parse(text string) error {
	if text != "prefer" && text != "required" {
		return fmt.Errorf("expected %s, got %q", s.expected(), printable(text))
	}
	*s = text == "required"
	return nil
}

func (s *selector) text() string {
	if *s {
		return "required"
	}
	return "prefer"
}

func (*selector) expected() string { return "prefer or required" }
func (*selector) tags() []string   { return []string{"!!str"} }

// tagOf is the type in YAML of a text that a notation has made.
func tagOf(n notation, text string) string {
	probe := yaml.Node{Kind: yaml.ScalarNode, Value: text}
	if tag := probe.ShortTag(); slices.Contains(n.tags(), tag) {
		return tag
	}
	return n.tags()[0]
}
