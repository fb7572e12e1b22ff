package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Step is one line of a story.
type Step struct {
	Line   string   // as written, without what only says what to expect
	Verb   string   // its first word
	Args   []string // the words after it, without the clauses below
	Via    []string // nodes: "via pve1,pve2"
	On     string   // node: "on pve2"
	Data   bool     // "with user-data"
	As     string   // "in background as c1"
	Retry  time.Duration
	Within time.Duration
	Limit  time.Duration // "deadline 10s", of each call; 0: the manager's own
	Expect string        // "ok", "error CODE", "exists", "gone"; "" for whatever comes
}

// Parse reads a story. Lines that are empty or begin with # are no steps.
func Parse(text string) ([]Step, error) {
	var steps []Step
	var errs []error
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(" "+line, " #")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		s, err := parseStep(line)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %q: %w", number, line, err))
		}
		steps = append(steps, s)
	}
	return steps, errors.Join(errs...)
}

func parseStep(line string) (Step, error) {
	line, expect, expects := strings.Cut(line, " expect ")
	words := strings.Fields(line)
	s := Step{Line: strings.Join(words, " "), Verb: words[0], Expect: strings.TrimSpace(expect)}
	if expects && s.Expect != "ok" && s.Expect != "exists" && s.Expect != "gone" && !strings.HasPrefix(s.Expect, "error ") {
		return s, fmt.Errorf("expect %q: want ok, exists, gone or error CODE", s.Expect)
	}
	for i := 1; i < len(words); i++ {
		n, err := s.clause(words[i:])
		if err != nil {
			return s, err
		}
		if n == 0 {
			s.Args = append(s.Args, words[i])
			continue
		}
		i += n - 1
	}
	return s, s.check()
}

// clause reads a clause at the beginning of words, and returns of how many it is; 0: there is none.
func (s *Step) clause(words []string) (int, error) {
	value := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	if s.Verb == "wait" && words[0] == "within" {
		return s.time(&s.Within, value(1))
	}
	if !s.ours() {
		return 0, nil
	}
	switch words[0] {
	case "via":
		s.Via = strings.Split(value(1), ",")
		return 2, nil
	case "on":
		if !slices.Contains(placing, s.Verb) {
			return 0, nil
		}
		s.On = value(1)
		return 2, nil
	case "with":
		return s.with(value(1))
	case "retry":
		return s.time(&s.Retry, value(1))
	case "deadline":
		return s.time(&s.Limit, value(1))
	case "in":
		if value(1) != "background" || value(2) != "as" || value(3) == "" {
			return 0, errors.New("in what? want: in background as JOB")
		}
		s.As = value(3)
		return 4, nil
	}
	return 0, nil
}

// with reads what comes with a request.
func (s *Step) with(what string) (int, error) {
	if s.Data = what == "user-data" && slices.Contains(placing, s.Verb); !s.Data {
		return 0, errors.New("with what? want: with user-data")
	}
	return 2, nil
}

// time reads the time of a clause of two words.
func (*Step) time(into *time.Duration, text string) (int, error) {
	d, err := time.ParseDuration(text)
	*into = d
	return 2, err
}

// verbs are ours, with the least and the most arguments; every other is the simulated cluster's.
var verbs = map[string][2]int{
	"create": {1, 1}, "delete": {1, 1}, "describe": {1, 1}, "off": {1, 1}, "list": {0, 0}, "duplicate": {2, 2},
	"race": {1, 1}, "burst": {2, 2}, "snippets": {1, 1}, "await": {1, 1}, "task": {1, 1}, "kill": {2, 5}, "stop": {2, 2}, "start": {2, 6},
	"clock": {2, 2}, "gossip": {3, 3}, "lose": {3, 3}, "rotate": {2, 2}, "wait": {1, 4}, "settle": {0, 0}, "check": {0, 0},
}

// throughNodes are the verbs that need "via".
var throughNodes = []string{"create", "delete", "describe", "off", "list", "duplicate", "race", "burst", "task"}

// placing are the verbs that may say from which node's template, and with what.
var placing = []string{"create", "duplicate", "race", "burst"}

func (s *Step) ours() bool { _, ok := verbs[s.Verb]; return ok }

func (s *Step) check() error {
	limits, ours := verbs[s.Verb]
	switch {
	case !ours:
		return nil
	case len(s.Args) < limits[0] || len(s.Args) > limits[1]:
		return fmt.Errorf("%s takes %d to %d arguments, not %q", s.Verb, limits[0], limits[1], s.Args)
	case slices.Contains(throughNodes, s.Verb) != (len(s.Via) > 0):
		return fmt.Errorf("%s and via do not fit", s.Verb)
	case slices.Contains(s.Via, ""):
		return errors.New("via what?")
	case slices.Contains([]string{"kill", "stop", "start"}, s.Verb) && s.Args[0] != "agent":
		return fmt.Errorf("%s what? want: %s agent NODE", s.Verb, s.Verb)
	case s.Verb == "burst":
		_, err := strconv.Atoi(s.Args[0])
		return err
	}
	return nil
}
