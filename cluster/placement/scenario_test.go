package placement

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

var update = flag.Bool("update", false, "write the golden files anew")

var scenarioNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestScenarios plays testdata/*.txt. A file begins with lines for all of its
// cases. A case is "=== title", what is different in it, "---" and what comes
// out. testdata/README.md has the words.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			old, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			played := playFile(t, string(old))
			if *update {
				if err := os.WriteFile(file, []byte(played), 0o644); err != nil { //nolint:gosec // test data for everybody
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(strings.Split(string(old), "\n"), strings.Split(played, "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What docs/placement.md shows is what is printed.
func TestDocsShowWhatIsPrinted(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	for _, file := range append(files, "place_test.go") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		printed.Write(b)
	}
	page, err := os.ReadFile("../../docs/placement.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for i, block := range strings.Split(string(page), "```") {
		if i%2 == 0 || !strings.HasPrefix(block, "\n") {
			continue // prose, or YAML
		}
		for line := range strings.Lines(strings.TrimSpace(block)) {
			shown++
			if !strings.Contains(printed.String(), strings.TrimSpace(line)) {
				t.Errorf("docs/placement.md shows what no scenario prints: %s", line)
			}
		}
	}
	if shown < 10 {
		t.Errorf("only %d lines are compared", shown)
	}
}

// playFile returns the file with what its cases come to now.
func playFile(t *testing.T, file string) string {
	cases := strings.Split(file, "\n=== ")
	out := []string{strings.TrimRight(cases[0], "\n") + "\n"}
	for _, c := range cases[1:] {
		title, rest, _ := strings.Cut(c, "\n")
		input, _, _ := strings.Cut(rest, "\n---")
		input = strings.Trim(input, "\n")
		t.Run(title, func(t *testing.T) {
			s := scene{t: t}
			s.read(cases[0])
			s.read(input)
			out = append(out, title+"\n"+input+"\n---\n"+s.play())
		})
	}
	return strings.Join(out, "\n=== ")
}

// scene is one case.
type scene struct {
	t        *testing.T
	cluster  Cluster
	settings Settings
	want     Want
}

func (s *scene) read(text string) {
	s.t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words := split(line)
		var name string
		if len(words) > 1 {
			name = words[1]
		}
		var pairs [][2]string
		for _, w := range words[min(2, len(words)):] {
			key, value, _ := strings.Cut(w, "=")
			pairs = append(pairs, [2]string{key, value})
		}
		s.line(line, words[0], name, pairs)
	}
}

// split cuts at spaces outside of quotes, and takes the quotes away.
func split(line string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for _, r := range line + " " {
		switch {
		case r == '\'':
			quoted = !quoted
		case r == ' ' && !quoted:
			if word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	return words
}

func (s *scene) line(line, verb, name string, pairs [][2]string) {
	for _, p := range append(pairs, [2]string{}) {
		key, value := p[0], p[1]
		ok := key == ""
		switch verb {
		case "node":
			ok = s.node(name, key, value)
		case "storage":
			ok = s.storage(name, key, value)
		case "vms":
			ok = s.vms(name, key, value)
		case "settings":
			ok = s.setting(name)
		case "group":
			s.settings.Groups = with(s.settings.Groups, name, key)
			ok = true
		case "zone":
			s.settings.Zones = with(s.settings.Zones, name, key)
			ok = true
		case "policy":
			ok = s.policy(name, key, value)
		case "want":
			s.want.Name = name
			ok = s.wish(key, value)
		case "source":
			ok = s.source(name, key, value)
		}
		if !ok {
			s.t.Fatalf("%q: %s is not known", line, key)
		}
	}
}

func with(lists map[string][]string, name, item string) map[string][]string {
	if lists == nil {
		lists = map[string][]string{}
	}
	if item != "" {
		lists[name] = append(lists[name], item)
	}
	return lists
}

// play decides, and says what a reader wants to know.
func (s *scene) play() string {
	d := Place(s.cluster, s.want, s.settings, scenarioNow)
	out := d.String()
	if d.How != Here {
		out += "made: " + d.How.String() + "\n"
	}
	if d.Node == "" {
		out += "refusal: " + d.Refusal() + "\n"
	}
	if d.Exhausted() {
		out += "exhausted\n"
	}
	// Lines do not end in spaces: editors take those away.
	lines := strings.Split(out, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func (s *scene) find(name string) *Node {
	for i := range s.cluster.Nodes {
		if s.cluster.Nodes[i].Name == name {
			return &s.cluster.Nodes[i]
		}
	}
	s.cluster.Nodes = append(s.cluster.Nodes, Node{Name: name, State: view.Node{
		Digest:   view.Digest{Quorate: true, MemoryTotal: 64 << 30, MemoryPromised: 16 << 30, VCPUs: 16, VCPUsPromised: 16},
		DigestAt: scenarioNow.Add(-time.Second),
		Facts: view.Facts{
			Storages: []view.Storage{{Name: "local-lvm", Free: 500 << 30, Content: []string{"images", "rootdir"}}},
			Bridges:  []string{"vmbr0"},
		},
		FactsAt: scenarioNow.Add(-5 * time.Second),
	}})
	return &s.cluster.Nodes[len(s.cluster.Nodes)-1]
}

func (s *scene) node(name, key, value string) bool {
	n := s.find(name)
	d := &n.State.Digest
	switch key {
	case "memory":
		d.MemoryTotal = s.bytes(value)
	case "promised":
		d.MemoryPromised = s.bytes(value)
	case "zfs":
		d.MemoryReserved = s.bytes(value)
	case "cpus":
		d.VCPUs = uint32(s.number(value))
	case "vcpus":
		d.VCPUsPromised = uint32(s.number(value))
	case "reserved":
		n.Reserved.Memory, n.Reserved.VMs = s.bytes(value), n.Reserved.VMs+1
	case "recent":
		n.Recent = Amount{Memory: s.bytes(value), VMs: 1}
	case "reserved-disk":
		disk := s.disk(value)
		n.Reserved.Storage = map[string]uint64{disk.Storage: disk.Bytes}
	case "silent":
		n.Silent = value
	case "cordoned":
		n.Cordoned = value
	case "says-cordoned":
		d.Cordoned = true
	case "draining":
		d.Draining = true
	case "no-quorum":
		d.Quorate = false
	case "refused":
		n.Refused = value
	case "heard":
		n.State.DigestAt = time.Time{}
		if age, err := time.ParseDuration(value); err == nil {
			n.State.DigestAt = scenarioNow.Add(-age)
		} else {
			n.State.Digest = view.Digest{}
		}
	case "no-facts":
		n.State.Facts, n.State.FactsAt = view.Facts{}, time.Time{}
	case "no-storages":
		n.State.Facts.Storages = nil
	case "bridges":
		n.State.Facts.Bridges = strings.Split(value, ",")
	case "many-bridges":
		for i := range cut {
			n.State.Facts.Bridges = append(n.State.Facts.Bridges, fmt.Sprintf("tap%d", i))
		}
	default:
		return key == ""
	}
	return true
}

// storage gives a storage to a node, or to all of them.
func (s *scene) storage(name, key, value string) bool {
	for i := range s.cluster.Nodes {
		n := &s.cluster.Nodes[i]
		if key != n.Name && key != "all" {
			continue
		}
		// free, content, "shared"
		parts := append(strings.Split(value, ":"), "", "")
		n.State.Facts.Storages = append(n.State.Facts.Storages, view.Storage{
			Name: name, Free: s.bytes(parts[0]), Content: strings.Split(parts[1], ","), Shared: parts[2] == "shared",
		})
	}
	return true
}

// vms puts VMs with the numbers N and following on a node: N, name, how many,
// tags, pool.
func (s *scene) vms(node, key, value string) bool {
	if key == "" {
		return true
	}
	at := -1
	for i := range s.cluster.Nodes {
		if s.cluster.Nodes[i].Name == node {
			at = i
		}
	}
	parts := append(strings.Split(value, ":"), "", "", "")
	for k := range max(1, s.number("0"+parts[1])) {
		id := s.number(key) + k
		vm := VM{Node: at, ID: id, Name: parts[0], Pool: parts[3], Running: true}
		if parts[2] != "" {
			vm.Tags = strings.Split(parts[2], ",")
		}
		s.cluster.VMs = append(s.cluster.VMs, vm)
	}
	return at >= 0
}

func (s *scene) setting(pair string) bool {
	key, value, _ := strings.Cut(pair, "=")
	switch key {
	case "scorer":
		s.settings.Scorer = value
	case "overcommit":
		s.settings.MemoryOvercommit, _ = strconv.ParseFloat(value, 64)
	case "reserve":
		s.settings.MemoryReserve = s.bytes(value)
	case "node-selector":
		s.settings.Nodes = strings.Split(value, ",")
	case "required-node-selector":
		s.settings.Nodes, s.settings.NodesRequired = strings.Split(value, ","), true
	default:
		return false
	}
	return true
}

func (s *scene) policy(name, key, value string) bool {
	p := find(s.settings.Policies, name)
	if p == nil {
		s.settings.Policies = append(s.settings.Policies, Policy{Name: name})
		p = find(s.settings.Policies, name)
	}
	list := strings.Split(value, ",")
	switch key {
	case "names":
		p.Match.Names = list
	case "tags":
		p.Match.Tags = list
	case "pools":
		p.Match.Pools = list
	case "node-selector":
		p.NodeSelector = list
	case "required":
		p.Required = true
	case "affinity":
		p.Affinity = append(p.Affinity, term(value))
	case "anti-affinity":
		p.AntiAffinity = append(p.AntiAffinity, term(value))
	case "max-vms-per-node":
		p.MaxVMsPerNode = s.number(value)
	case "min-free-memory":
		p.MinFreeMemory = s.bytes(value)
	case "spread":
		p.Spread = value
	case "scorer":
		p.Scorer = value
	default:
		return key == ""
	}
	return true
}

// term is "key Operator a,b hard zone".
func term(text string) Term {
	var t Term
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
			t.Key = word
		case i == 1:
			t.Operator = word
		case word == "hard":
			t.Hard = true
		case word == "zone":
			t.Zone = true
		default:
			t.Values = strings.Split(word, ",")
		}
	}
	return t
}

func (s *scene) wish(key, value string) bool {
	w := &s.want
	switch key {
	case "memory":
		w.Memory = s.bytes(value)
	case "cpus":
		w.CPUs = s.number(value)
	case "disk":
		w.Disks = append(w.Disks, s.disk(value))
	case "bridges":
		w.Bridges = strings.Split(value, ",")
	case "pool":
		w.Pool = value
	case "tags":
		w.Tags = strings.Split(value, ",")
	case "only":
		w.Only = strings.Split(value, ",")
	case "only-why":
		w.OnlyWhy = value
	case "never":
		node, why, _ := strings.Cut(value, ":")
		if w.Never == nil {
			w.Never = map[string]string{}
		}
		w.Never[node] = why
	case "prefer":
		node, weight, _ := strings.Cut(value, ":")
		if w.Prefer == nil {
			w.Prefer = map[string]int{}
		}
		w.Prefer[node] = s.number(weight)
	case "policy":
		w.Policy = value
	case "current":
		w.Current = value
	default:
		return key == ""
	}
	return true
}

// source says of a node how it reaches the image, or why it does not.
func (s *scene) source(image, node, value string) bool {
	if s.want.Source == nil {
		s.want.Source = &Source{Name: fmt.Sprintf("replica of %q", image), Nodes: map[string]Reach{}, Why: map[string]string{}}
	}
	way, disk, _ := strings.Cut(value, ":")
	hows := map[string]How{"here": Here, "shared": Shared, "on-demand": OnDemand}
	how, ok := hows[way]
	switch {
	case node == "":
	case !ok:
		s.want.Source.Why[node] = value
	default:
		r := Reach{How: how}
		if disk != "" {
			r.Disks = []Disk{s.disk(disk)}
		}
		s.want.Source.Nodes[node] = r
	}
	return true
}

// disk is storage:content:size.
func (s *scene) disk(value string) Disk {
	parts := append(strings.Split(value, ":"), "", "")
	return Disk{Storage: parts[0], Content: parts[1], Bytes: s.bytes(parts[2])}
}

// bytes reads "8G" and "512M"; "" is 0.
func (s *scene) bytes(text string) uint64 {
	if text == "" {
		return 0
	}
	unit := map[byte]float64{'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}[text[len(text)-1]]
	n, err := strconv.ParseFloat(text[:len(text)-1], 64)
	if err != nil || unit == 0 {
		s.t.Fatalf("%q is no size", text)
	}
	return uint64(n * unit)
}

func (s *scene) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatalf("%q is no number", text)
	}
	return n
}
