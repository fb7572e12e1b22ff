package scenario

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	steps, err := Parse(`
# a comment
create web-1 via pve1,pve2 on pve3 retry 5m deadline 10s in background as c1 # another
describe web-1#1 via pve2   expect gone
wait until web-1 on pve2 within 1m
partition pve1|pve2,pve3
migrate web-1 pve2 gap 1.5s &
await c1 expect error Aborted
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{
			Line: "create web-1 via pve1,pve2 on pve3 retry 5m deadline 10s in background as c1", Verb: "create", Args: []string{"web-1"},
			Via: []string{"pve1", "pve2"}, On: "pve3", As: "c1", Retry: 5 * time.Minute, Limit: 10 * time.Second,
		},
		{Line: "describe web-1#1 via pve2", Verb: "describe", Args: []string{"web-1#1"}, Via: []string{"pve2"}, Expect: "gone"},
		{Line: "wait until web-1 on pve2 within 1m", Verb: "wait", Args: []string{"until", "web-1", "on", "pve2"}, Within: time.Minute},
		{Line: "partition pve1|pve2,pve3", Verb: "partition", Args: []string{"pve1|pve2,pve3"}},
		{Line: "migrate web-1 pve2 gap 1.5s &", Verb: "migrate", Args: []string{"web-1", "pve2", "gap", "1.5s", "&"}},
		{Line: "await c1", Verb: "await", Args: []string{"c1"}, Expect: "error Aborted"},
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"create web-1":                              "via do not fit",
		"create via pve1":                           "takes 1 to 1 arguments",
		"create web-1 via":                          "via what",
		"create web-1 via pve1 in background":       "in what?",
		"create web-1 via pve1 retry soon":          "invalid duration",
		"check via pve1":                            "via do not fit",
		"kill node pve1":                            "kill what",
		"burst many web via pve1":                   "invalid syntax",
		"describe web-1 via pve1 expect a miracle":  "want ok",
		"wait 5s\n\ndescribe web-1 via pve1 on pve": "line 3",
	} {
		if _, err := Parse(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

func TestMask(t *testing.T) {
	r := &Runner{}
	r.ledger.tell("web-1", "104-0a1b2c3d")
	r.ledger.become(r.ledger.find("web-1"), failed)
	r.ledger.tell("web-1", "105-0a1b2c3e")
	got := r.mask("VM 104 (104-0a1b2c3d) is not 105-0a1b2c3e nor 106-00000000: since 2000-01-01T00:00:21Z, 1m2.5s ago, at 10.0.0.2:9443, UPID:pve1:0:0:0:qmclone:104:x:")
	want := "VM <number of web-1#1> (web-1#1) is not web-1#2 nor <id>: since <time>, <duration> ago, at <address 2>, <upid>"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// TestAWalkIsTheSameAgain: or a seed would be worth nothing.
func TestAWalkIsTheSameAgain(t *testing.T) {
	nodes := []string{"pve1", "pve2", "pve3"}
	first := Walk(7, nodes, 100)
	if first != Walk(7, nodes, 100) || first == Walk(8, nodes, 100) {
		t.Error("a seed does not make the same walk")
	}
	if _, err := Parse(first); err != nil {
		t.Error(err)
	}
}
