package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// placing has everything that can be said of placement.
const placing = `
placement:
  scorer: spread
  memory-overcommit: 2
  memory-reserve: 1.5Gi
  node-selector: required
  groups: {fast: [pve1, pve2], no_ne: []}
  zones:
    room-a: [pve1]
    room-b: [pve2, pve3]
  image-replicas: all
  policies:
    web:
      match: {pools: [web/shop]}
      anti-affinity:
        - {key: role, operator: NotIn, values: ["a b", "{}", "x: y", '# "q"'], zone: true}
    db:
      match: {names: ["db-*", "[a-c]?"], tags: [db, "true"]}
      node-selector: [fast, pve3]
      required: true
      affinity: [{key: pool, operator: Exists}]
      anti-affinity: [{key: tag, operator: In, values: [db], hard: true}]
      max-vms-per-node: 20
      min-free-memory: 8GiB
      spread: zone
      scorer: pack
    default: {}
`

func TestPlacement(t *testing.T) {
	s := newSite(t)
	s.write("pve/pve-rigaud.yaml", placing, 0o640) // all of it belongs to the cluster
	got, err := s.load(working+"node-selector: [pve1, no_ne]\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Placement{
		Scorer: "spread", MemoryOvercommit: 2, MemoryReserve: 3 << 29, SelectorRequired: true,
		Groups:        Lists{"fast": {"pve1", "pve2"}, "no_ne": nil},
		Zones:         Lists{"room-a": {"pve1"}, "room-b": {"pve2", "pve3"}},
		ImageReplicas: AllNodes,
		Policies: Policies{
			{
				Name: "web", Match: Match{Pools: []string{"web/shop"}},
				AntiAffinity: []Term{{Key: "role", Operator: "NotIn", Values: []string{"a b", "{}", "x: y", `# "q"`}, Zone: true}},
			},
			{
				Name: "db", Match: Match{Names: []string{"db-*", "[a-c]?"}, Tags: []string{"db", "true"}},
				NodeSelector: []string{"fast", "pve3"}, Required: true,
				Affinity:      []Term{{Key: "pool", Operator: "Exists"}},
				AntiAffinity:  []Term{{Key: "tag", Operator: "In", Values: []string{"db"}, Hard: true}},
				MaxVMsPerNode: 20, MinFreeMemory: 8 << 30, Spread: "zone", Scorer: "pack",
			},
			{Name: "default"},
		},
	}
	if diff := cmp.Diff(want, got.Placement, compare); diff != "" {
		t.Error(diff)
	}
	if source := got.Sources["placement.policies"]; source != s.expand("DIR/pve/pve-rigaud.yaml:13") {
		t.Errorf("source of the policies: %s", source)
	}
}

// TestPoliciesByFlag: one flag for each, in their order; together they outweigh those of the files.
func TestPoliciesByFlag(t *testing.T) {
	s := newSite(t)
	got, err := s.load(working+placing, nil,
		"--placement-policies", "web: {spread: node, match: {tags: [a, b]}}", "--placement-policies", "{db: {}}",
		"--placement-groups", "fast=pve1,pve2", "--placement-groups", "slow=pve3", "--placement-memory-overcommit=0.5")
	if err != nil {
		t.Fatal(err)
	}
	want := got.Placement
	want.MemoryOvercommit = 0.5
	want.Groups = Lists{"fast": {"pve1", "pve2"}, "slow": {"pve3"}}
	want.Policies = Policies{{Name: "web", Spread: "node", Match: Match{Tags: []string{"a", "b"}}}, {Name: "db"}}
	if diff := cmp.Diff(want, got.Placement, compare); diff != "" {
		t.Error(diff)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]struct {
		bytes uint64
		text  string // "": as it was written
	}{
		"0": {0, ""}, "8GiB": {8 << 30, ""}, "8Gi": {8 << 30, "8GiB"}, "512 MiB": {512 << 20, "512MiB"}, "1.5TiB": {3 << 39, "1536GiB"},
		"1024MiB": {1 << 30, "1GiB"}, "3KiB": {3 << 10, ""}, "0.5KiB": {512, ""}, "0GiB": {0, "0"}, "1025KiB": {1025 << 10, ""},
	} {
		var got size
		if err := got.parse(text); err != nil || uint64(got) != want.bytes {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want.bytes)
		}
		if want.text == "" {
			want.text = text
		}
		if got.text() != want.text {
			t.Errorf("%s is written %s, want %s", text, got.text(), want.text)
		}
	}
	for _, text := range []string{"", "1", "GiB", "-1GiB", "1GB", "1 gib", "1e30TiB", "NaNGiB", "infGiB", "1B"} {
		var got size
		if err := got.parse(text); err == nil {
			t.Errorf("%q is %d bytes", text, got)
		}
	}
}
