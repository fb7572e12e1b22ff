package pmxcfs

import (
	"maps"
	"slices"
)

// The files of PVE's HA, below the tree.
const (
	haResources = "ha/resources.cfg"
	haGroups    = "ha/groups.cfg" // PVE 7 and 8; of 9 until it has made rules of them
	haRules     = "ha/rules.cfg"  // from PVE 9 on
	haStatus    = "ha/manager_status"
)

// HAFiles are the contents of the files of PVE's HA; nil is an empty or missing file.
type HAFiles struct {
	Resources, Groups, Rules, ManagerStatus []byte
}

// HA is what PVE's high availability is told to do, and how it sees the nodes. What it is told of containers counts as
// well, because VMs may have to be near them. A nil HA is that of a cluster without any. It is shared and never changes.
type HA struct {
	// Problems are lines and rules that have no effect, in words: PVE passes over them as well.
	Problems []string

	resources map[int]Resource
	nodes     map[int]affinity
	together  map[int][]Tie
	apart     map[int][]Tie
	status    managerStatus
}

// Resource is a guest that HA is told to care for.
type Resource struct {
	State string // started (or enabled), stopped, disabled, ignored
	Group string // PVE 7 and 8
}

// affinity says where a guest is to be.
type affinity struct {
	nodes  map[string]int
	strict bool
	rule   string
}

// Tie is another guest that a rule ties to the one in question.
type Tie struct {
	VMID int
	Rule string // in words: `HA rule "db-apart"`
}

// Managed reports whether HA starts, stops and moves the guest: then a request to PVE to do so is only handed on to HA.
// One whose state is "ignored" is not managed.
func (h *HA) Managed(vmid int) bool {
	r, ok := h.Resource(vmid)
	return ok && r.State != "ignored" && !h.status.ignoring()
}

// Resource is what HA is told of a guest.
func (h *HA) Resource(vmid int) (Resource, bool) {
	if h == nil {
		return Resource{}, false
	}
	r, ok := h.resources[vmid]
	return r, ok
}

// Allowed returns the nodes that a rule or a group names for a guest, with their priorities (the higher the better; 0 is
// the default), and the rule in words. With strict it may be on no other node. It is false if there is no such rule.
// The map must not be changed.
func (h *HA) Allowed(vmid int) (nodes map[string]int, strict bool, rule string, ok bool) {
	if h == nil {
		return nil, false, "", false
	}
	a, ok := h.nodes[vmid]
	return a.nodes, a.strict, a.rule, ok
}

// Apart are the guests that must not be on the node of a guest, by VMID.
func (h *HA) Apart(vmid int) []Tie {
	if h == nil {
		return nil
	}
	return h.apart[vmid]
}

// Together are the guests that must be on the node of a guest, by VMID.
func (h *HA) Together(vmid int) []Tie {
	if h == nil {
		return nil
	}
	return h.together[vmid]
}

// Maintenance reports whether a node is in HA's maintenance mode, or was asked to be: HA moves its guests away.
func (h *HA) Maintenance(node string) bool {
	return h != nil && (h.status.NodeStatus[node] == "maintenance" || h.status.requested(node))
}

// NodeState is how HA's manager sees a node: online, maintenance, unknown, fence or gone; "" if it does not know it.
func (h *HA) NodeState(node string) string {
	if h == nil {
		return ""
	}
	return h.status.NodeStatus[node]
}

// ParseHA reads what HA is told. What cannot be read is in Problems and does not hide the rest; a rule that PVE drops,
// because it contradicts another one, has no effect here either.
func ParseHA(files HAFiles) *HA {
	status, ofStatus := parseManagerStatus(files.ManagerStatus)
	resources, ofResources := parseResources(files.Resources)
	rules, ofRules := parseRules(files.Rules)
	groups, ofGroups := parseGroups(files.Groups, resources)
	rules, unfit := feasible(slices.Concat(rules, groups), len(status.NodeStatus))
	h := &HA{resources: resources, status: status}
	for _, err := range slices.Concat(ofStatus, ofResources, ofRules, ofGroups, unfit) {
		h.Problems = append(h.Problems, err.Error())
	}
	h.apply(rules)
	return h
}

// apply works out what the rules mean for each guest.
func (h *HA) apply(rules []*rule) {
	groups := connected(rules)
	together, apart := newTies(), newTies()
	for _, g := range groups {
		for _, a := range g.members {
			for _, b := range g.members {
				together.add(a, b, g.name)
			}
		}
	}
	for _, r := range rules {
		if r.kind != ruleApart {
			continue
		}
		// What has to be near one of two that are kept apart is kept apart from the other one.
		for _, a := range r.members {
			for _, b := range r.members {
				if a != b {
					apart.addAll(groups.of(a), groups.of(b), r.name)
				}
			}
		}
	}
	h.together, h.apart, h.nodes = together.sorted(), apart.sorted(), make(map[int]affinity)
	for _, r := range rules {
		if r.kind != ruleNodes {
			continue
		}
		for _, m := range r.members {
			for _, vmid := range groups.of(m) {
				h.nodes[vmid] = affinity{nodes: r.nodes, strict: r.strict, rule: r.name}
			}
		}
	}
}

// ties collects who is tied to whom; of several rules for one pair the first counts.
type ties map[int]map[int]string

func newTies() ties { return make(ties) }

func (t ties) add(a, b int, rule string) {
	if a == b {
		return
	}
	if t[a] == nil {
		t[a] = make(map[int]string)
	}
	if _, known := t[a][b]; !known {
		t[a][b] = rule
	}
}

func (t ties) addAll(as, bs []int, rule string) {
	for _, a := range as {
		for _, b := range bs {
			t.add(a, b, rule)
		}
	}
}

func (t ties) sorted() map[int][]Tie {
	out := make(map[int][]Tie, len(t))
	for a, others := range t {
		for _, b := range slices.Sorted(maps.Keys(others)) {
			out[a] = append(out[a], Tie{VMID: b, Rule: others[b]})
		}
	}
	return out
}
