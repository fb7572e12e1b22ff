package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// explainObject is the JSON answer of `pve-rigaud explain`. Every key is always there.
type explainObject struct {
	view
	Placements []placementObject `json:"placements"` // the newest first
	Silent     []string          `json:"silent"`     // nodes whose agents could not be asked
}

// placeObject is the JSON answer of `pve-rigaud place`.
type placeObject struct {
	view
	Placement placementObject `json:"placement"`
}

type placementObject struct {
	Name       string      `json:"name"`
	Act        string      `json:"act"`        // create, clone, dry run
	DecidedBy  string      `json:"decided_by"` // node
	AgeSeconds float64     `json:"age_seconds"`
	Node       string      `json:"node"` // "": none fits
	Policy     string      `json:"policy"`
	Scorer     string      `json:"scorer"`
	Wants      string      `json:"wants"` // in words
	Nodes      []rowObject `json:"nodes"`
	Warnings   []string    `json:"warnings"`
	Refusal    string      `json:"refusal"` // as the client was told it
}

type rowObject struct {
	Node        string   `json:"node"`
	Fits        bool     `json:"fits"`
	Score       float64  `json:"score"`
	MemoryFree  uint64   `json:"memory_free"` // bytes not promised
	MemoryTotal uint64   `json:"memory_total"`
	Reasons     []string `json:"reasons"`
}

func askExplain(ctx context.Context, client nodepb.NodeClient, q *question) (any, func(io.Writer) error, error) {
	resp, err := client.Explain(ctx, &nodepb.ExplainRequest{Vm: q.vm})
	if err != nil {
		return nil, nil, err
	}
	out := explainObject{view: viewOf(resp.GetView()), Placements: []placementObject{}, Silent: list(resp.GetSilent())}
	for _, p := range resp.GetPlacements() {
		out.Placements = append(out.Placements, placementOf(p))
	}
	return out, func(w io.Writer) error { return writeExplained(w, resp) }, nil
}

func askPlace(ctx context.Context, client nodepb.NodeClient, q *question) (any, func(io.Writer) error, error) {
	resp, err := client.Place(ctx, &q.place)
	if err != nil {
		return nil, nil, err
	}
	out := placeObject{view: viewOf(resp.GetView()), Placement: placementOf(resp.GetPlacement())}
	return out, func(w io.Writer) error { return writePlacement(w, resp.GetPlacement(), resp.GetView().GetStale()) }, nil
}

// checkPlace reads the sizes of `pve-rigaud place`.
func checkPlace(q *question) (err error) {
	if q.place.Memory, err = size(q.memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	if q.place.Disk, err = size(q.disk); err != nil {
		return fmt.Errorf("--disk: %w", err)
	}
	return nil
}

// checkExplain makes sure that a VM is named.
func checkExplain(q *question) error {
	if q.vm == "" {
		return errors.New("which VM? Give its name, number or id")
	}
	return nil
}

// placeFlags are those of `pve-rigaud place`, bound to q.
func placeFlags(f *pflag.FlagSet, q *question) {
	f.Uint32Var(&q.place.Cpus, "cpu", 0, "CPUs it starts with")
	f.StringVar(&q.memory, "memory", "", "its memory, such as 8Gi")
	f.StringVar(&q.disk, "disk", "", "size of its root disk, such as 40Gi (default: as the image's)")
	f.StringVar(&q.place.Image, "image", "", "the `IMAGE` or template it is made from")
	f.StringVar(&q.place.Name, "name", "", "its name, for policies that go by it")
	f.StringSliceVar(&q.place.Tags, "tag", nil, "a tag of it; may be given several times")
	f.StringVar(&q.place.Pool, "pool", "", "its pool")
	f.StringVar(&q.place.Policy, "policy", "", "the placement policy to use (default: the one that matches)")
	f.StringVar(&q.place.Node, "node", "", "only this node, or group of nodes")
	f.Bool("dry-run", true, "only say where it would go; nothing else is done anyway")
}

// size reads a number of bytes: 8Gi, 512MiB, 1.5G (of 1024), or bytes.
func size(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	number := strings.TrimRight(text, "KMGTiBb")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text[len(number):]), "B"), "I")
	shift, known := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n < 0 || n*float64(uint64(1)<<shift) >= 1<<63 {
		return 0, fmt.Errorf("%q is no size such as 8Gi or 512Mi", text)
	}
	return uint64(n * float64(uint64(1)<<shift)), nil
}

func placementOf(p *nodepb.Placement) placementObject {
	out := placementObject{
		Name: p.GetName(), Act: p.GetAct(), DecidedBy: p.GetDecidedBy(), AgeSeconds: seconds(p.GetAgeMs()), Node: p.GetNode(),
		Policy: p.GetPolicy(), Scorer: p.GetScorer(), Wants: p.GetWants(), Nodes: []rowObject{}, Warnings: list(p.GetWarnings()), Refusal: p.GetRefusal(),
	}
	for _, r := range p.GetRows() {
		out.Nodes = append(out.Nodes, rowObject{
			Node: r.GetNode(), Fits: r.GetFits(), Score: r.GetScore(), MemoryFree: r.GetMemoryFree(), MemoryTotal: r.GetMemoryTotal(), Reasons: list(r.GetReasons()),
		})
	}
	return out
}

// list is never null in JSON.
func list(texts []string) []string { return append([]string{}, texts...) }

func writeExplained(w io.Writer, resp *nodepb.ExplainResponse) error {
	stale := resp.GetView().GetStale()
	if len(resp.GetSilent()) > 0 {
		stale = strings.TrimPrefix(stale+"; the agents of these nodes could not be asked: "+strings.Join(resp.GetSilent(), ", "), "; ")
	}
	for i, p := range resp.GetPlacements() {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
			stale = ""
		}
		if err := writePlacement(w, p, stale); err != nil {
			return err
		}
	}
	return nil
}

// writePlacement writes a decision: what was wanted, what was decided, and what was found of each node.
func writePlacement(w io.Writer, p *nodepb.Placement, stale string) error {
	t := newTable("NODE", "SCORE", "GIB FREE/TOTAL", "WHY")
	t.remark("stale", stale)
	if p.GetAct() == "dry run" {
		t.remark(strings.TrimSpace("dry run "+p.GetName()), "wants "+p.GetWants())
	} else {
		t.remark(p.GetAct()+" "+p.GetName(), fmt.Sprintf("%s ago by %s, wants %s", span(p.GetAgeMs()), p.GetDecidedBy(), p.GetWants()))
	}
	t.remark("policy", p.GetPolicy())
	t.remark("scorer", p.GetScorer())
	for _, warning := range p.GetWarnings() {
		t.remark("warning", warning)
	}
	t.remark("goes to", p.GetNode())
	t.remark("refused", p.GetRefusal())
	for _, r := range p.GetRows() {
		name, score, why := r.GetNode(), fmt.Sprintf("%.3f", r.GetScore()), strings.Join(r.GetReasons(), "; ")
		if !r.GetFits() {
			score, why = "", "no: "+why
		}
		if r.GetNode() == p.GetNode() {
			name += "*"
		}
		t.add(name, score, gib(r.GetMemoryFree())+"/"+gib(r.GetMemoryTotal()), why)
	}
	return t.write(w)
}
