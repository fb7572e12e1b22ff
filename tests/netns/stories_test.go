//go:build netns || soak

package netns

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const stories = "../scenario/testdata"

// notHere is why a story is told in virtual time alone, as is any other that is not in here.
var notHere = map[string]string{
	"asymmetric":          "waits for 4 minutes, and what an agent says of the cut depends on which timer is first",
	"clock":               "sets clocks",
	"contacted-killed":    "its client waits for 5 minutes for an agent that is dead",
	"gossip-only":         "waits for 5 minutes",
	"ha":                  "waits for 4 minutes",
	"keys":                "its lost packets are gossip's alone",
	"owner-killed":        "waits for 4 minutes, and steps depend on how far a clone has come",
	"partition-in-create": "waits for 4 minutes",
	"quorum-lost":         "waits for 5 minutes",
	"races":               "200 times three creates take an hour",
	"take-over":           "waits for 8 minutes",
	"versions":            "starts agents of other versions",
}

// here are the stories that are told with real processes too, and have to end as in virtual time.
var here = []string{"duplicates", "late-lookup", "life", "migrated-half-made", "migration", "partition", "stranger"}

func TestStories(t *testing.T) {
	needWorlds(t)
	t.Parallel()
	for _, name := range here {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, want := read(t, name+".txt"), read(t, name+".golden")
			if diff := cmp.Diff(want, tell(t, text).Log); diff != "" {
				t.Errorf("(-virtual time +real):\n%s", diff)
			}
		})
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(stories, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestNotHere: what this package says of a story is about one that there is, and is said once.
func TestNotHere(t *testing.T) {
	for name, why := range notHere {
		if read(t, name+".txt"); slices.Contains(here, name) {
			t.Errorf("%s is told here and not: %s", name, why)
		}
	}
}
