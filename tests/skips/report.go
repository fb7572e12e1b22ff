package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`, as `go doc test2json` describes it,
// plus the build events of `go help buildjson`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// report turns the events of one run into text for people.
type report struct {
	out      io.Writer
	err      error // the first of writing to out
	packages map[string]*pkg
	skips    map[skip]int // how many tests, by reason
	mute     []string     // tests that were skipped without one
}

// pkg is what a package has said until it is over.
type pkg struct {
	output string   // not of any test
	order  []string // tests that are not over, and failed ones, as they came
	tests  map[string]string
}

// skip is a reason for not running a test.
type skip struct{ needs, enable string }

var reason = regexp.MustCompile(`skipped: (.+?); enable with: (.+)`)

func newReport(out io.Writer) *report {
	return &report{out: out, packages: map[string]*pkg{}, skips: map[skip]int{}}
}

// read prints the outcome of each package as it comes. Lines that are no events
// are printed as they are.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(bytes.TrimSpace(line)) == 0:
		case json.Unmarshal(line, &e) != nil:
			r.print(string(line))
		default:
			r.add(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from go test: %w", err)
		}
	}
}

func (r *report) add(e event) {
	p := r.packages[e.Package]
	if p == nil {
		p = &pkg{tests: map[string]string{}}
		r.packages[e.Package] = p
	}
	switch {
	case e.Action == "build-output":
		r.print(e.Output)
	case e.Test != "":
		r.addTest(p, e)
	case e.Action == "output":
		p.output += e.Output
	case e.Action == "fail":
		r.print(p.failed())
	case e.Action == "pass":
		r.print(strings.TrimPrefix(p.output, "PASS\n"))
	}
}

func (r *report) addTest(p *pkg, e event) {
	switch e.Action {
	case "output":
		if _, known := p.tests[e.Test]; !known {
			p.order = append(p.order, e.Test)
		}
		p.tests[e.Test] += e.Output
	case "skip":
		r.addSkip(e.Package+" "+e.Test, p.tests[e.Test])
		p.forget(e.Test)
	case "pass":
		p.forget(e.Test)
	}
}

func (r *report) addSkip(name, output string) {
	m := reason.FindStringSubmatch(output)
	if m == nil {
		r.mute = append(r.mute, name)
		return
	}
	r.skips[skip{needs: m[1], enable: m[2]}]++
}

func (p *pkg) forget(test string) {
	delete(p.tests, test)
	p.order = slices.DeleteFunc(p.order, func(t string) bool { return t == test })
}

// failed is all that the failed tests said, and those that were cut off when
// the process died.
func (p *pkg) failed() string {
	var out strings.Builder
	for _, t := range p.order {
		for line := range strings.Lines(p.tests[t]) {
			if !strings.HasPrefix(line, "=== ") {
				out.WriteString(line)
			}
		}
	}
	return out.String() + p.output
}

func (r *report) print(text string) {
	if r.err == nil {
		_, r.err = io.WriteString(r.out, text)
	}
}

// close prints what was skipped. Its error says that skipping was wrong, or
// that the report could not be written.
func (r *report) close(noSkip bool) error {
	count := 0
	for i, s := range slices.SortedFunc(maps.Keys(r.skips), compareSkips) {
		if i == 0 {
			r.print("\nSkipped on this machine:\n")
		}
		count += r.skips[s]
		r.print(fmt.Sprintf("  %s (%s)\n      enable with: %s\n", s.needs, tests(r.skips[s]), s.enable))
	}
	err := r.err
	if len(r.mute) > 0 {
		err = errors.Join(err, fmt.Errorf("skipped without saying what is needed: %s", strings.Join(r.mute, ", ")))
	}
	if noSkip && count > 0 {
		err = errors.Join(err, fmt.Errorf("%s skipped, and PVE_RIGAUD_NO_SKIP=1 allows none", tests(count)))
	}
	return err
}

func compareSkips(a, b skip) int {
	return strings.Compare(a.needs+a.enable, b.needs+b.enable)
}

func tests(n int) string {
	if n == 1 {
		return "1 test"
	}
	return fmt.Sprintf("%d tests", n)
}
