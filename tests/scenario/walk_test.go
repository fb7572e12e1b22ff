package scenario

import (
	"flag"
	"fmt"
	"sync/atomic"
	"testing"
)

var (
	seed  = flag.Uint64("seed", 0, "tell the walk of this seed only")
	print = flag.Bool("print-walk", false, "print the log of each walk")
)

// steps is how long a walk is.
const steps = 260

// TestWalks tells stories that dice make up. What comes of a step may differ from run to run; the four numbers may not.
func TestWalks(t *testing.T) {
	list := seeds
	if *seed != 0 {
		list = []uint64{*seed}
	}
	var total atomic.Int64
	t.Cleanup(func() { t.Logf("%d faults in all", total.Load()) })
	for _, s := range list {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			t.Parallel()
			text := Walk(s, []string{"pve1", "pve2", "pve3"}, steps)
			story, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			report := inVirtual(t, story)
			judge(t, report)
			total.Add(int64(report.Total()))
			if t.Failed() || *print {
				t.Logf("seed %d:\n%s", s, report.Log)
			}
		})
	}
}

func seedsUpTo(n uint64) []uint64 {
	var list []uint64
	for i := range n {
		list = append(list, i+1)
	}
	return list
}
