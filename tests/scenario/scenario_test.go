package scenario

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// directoryMark is in stories in which /etc/pve may be a directory.
const directoryMark = "# (Without FUSE.)"

// some are the stories that are told if not all are.
var some = []string{"contacted-killed", "duplicates", "life", "migration", "partition", "take-over", "versions"}

// TestVirtual tells every story of testdata in virtual time.
func TestVirtual(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			if !thorough && !slices.Contains(some, strings.TrimSuffix(filepath.Base(file), ".txt")) {
				t.Log("left out: the race detector takes ten times the time, and finds no more here")
				return
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			steps, err := Parse(string(text))
			if err != nil {
				t.Fatal(err)
			}
			report := inVirtual(t, steps, func(c *VirtualConfig) { c.Directory = strings.Contains(string(text), directoryMark) })
			judge(t, report)
			compare(t, strings.TrimSuffix(file, ".txt")+".golden", report.Log)
		})
	}
}

// judge fails for what must not be.
func judge(t *testing.T, r Report) {
	t.Helper()
	for _, v := range append(r.Violations, r.Broken...) {
		t.Error(v)
	}
	t.Logf("%d faults %v; %s", r.Total(), r.Faults, r.Scores)
}

func compare(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-%s +now; -update if it is right):\n%s", golden, diff)
	}
}
