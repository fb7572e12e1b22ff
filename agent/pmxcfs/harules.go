package pmxcfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The kinds of rules.
const (
	ruleNodes    = "node-affinity"
	ruleTogether = "positive" // of a resource-affinity
	ruleApart    = "negative" // of a resource-affinity
)

// rule is one rule that is switched on, or a group with the guests in it.
type rule struct {
	kind    string
	name    string // in words
	members []int  // sorted, each once
	nodes   map[string]int
	strict  bool
}

var (
	configID     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]+$`)                                   // pve-configid
	nodePriority = regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?::([0-9]+))?$`) // pve-ha-node
	guestSID     = regexp.MustCompile(`^(?:vm|ct):([1-9][0-9]{2,8})$`)
	anySID       = regexp.MustCompile(`^[a-z]+:\S+$`) // pve-ha-resource-id
)

// parseRules reads the rules of rules.cfg that are switched on.
func parseRules(raw []byte) (out []*rule, problems []error) {
	sections, problems := parseSections(haRules, raw)
	for _, s := range sections {
		if _, off := s.options["disable"]; off { // whatever its value is: PVE asks only whether it is there
			continue
		}
		r, err := s.rule()
		if err != nil {
			problems = append(problems, &FormatError{Path: haRules, Reason: fmt.Sprintf("line %d: %.60s %.60s: %v", s.line, s.kind, s.id, err)})
			continue
		}
		out = append(out, r)
	}
	return out, problems
}

func (s *section) rule() (*rule, error) {
	r := &rule{kind: s.kind, name: fmt.Sprintf("HA rule %q", s.id)}
	if !configID.MatchString(s.id) {
		return nil, errors.New("not a valid name")
	}
	switch s.kind {
	case ruleNodes:
		var err error
		if r.nodes, err = parseNodes(s.options["nodes"]); err != nil {
			return nil, err
		}
		r.strict = boolean(s.options["strict"])
	case "resource-affinity":
		if r.kind = s.options["affinity"]; r.kind != ruleTogether && r.kind != ruleApart {
			return nil, fmt.Errorf("affinity is %.60q, neither positive nor negative", r.kind)
		}
	default:
		return nil, errors.New("a type of rule that is not known")
	}
	var err error
	r.members, err = parseMembers(s.options["resources"])
	return r, err
}

// parseNodes reads "node1:2,node2". One that is wrong spoils the whole list, as in PVE.
func parseNodes(list string) (map[string]int, error) {
	out := make(map[string]int)
	for _, text := range fields(list) {
		m := nodePriority.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("%.60q is no node", text)
		}
		out[m[1]], _ = strconv.Atoi(m[2]) // none: 0
	}
	if len(out) == 0 {
		return nil, errors.New("no nodes")
	}
	return out, nil
}

// parseMembers reads "vm:100,ct:101".
func parseMembers(list string) ([]int, error) {
	var out []int
	for _, text := range fields(list) {
		if !anySID.MatchString(text) {
			return nil, fmt.Errorf("%.60q is no resource", text)
		}
		if m := guestSID.FindStringSubmatch(text); m != nil {
			vmid, _ := strconv.Atoi(m[1]) // the pattern has bounds
			out = append(out, vmid)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no resources")
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// parseResources reads resources.cfg.
func parseResources(raw []byte) (map[int]Resource, []error) {
	sections, problems := parseSections(haResources, raw)
	out := make(map[int]Resource)
	for _, s := range sections {
		m := guestSID.FindStringSubmatch(s.kind + ":" + s.id)
		if m == nil {
			problems = append(problems, &FormatError{Path: haResources, Reason: fmt.Sprintf("line %d: %.60s: %.60s is no guest", s.line, s.kind, s.id)})
			continue
		}
		vmid, _ := strconv.Atoi(m[1]) // the pattern has bounds
		r := Resource{State: "started", Group: s.options["group"]}
		if state := s.options["state"]; state != "" {
			r.State = state
		}
		out[vmid] = r
	}
	return out, problems
}

// parseGroups makes rules of the groups that guests are in, as PVE 9 does for good.
func parseGroups(raw []byte, resources map[int]Resource) (out []*rule, problems []error) {
	members := make(map[string][]int)
	for vmid, r := range resources {
		if r.Group != "" {
			members[r.Group] = append(members[r.Group], vmid)
		}
	}
	sections, problems := parseSections(haGroups, raw)
	for _, s := range sections {
		list, err := parseNodes(s.options["nodes"])
		if s.kind != "group" {
			err = errors.New("not a group")
		}
		if err != nil {
			problems = append(problems, &FormatError{Path: haGroups, Reason: fmt.Sprintf("line %d: %.60s %.60s: %v", s.line, s.kind, s.id, err)})
			continue
		}
		if in := members[s.id]; len(in) > 0 {
			slices.Sort(in)
			out = append(out, &rule{
				kind: ruleNodes, name: fmt.Sprintf("HA group %q", s.id), members: in, nodes: list, strict: boolean(s.options["restricted"]),
			})
		}
	}
	return out, problems
}

// managerStatus is what HA's manager has written down last.
type managerStatus struct {
	NodeStatus  map[string]string          `json:"node_status"`
	NodeRequest map[string]json.RawMessage `json:"node_request"` // {"maintenance": 1}, until it is done with
	Disarm      *struct {
		Mode string `json:"mode"` // freeze or ignore
	} `json:"disarm"`
}

func parseManagerStatus(raw []byte) (managerStatus, []error) {
	var s managerStatus
	if strings.Trim(string(raw), whitespace) == "" {
		return s, nil // no manager has been at work yet
	}
	if err := decode(haStatus, raw, &s); err != nil {
		return managerStatus{}, []error{err}
	}
	return s, nil
}

// requested reports whether a node was asked to go into maintenance. Perl writes a number or a text.
func (s managerStatus) requested(node string) bool {
	var request struct {
		Maintenance json.RawMessage `json:"maintenance"`
	}
	if raw, ok := s.NodeRequest[node]; !ok || json.Unmarshal(raw, &request) != nil {
		return false
	}
	return boolean(strings.Trim(string(request.Maintenance), `"`))
}

// ignoring reports whether HA was told to keep its hands off everything.
func (s managerStatus) ignoring() bool { return s.Disarm != nil && s.Disarm.Mode == "ignore" }
