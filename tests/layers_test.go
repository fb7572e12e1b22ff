package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/pve-rigaud/pve-rigaud/"

// room is a package and what it may import from this module. docs/architecture.md
// has the same in words.
type room struct {
	imports string // beside what is in testDoubles, which its tests may import
	tests   string // more for its tests
	pure    bool   // decides and computes only: nothing from effects
}

// rooms are all packages there are. Who adds one says here what it stands on.
var rooms = map[string]room{
	"agent": {
		imports: "agent/capacity agent/config agent/cordon agent/drain agent/fault agent/gossip agent/guest agent/guest/hotplug agent/guest/status agent/health agent/image agent/metrics agent/mtls agent/node agent/nodepb agent/ops agent/peer " +
			"agent/peerpb agent/plan agent/pmxcfs agent/provider agent/providerpb agent/pve agent/record agent/route agent/scheduler agent/snippet agent/spec cluster cluster/forward cluster/placement cluster/view qmp qmp/qga",
	},
	"agent/capacity": {imports: "agent/pmxcfs agent/pve cluster/view"},
	"agent/config":   {},
	"agent/cordon":   {},
	"agent/drain": {
		imports: "agent/cordon agent/fault agent/nodepb agent/ops agent/peerpb agent/pmxcfs agent/providerpb agent/record cluster/forward cluster/placement",
	},
	"agent/fault":   {pure: true},
	"agent/gossip":  {imports: "agent/pmxcfs cluster cluster/view"},
	"agent/health":  {imports: "agent/pmxcfs agent/pve"},
	"agent/metrics": {imports: "agent/ops agent/pve qmp"},
	"agent/mtls":    {},
	"agent/pve":     {},
	"agent/pmxcfs":  {},
	"agent/record":  {},
	"agent/route": {
		imports: "agent/fault agent/ops agent/pmxcfs agent/providerpb agent/record agent/spec cluster/forward",
	},
	"agent/spec":       {imports: "agent/fault", pure: true},
	"agent/cloudinit":  {imports: "agent/spec", pure: true},
	"agent/plan":       {imports: "agent/cloudinit agent/fault agent/pmxcfs agent/spec", pure: true},
	"agent/ops":        {imports: "agent/fault"},
	"agent/providerpb": {},
	"agent/nodepb":     {},
	"agent/peerpb":     {},
	"agent/snippet":    {imports: "agent/fault agent/peerpb agent/pmxcfs agent/record cluster/forward"},
	"agent/peer":       {imports: "agent/nodepb agent/peerpb"},
	"agent/task":       {imports: "agent/fault agent/ops agent/pve"},
	"agent/scheduler": {
		imports: "agent/capacity agent/fault agent/guest agent/nodepb agent/ops agent/peerpb agent/pmxcfs agent/record cluster cluster/forward cluster/placement cluster/view",
	},
	"agent/node": {imports: "agent/guest/snapname agent/nodepb agent/pmxcfs agent/record cluster cluster/forward cluster/view"},
	"agent/guest/status": {
		imports: "agent/fault agent/pmxcfs agent/record qmp qmp/qga",
	},
	"agent/guest/snapname": {pure: true},
	"agent/guest/hotplug":  {imports: "agent/pmxcfs qmp"},
	"agent/guest": {
		imports: "agent/cloudinit agent/fault agent/guest/hotplug agent/guest/snapname agent/guest/status agent/image agent/ops agent/plan " +
			"agent/pmxcfs agent/pve agent/record agent/snippet agent/spec agent/task cluster/placement qmp qmp/qga",
	},
	"agent/image": {
		imports: "agent/fault agent/nodepb agent/ops agent/peerpb agent/pmxcfs agent/pve agent/record agent/spec agent/task cluster/forward cluster/placement",
		tests:   "agent/config cluster/placement",
	},
	"agent/provider": {
		imports: "agent/fault agent/guest agent/guest/status agent/mtls agent/ops agent/pmxcfs agent/providerpb agent/record agent/spec cluster/forward",
		tests:   "agent/config agent/pve qmp",
	},

	"cluster":             {imports: "cluster/view"},
	"cluster/forward":     {},
	"cluster/view":        {pure: true},
	"cluster/placement":   {imports: "cluster/view", pure: true},
	"cluster/clustertest": {},

	"qmp":                  {imports: "qmp/internal/wire"},
	"qmp/internal/wire":    {},
	"qmp/qga":              {imports: "qmp qmp/internal/wire"},
	"qmp/qmptest":          {imports: "qmp qmp/internal/wire qmp/qga"},
	"qmp/qmptest/realqemu": {imports: "qmp"},

	"cmd/pve-rigaud": {imports: "agent agent/config agent/nodepb", tests: "agent/node"},
	"cmd/pvesim":     {imports: "tests/pvesim"},

	"tests":                {},
	"tests/bench":          {imports: "agent agent/config agent/guest/hotplug agent/nodepb agent/plan agent/pmxcfs agent/providerpb agent/spec cluster/placement cluster/view qmp tests/payloads tests/pvesim tests/rig"},
	"tests/demo":           {imports: "agent agent/config agent/providerpb tests/payloads tests/pvesim tests/rig"},
	"tests/e2e":            {tests: "agent agent/config agent/guest/hotplug agent/nodepb agent/ops agent/peerpb agent/pmxcfs agent/providerpb agent/record cluster qmp qmp/qga"},
	"tests/matrix":         {tests: "agent agent/providerpb agent/spec tests/pvesim tests/rig"},
	"tests/netns":          {imports: "agent/providerpb tests/pvesim tests/scenario", tests: "agent/nodepb"},
	"tests/payloads":       {},
	"tests/rig":            {imports: "agent agent/config agent/providerpb tests/pvesim"},
	"tests/guestimage":     {},
	"tests/pvesim":         {imports: "qmp/qmptest tests/guestimage tests/pvesim/disk tests/pvesim/kvm tests/pvesim/pmxfuse tests/pvesim/schema tests/pvesim/vmconf", tests: "agent/capacity agent/config agent/pmxcfs agent/pve"},
	"tests/pvesim/kvm":     {imports: "qmp qmp/qga qmp/qmptest tests/guestimage", tests: "qmp qmp/qga"},
	"tests/pvesim/disk":    {},
	"tests/pvesim/pmxfuse": {},
	"tests/pvesim/schema":  {},
	"tests/pvesim/vmconf":  {},
	"tests/skips":          {},

	"tests/scenario":        {imports: "agent agent/config agent/ops agent/providerpb cluster tests/payloads tests/pvesim tests/scenario/fabric", tests: "tests/pvesim/pmxfuse"},
	"tests/scenario/fabric": {},
}

