package placement

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Decision is which node was chosen, and what was found of every node.
type Decision struct {
	Node     string // "": none fits
	How      How    // how Node gets at the source
	Policy   string // that was used; "": none
	Scorer   string // that was used
	Rows     []Row  // every node, by name
	Warnings []string
}

// Row is what was found of one node.
type Row struct {
	Node        string
	Reasons     []Reason // why it does not fit; empty: it does
	Notes       []string // what speaks for it or against it
	Score       float64  // higher is better; 0 where the node was not heard of
	MemoryFree  int64    // bytes not promised, before this VM; negative: promised beyond what may be
	MemoryTotal uint64   // bytes of the host
}

// Reason is why a node does not fit.
type Reason struct {
	Filter   string // that refused it: "memory", "cordoned"
	Text     string // in words, to stand after the node's name
	Capacity bool   // there is not enough of something
}

// Exhausted says whether there is a lack of room and nothing else: every node
// fails, each on capacity alone.
func (d Decision) Exhausted() bool {
	for _, r := range d.Rows {
		if len(r.Reasons) == 0 {
			return false
		}
		for _, reason := range r.Reasons {
			if !reason.Capacity {
				return false
			}
		}
	}
	return len(d.Rows) > 0
}

// Refusal says in one line why no node fits.
func (d Decision) Refusal() string {
	var nodes []string
	for _, r := range d.Rows {
		nodes = append(nodes, r.Node+" "+r.why())
	}
	return "no node fits: " + strings.Join(nodes, ", ")
}

func (r Row) why() string {
	var texts []string
	for _, reason := range r.Reasons {
		texts = append(texts, reason.Text)
	}
	return strings.Join(texts, " and ")
}

// String is the table, for people.
func (d Decision) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSCORE\tGIB FREE/TOTAL\tWHY")
	for _, r := range d.Rows {
		fmt.Fprintf(w, "%s\t%.3f\t%s/%s\t%s\n", r.Node, r.Score, gibDown(r.MemoryFree), gibDown(int64(r.MemoryTotal)), r.why())
	}
	_ = w.Flush() // a strings.Builder takes everything
	return b.String()
}

const gib = 1 << 30

// gibUp is an amount that is needed in GiB, with one digit, rounded up: with
// gibDown for what there is, too little looks like too little.
func gibUp(bytes int64) string {
	return strconv.FormatFloat(math.Ceil(float64(bytes)*10/gib)/10, 'f', 1, 64)
}

func gibDown(bytes int64) string {
	return strconv.FormatFloat(math.Floor(float64(bytes)*10/gib)/10, 'f', 1, 64)
}
