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

// shown is how many nodes a refusal names at most: it has to fit into the
// trailer of an answer.
const shown = 16

// Refusal says in one line why no node fits; it is "" if one does. What holds
// for every node is said once, and so is what the request itself rules out.
func (d Decision) Refusal() string {
	if d.Node != "" {
		return ""
	}
	if len(d.Rows) == 0 {
		return "no node fits: there is no node"
	}
	if text, ok := d.common(); ok {
		return "no node fits: " + text
	}
	var nodes []string
	ruledOut := ""
	for _, r := range d.Rows {
		if text, ok := r.has(filterOnly); ok {
			ruledOut = "; every other node " + text
			continue
		}
		nodes = append(nodes, r.Node+" "+r.why())
	}
	if more := len(nodes) - shown; more > 0 {
		nodes = append(nodes[:shown], fmt.Sprintf("and %d more", more))
	}
	return "no node fits: " + strings.Join(nodes, ", ") + ruledOut
}

// common is what is said once: of the request, or the same of every one of
// several nodes.
func (d Decision) common() (string, bool) {
	if text, ok := d.Rows[0].has(filterNoPolicy); ok {
		return text, true
	}
	const every = "every node "
	only, out := d.Rows[0].has(filterOnly)
	same := len(d.Rows) > 1
	for _, r := range d.Rows {
		_, ok := r.has(filterOnly)
		out = out && ok
		same = same && r.why() == d.Rows[0].why()
	}
	if out {
		return every + only, true
	}
	return every + d.Rows[0].why(), same
}

// has is the text of the reason by a filter.
func (r Row) has(filter string) (string, bool) {
	for _, reason := range r.Reasons {
		if reason.Filter == filter {
			return reason.Text, true
		}
	}
	return "", false
}

func (r Row) why() string {
	texts := make([]string, 0, len(r.Reasons))
	for _, reason := range r.Reasons {
		texts = append(texts, reason.Text)
	}
	return strings.Join(texts, " and ")
}

// String is the table, for people. '*' marks the node that was chosen.
func (d Decision) String() string {
	var b strings.Builder
	b.WriteString(d.head())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { _, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) } // a strings.Builder takes everything
	line("NODE", "SCORE", "GIB FREE/TOTAL", "WHY")
	for _, r := range d.Rows {
		line(r.cells(r.Node == d.Node)...)
	}
	_ = w.Flush()
	for _, warning := range d.Warnings {
		b.WriteString("warning: " + warning + "\n")
	}
	return b.String()
}

// head says what was decided, and by what.
func (d Decision) head() string {
	head := "no node fits"
	if d.Node != "" {
		head = d.Node
	}
	head += ", scorer " + d.Scorer
	if d.Policy != "" {
		head += ", policy " + d.Policy
	}
	return head + "\n"
}

func (r Row) cells(chosen bool) []string {
	node, score, room, why := r.Node, "", "", strings.Join(r.Notes, "; ")
	if chosen {
		node += "*"
	}
	if r.MemoryTotal > 0 {
		room = gibDown(r.MemoryFree) + "/" + gibDown(clamp(r.MemoryTotal))
	}
	if len(r.Reasons) > 0 {
		why = "no: " + r.why()
	} else {
		score = strconv.FormatFloat(r.Score, 'f', 3, 64)
	}
	return []string{node, score, room, why}
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