// testDoubles may be imported by every test, and by nothing that ships.
var testDoubles = []string{"cluster/clustertest", "qmp/qmptest", "tests"}

// effects are what a pure package does without: the world outside.
var effects = []string{"os", "net", "syscall", "io/ioutil", "golang.org/x/sys"}

// harmless are the packages below effects that only compute.
var harmless = []string{"net/netip", "net/url", "net/mail", "net/textproto"}

// directions hold for the table itself: no row may allow what is forbidden here.
var directions = []struct{ from, to, why string }{
	{"qmp", "agent", "qmp knows no VM ids and no PVE policy"},
	{"qmp", "cluster", "qmp knows of one QEMU only"},
	{"cluster", "agent", "cluster is below agent"},
	{"agent", "cmd", "programs are at the top"},
	{"agent", "tests", "test doubles do not ship"},
	{"agent", "qmp/qmptest", "test doubles do not ship"},
	{"cluster", "tests", "test doubles do not ship"},
	{"agent", "cluster/clustertest", "test doubles do not ship"},
	{"cmd/pve-rigaud", "cluster/clustertest", "test doubles do not ship"},
	{"cmd/pve-rigaud", "tests", "test doubles do not ship"},
	{"cmd/pve-rigaud", "qmp/qmptest", "test doubles do not ship"},
	{"tests/pvesim", "agent", "a simulated PVE must not share the mistakes of what is tested against it"},
}

// listed is what `go list` says about a package.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestLayers(t *testing.T) {
	empty := maps.Clone(rooms)
	for _, p := range list(t, "./...") {
		for _, complaint := range p.complaints(rooms) {
			t.Error(complaint)
		}
		delete(empty, strings.TrimPrefix(p.ImportPath, module))
	}
	for name := range empty {
		t.Errorf("%s is in the table of rooms, and is no package", name)
	}
}

