package pmxcfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// show tells what HA means for some guests, a line each; guests that it says nothing of are left out.
func show(h *HA, vmids ...int) string {
	var b strings.Builder
	for _, vmid := range vmids {
		var parts []string
		if h.Managed(vmid) {
			parts = append(parts, "managed")
		}
		if nodes, strict, rule, ok := h.Allowed(vmid); ok {
			text := "prefers"
			if strict {
				text = "only"
			}
			for _, node := range slices.Sorted(maps.Keys(nodes)) {
				text += fmt.Sprintf(" %s:%d", node, nodes[node])
			}
			parts = append(parts, text+" by "+rule)
		}
		for _, tie := range h.Together(vmid) {
			parts = append(parts, fmt.Sprintf("with %d by %s", tie.VMID, tie.Rule))
		}
		for _, tie := range h.Apart(vmid) {
			parts = append(parts, fmt.Sprintf("not with %d by %s", tie.VMID, tie.Rule))
		}
		if len(parts) > 0 {
			fmt.Fprintf(&b, "%d: %s\n", vmid, strings.Join(parts, "; "))
		}
	}
	for _, text := range h.Problems {
		fmt.Fprintln(&b, text)
	}
	return b.String()
}

func haFiles(t testing.TB) HAFiles {
	return HAFiles{
		Resources: testdata(t, "ha/resources.cfg"), Groups: testdata(t, "ha/groups.cfg"), Rules: testdata(t, "ha/rules.cfg"),
		ManagerStatus: testdata(t, "ha/manager_status"),
	}
}

