package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// defaultPolicy is the name of the policy for VMs that no other one matches.
const defaultPolicy = "default"

// question is one want under the settings that are in force for it.
type question struct {
	want       *Want
	asVM       VM // the want, to be selected
	settings   *Settings
	now        time.Time
	nodes      []Node  // of the cluster; nil: only one is looked at
	policy     *Policy // nil: none
	unknown    string  // why there is no such policy as the want names, in words
	overcommit float64
	scorer     string
	warnings   []string
}

func newQuestion(w *Want, s *Settings, now time.Time) question {
	q := question{want: w, asVM: VM{Name: w.Name, Pool: w.Pool, Tags: w.Tags}, settings: s, now: now, overcommit: 1, scorer: s.Scorer}
	if s.MemoryOvercommit > 0 {
		q.overcommit = s.MemoryOvercommit
	}
	q.choosePolicy()
	if q.policy != nil {
		q.scorer = cmp.Or(q.policy.Scorer, q.scorer)
	}
	if _, ok := scorers[q.scorer]; !ok {
		if q.scorer != "" {
			q.warn("the scorer %q is not known; %s is used", q.scorer, defaultScorer)
		}
		q.scorer = defaultScorer
	}
	return q
}

func (q *question) warn(format string, args ...any) {
	q.warnings = append(q.warnings, fmt.Sprintf(format, args...))
}

// choosePolicy takes the policy that is named, else the first that matches,
// else the default one.
func (q *question) choosePolicy() {
	policies := q.settings.Policies
	if q.want.Policy != "" {
		if q.policy = find(policies, q.want.Policy); q.policy == nil {
			q.unknown = fmt.Sprintf("placement policy %q is not in the configuration", q.want.Policy)
			if len(policies) > 0 {
				q.unknown += " (there is " + quoted(policies) + ")"
			}
		}
		return
	}
	var also []string
	for i := range policies {
		p := &policies[i]
		if p.Name == defaultPolicy || !p.Match.any() {
			continue
		}
		if s := selectMatch(&p.Match); !s.matches(&q.asVM) {
			continue
		}
		if q.policy == nil {
			q.policy = p
			continue
		}
		also = append(also, fmt.Sprintf("%q", p.Name))
	}
	if q.policy == nil {
		q.policy = find(policies, defaultPolicy)
	}
	if len(also) > 0 {
		q.warn("policy %s matches too; policy %q comes first", strings.Join(also, ", "), q.policy.Name)
	}
}

func find(policies []Policy, name string) *Policy {
	if i := slices.IndexFunc(policies, func(p Policy) bool { return p.Name == name }); i >= 0 {
		return &policies[i]
	}
	return nil
}

func quoted(policies []Policy) string {
	names := make([]string, 0, len(policies))
	for _, p := range policies {
		names = append(names, fmt.Sprintf("%q", p.Name))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (m *Match) any() bool { return len(m.Names)+len(m.Tags)+len(m.Pools) > 0 }

// names says whether a list of nodes and groups has a node in it.
func (q *question) names(list []string, node string) bool {
	for _, name := range list {
		if name == node || slices.Contains(q.settings.Groups[name], node) {
			return true
		}
	}
	return false
}

// warnOfNames tells of names of nodes and groups that are none.
func (q *question) warnOfNames(what string, list []string) {
	for _, name := range list {
		_, group := q.settings.Groups[name]
		if !group && !slices.ContainsFunc(q.nodes, func(n Node) bool { return n.Name == name }) {
			q.warn("%s names %s, which is neither a node nor a group of nodes", what, name)
		}
	}
}