func TestRoomsKeepTheDirections(t *testing.T) {
	for name, r := range rooms {
		for _, complaint := range r.complaints(name) {
			t.Error(complaint)
		}
	}
}

// TestNoDoublesShip looks at everything in the program, however it came in.
func TestNoDoublesShip(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/pve-rigaud") {
		if name, ours := strings.CutPrefix(p.ImportPath, module); ours && within(name, testDoubles...) {
			t.Errorf("%s is part of pve-rigaud", name)
		}
	}
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	args = append([]string{"list", "-tags", "soak", "-json=ImportPath,Imports,TestImports,XTestImports"}, args...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func (p listed) complaints(rooms map[string]room) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	r, known := rooms[name]
	if !known {
		return []string{name + " is not in the table of rooms: add what it may import"}
	}
	var out []string
	for _, i := range p.Imports {
		ours, isOurs := strings.CutPrefix(i, module)
		switch {
		case isOurs && !slices.Contains(strings.Fields(r.imports), ours):
			out = append(out, fmt.Sprintf("%s imports %s", name, ours))
		case !isOurs && r.pure && within(i, effects...) && !within(i, harmless...):
			out = append(out, fmt.Sprintf("%s is pure and imports %s", name, i))
		}
	}
	for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
		ours, isOurs := strings.CutPrefix(i, module)
		if isOurs && ours != name && !within(ours, testDoubles...) &&
			!slices.Contains(strings.Fields(r.imports+" "+r.tests), ours) {
			out = append(out, fmt.Sprintf("a test of %s imports %s", name, ours))
		}
	}
	return out
}

func (r room) complaints(name string) []string {
	var out []string
	for _, to := range strings.Fields(r.imports) {
		for _, d := range directions {
			if within(name, d.from) && within(to, d.to) {
				out = append(out, fmt.Sprintf("the table lets %s import %s, but %s", name, to, d.why))
			}
		}
	}
	return out
}

// within says whether a package is one of these or below one.
func within(name string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return name == root || strings.HasPrefix(name, root+"/")
	})
}

func TestComplaints(t *testing.T) {
	table := map[string]room{
		"a":      {imports: "b"},
		"b":      {pure: true},
		"c":      {tests: "a"},
		"qmp":    {imports: "agent"},
		"agent":  {imports: "qmp tests/pvesim"},
		"others": {},
	}
	for name, c := range map[string]struct {
		p    listed
		want []string
	}{
		"allowed":             {listed{ImportPath: "a", Imports: []string{"b", "os"}, TestImports: []string{"a", "tests/x", "qmp/qmptest"}}, nil},
		"not allowed":         {listed{ImportPath: "b", Imports: []string{"a"}}, []string{"b imports a"}},
		"double in a package": {listed{ImportPath: "a", Imports: []string{"qmp/qmptest"}}, []string{"a imports qmp/qmptest"}},
		"test":                {listed{ImportPath: "c", XTestImports: []string{"a"}}, nil},
		"test not allowed":    {listed{ImportPath: "c", XTestImports: []string{"b"}}, []string{"a test of c imports b"}},
		"unknown":             {listed{ImportPath: "new"}, []string{"new is not in the table of rooms: add what it may import"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, imports := range [][]string{c.p.Imports, c.p.TestImports, c.p.XTestImports} {
				for i, path := range imports {
					if path != "os" {
						imports[i] = module + path
					}
				}
			}
			c.p.ImportPath = module + c.p.ImportPath
			if diff := cmp.Diff(c.want, c.p.complaints(table)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	pure := listed{ImportPath: module + "b", Imports: []string{"net/netip", "net/http", "os/exec", "strings"}}
	want := []string{"b is pure and imports net/http", "b is pure and imports os/exec"}
	if diff := cmp.Diff(want, pure.complaints(table)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"qmp":   "the table lets qmp import agent, but qmp knows no VM ids and no PVE policy",
		"agent": "the table lets agent import tests/pvesim, but test doubles do not ship",
	} {
		if diff := cmp.Diff([]string{want}, table[name].complaints(name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