func TestHA(t *testing.T) {
	t.Parallel()
	h := ParseHA(haFiles(t))
	const want = `100: managed; only pve1:2 pve2:2 by HA rule "keep-on-fast"; with 101 by HA rule "web-near-cache"; not with 102 by HA rule "dbs-apart"
101: managed; only pve1:2 pve2:2 by HA rule "keep-on-fast"; with 100 by HA rule "web-near-cache"; not with 102 by HA rule "dbs-apart"
102: managed; not with 100 by HA rule "dbs-apart"; not with 101 by HA rule "dbs-apart"
104: managed; prefers pve1:0 pve2:1 by HA group "fast"
200: managed; only pve1:2 pve2:2 by HA rule "keep-on-fast"
`
	if diff := cmp.Diff(want, show(h, 99, 100, 101, 102, 103, 104, 200)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r, ok := h.Resource(104); !ok || r != (Resource{State: "enabled", Group: "fast"}) {
		t.Errorf("resource %+v, %v", r, ok)
	}
	if r, ok := h.Resource(102); !ok || r.State != "started" {
		t.Errorf("without a state: %+v, %v", r, ok)
	}
	var nodes string
	for _, node := range []string{"pve1", "pve2", "pve3", "pve4", "pve5"} {
		nodes += fmt.Sprintf("%s %v %q\n", node, h.Maintenance(node), h.NodeState(node))
	}
	const wantNodes = "pve1 false \"online\"\npve2 true \"online\"\npve3 true \"maintenance\"\npve4 false \"gone\"\npve5 false \"\"\n"
	if diff := cmp.Diff(wantNodes, nodes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNoHA(t *testing.T) {
	t.Parallel()
	for _, h := range []*HA{nil, ParseHA(HAFiles{})} {
		_, known := h.Resource(100)
		if _, _, _, ok := h.Allowed(100); ok || known || h.Managed(100) || h.Apart(100) != nil || h.Together(100) != nil ||
			h.Maintenance("pve1") || h.NodeState("pve1") != "" {
			t.Errorf("%+v says something", h)
		}
	}
}

// TestHARules: what rules mean together, and which of them PVE drops.
func TestHARules(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ rules, want string }{
		"not strict, without priorities": {
			"node-affinity: aa\n\tnodes n2,n1:0\n\tresources vm:100\n\tstrict 0\n",
			`100: prefers n1:0 n2:0 by HA rule "aa"`,
		},
		"in other words": {
			"Node-Affinity:   aa  \n# a comment\n        strict\n\t  nodes   n1;n2 n3:7\n\tresources vm:100 vm:101\n",
			"100: only n1:0 n2:0 n3:7 by HA rule \"aa\"\n101: only n1:0 n2:0 n3:7 by HA rule \"aa\"",
		},
		"switched off, whatever it says": {
			"node-affinity: aa\n\tnodes n1\n\tresources vm:100\n\tdisable\n\nnode-affinity: bb\n\tnodes n1\n\tresources vm:100\n\tdisable 0\n", "",
		},
		"unknown type": {
			"moon-phase: aa\n\tresources vm:100\n\nresource-affinity: bb\n\tresources vm:100,vm:101\n\taffinity negative\n",
			"100: not with 101 by HA rule \"bb\"\n101: not with 100 by HA rule \"bb\"\n" +
				"ha/rules.cfg: not a valid file: line 1: moon-phase aa: a type of rule that is not known",
		},
		"broken lines": {
			"what is this\n\tnodes n1\nnode-affinity: aa\n\tnodes n1\nresources vm:999\n\tresources vm:100\n\tnodes n2\n",
			"100: prefers n1:0 by HA rule \"aa\"\nha/rules.cfg: not a valid file: line 1: no `type: id`: \"what is this\"\n" +
				"ha/rules.cfg: not a valid file: line 2: no `type: id`: \"nodes n1\"\n" +
				"ha/rules.cfg: not a valid file: line 5: an option has to be indented: \"resources vm:999\"\n" +
				"ha/rules.cfg: not a valid file: line 7: nodes is given twice",
		},
		"values that spoil a rule": {
			"node-affinity: aa\n\tnodes n1:high\n\tresources vm:100\n\n" +
				"node-affinity: bb\n\tnodes n1\n\tresources 100\n\n" +
				"node-affinity: cc\n\tresources vm:100\n\n" +
				"node-affinity: dd\n\tnodes n1\n\n" +
				"resource-affinity: ee\n\tresources vm:100,vm:101\n\taffinity maybe\n\n" +
				"node-affinity: 1f\n\tnodes n1\n\tresources vm:100\n",
			`ha/rules.cfg: not a valid file: line 1: node-affinity aa: "n1:high" is no node
ha/rules.cfg: not a valid file: line 5: node-affinity bb: "100" is no resource
ha/rules.cfg: not a valid file: line 9: node-affinity cc: no nodes
ha/rules.cfg: not a valid file: line 12: node-affinity dd: no resources
ha/rules.cfg: not a valid file: line 15: resource-affinity ee: affinity is "maybe", neither positive nor negative
ha/rules.cfg: not a valid file: line 19: node-affinity 1f: not a valid name`,
		},
		"one alone": {"resource-affinity: aa\n\tresources vm:100\n\taffinity negative\n", ""},
		"in two rules about nodes": {
			"node-affinity: aa\n\tnodes n1\n\tresources vm:100\n\nnode-affinity: bb\n\tnodes n1\n\tresources vm:100,vm:101\n\n" +
				"node-affinity: cc\n\tnodes n1\n\tresources vm:102\n",
			"102: prefers n1:0 by HA rule \"cc\"\nHA rule \"aa\" has no effect: guest 100 is in more than one rule about nodes\n" +
				"HA rule \"bb\" has no effect: guest 100 is in more than one rule about nodes",
		},
		"too many to be apart": {
			"resource-affinity: aa\n\tresources vm:100,vm:101,vm:102,vm:103\n\taffinity negative\n",
			"HA rule \"aa\" has no effect: 4 guests cannot be kept apart on 3 nodes",
		},
		"together by way of another": {
			"resource-affinity: aa\n\tresources vm:100,vm:103\n\taffinity positive\n\nresource-affinity: bb\n\tresources vm:101,vm:102\n\taffinity positive\n\n" +
				"resource-affinity: cc\n\tresources vm:102,vm:103\n\taffinity positive\n\nnode-affinity: dd\n\tnodes n3\n\tresources vm:101\n",
			`100: prefers n3:0 by HA rule "dd"; with 101 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 102 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 103 by HA rule "bb" and HA rule "aa" and HA rule "cc"
101: prefers n3:0 by HA rule "dd"; with 100 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 102 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 103 by HA rule "bb" and HA rule "aa" and HA rule "cc"
102: prefers n3:0 by HA rule "dd"; with 100 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 101 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 103 by HA rule "bb" and HA rule "aa" and HA rule "cc"
103: prefers n3:0 by HA rule "dd"; with 100 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 101 by HA rule "bb" and HA rule "aa" and HA rule "cc"; with 102 by HA rule "bb" and HA rule "aa" and HA rule "cc"`,
		},
		"together and apart": {
			"resource-affinity: aa\n\tresources vm:100,vm:101,vm:102\n\taffinity positive\n\nresource-affinity: bb\n\tresources vm:101,vm:102\n\taffinity negative\n",
			"HA rule \"aa\" has no effect: guests 101 and 102 are to be kept both together and apart\n" +
				"HA rule \"bb\" has no effect: guests 101 and 102 are to be kept both together and apart",
		},
		"apart on nodes of different priorities": {
			"resource-affinity: aa\n\tresources vm:100,vm:101\n\taffinity negative\n\nnode-affinity: bb\n\tnodes n1:1,n2:2\n\tresources vm:100\n",
			"HA rule \"aa\" has no effect: its guests are also in rules about nodes with different priorities\n" +
				"HA rule \"bb\" has no effect: its nodes have different priorities, and its guests are tied to others",
		},
		"together in two rules about nodes": {
			"resource-affinity: aa\n\tresources vm:100,vm:101\n\taffinity positive\n\nnode-affinity: bb\n\tnodes n1\n\tresources vm:100\n\n" +
				"node-affinity: cc\n\tnodes n1\n\tresources vm:101\n",
			"HA rule \"aa\" has no effect: guests that are kept together are in more than one rule about nodes\n" +
				"HA rule \"bb\" has no effect: guests that are kept together are in more than one rule about nodes\n" +
				"HA rule \"cc\" has no effect: guests that are kept together are in more than one rule about nodes",
		},
		"apart on one node": {
			"resource-affinity: aa\n\tresources vm:100,vm:101\n\taffinity negative\n\nnode-affinity: bb\n\tnodes n1\n\tresources vm:100,vm:101\n",
			"HA rule \"bb\" has no effect: 2 guests cannot be kept apart on 1 nodes\nHA rule \"aa\" has no effect: 2 guests cannot be kept apart on 1 nodes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := ParseHA(HAFiles{Rules: []byte(tt.rules), ManagerStatus: []byte(`{"node_status":{"n1":"online","n2":"online","n3":"online"}}`)})
			lines := strings.Split(strings.TrimSpace(show(h, 100, 101, 102, 103)), "\n")
			want := strings.Split(tt.want, "\n")
			slices.Sort(lines)
			slices.Sort(want)
			if diff := cmp.Diff(want, lines); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestHAManagerStatus(t *testing.T) {
	t.Parallel()
	resources := []byte("vm: 100\n")
	for raw, want := range map[string]struct {
		managed, maintenance bool
		problems             int
	}{
		"":                                            {managed: true},
		"{}\n":                                        {managed: true},
		`{"node_status":{"n1":"online"}`:              {managed: true, problems: 1},
		`{"node_status":["n1"]}`:                      {managed: true, problems: 1},
		`{"node_status":{"n1":"fence"}}`:              {managed: true},
		`{"disarm":{"mode":"ignore"}}`:                {},
		`{"disarm":{"mode":"freeze"}}`:                {managed: true},
		`{"node_request":{"n1":{}}}`:                  {managed: true},
		`{"node_request":{"n1":"soon"}}`:              {managed: true},
		`{"node_status":{"n1":"maintenance"}}`:        {managed: true, maintenance: true},
		`{"node_request":{"n1":{"maintenance":"1"}}}`: {managed: true, maintenance: true},
		`{"node_request":{"n1":{"maintenance":0}}}`:   {managed: true},
	} {
		h := ParseHA(HAFiles{Resources: resources, ManagerStatus: []byte(raw)})
		if h.Managed(100) != want.managed || h.Maintenance("n1") != want.maintenance || len(h.Problems) != want.problems {
			t.Errorf("%s: managed %v, maintenance %v, problems %v", raw, h.Managed(100), h.Maintenance("n1"), h.Problems)
		}
	}
}

// TestHAComplainsOfSomeLines: a file that is something else is not told line by line.
func TestHAComplainsOfSomeLines(t *testing.T) {
	t.Parallel()
	h := ParseHA(HAFiles{Resources: []byte(strings.Repeat("\x00 garbage\n", 1000))})
	if len(h.Problems) != maxProblems {
		t.Errorf("%d problems", len(h.Problems))
	}
}

func TestWatcherReadsHAAndPools(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.check(os.Mkdir(c.path("ha"), 0o755))
	synctest.Test(t, func(t *testing.T) {
		w := c.watcher()
		run(t, w)
		if wd := world(t, w); wd.HA.Managed(100) || wd.PoolOf(100) != "" || wd.HAErr != nil || wd.PoolErr != nil {
			t.Errorf("without any file: %+v, %v, %v", wd.HA, wd.HAErr, wd.PoolErr)
		}
		changed := w.Changed()
		c.write(haResources, "vm: 100\n")
		c.write(userConfig, "pool:web::100::\n")
		before := readCount(w)
		poll()
		if got := readCount(w) - before; got != 2 {
			t.Errorf("%d reads although no counter moved", got)
		}
		c.side++
		c.sync()
		poll()
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		first := world(t, w)
		if !first.HA.Managed(100) || first.PoolOf(100) != "web" {
			t.Errorf("after a change: %+v, %+v", first.HA, first.Pools)
		}
		// The manager writes its status every ten seconds; what does not matter of it changes nothing.
		changed = w.Changed()
		c.write(haStatus, `{"timestamp":1}`)
		c.side++
		c.sync()
		poll()
		select {
		case <-changed:
			t.Error("told of a new time")
		default:
		}
		// What cannot be read stays as it was, and is tried again.
		c.check(os.Remove(c.path(haResources)))
		c.check(os.Mkdir(c.path(haResources), 0o755))
		c.check(os.Remove(c.path(userConfig)))
		c.check(os.Mkdir(c.path(userConfig), 0o755))
		c.side++
		c.sync()
		poll()
		wd := world(t, w)
		if !wd.HA.Managed(100) || wd.PoolOf(100) != "web" {
			t.Errorf("forgotten: %+v, %+v", wd.HA, wd.Pools)
		}
		for _, err := range []error{wd.HAErr, wd.PoolErr} {
			if err == nil || !strings.Contains(err.Error(), c.root) || errors.Is(err, os.ErrNotExist) {
				t.Errorf("got %v", err)
			}
		}
		c.check(os.Remove(c.path(haResources)))
		c.check(os.Remove(c.path(userConfig)))
		poll()
		if wd := world(t, w); wd.HA.Managed(100) || wd.PoolOf(100) != "" || wd.HAErr != nil || wd.PoolErr != nil {
			t.Errorf("files that are gone: %+v, %v, %v", wd.HA, wd.HAErr, wd.PoolErr)
		}
	})
}

func FuzzHA(f *testing.F) {
	files := haFiles(f)
	f.Add(files.Resources, files.Groups, files.Rules, files.ManagerStatus)
	f.Add([]byte("vm: 100\n\tgroup a1\n"), []byte("group: a1\n nodes n1:2,n2\n restricted"), []byte("resource-affinity: r1\n\taffinity negative\n\tresources vm:100,vm:101\n\n"+
		"resource-affinity: r2\n\taffinity positive\n\tresources vm:100 ct:102\n"), []byte(`{"node_request":{"n1":{"maintenance":true}}}`))
	f.Fuzz(func(t *testing.T, resources, groups, rules, status []byte) {
		h := ParseHA(HAFiles{resources, groups, rules, status})
		for _, text := range h.Problems {
			if len(text) > 900 {
				t.Errorf("a problem of %d bytes: %.200s", len(text), text)
			}
		}
		for vmid, others := range h.apart {
			for _, o := range others {
				back := func(tie Tie) bool { return tie.VMID == vmid }
				if o.VMID == vmid || !slices.ContainsFunc(h.Apart(o.VMID), back) || slices.ContainsFunc(h.Together(o.VMID), back) {
					t.Errorf("%d is apart from %d, but %v and %v", vmid, o.VMID, h.Apart(o.VMID), h.Together(o.VMID))
				}
			}
		}
		ParsePools(rules)
	})
}
