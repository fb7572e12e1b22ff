package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Scores are what a check counts; all have to be zero.
type Scores struct {
	Duplicates int // VMs beside the first of a name
	Lost       int // ids that a client was told and that are unknown
	False      int // times that a VM was said not to exist and did
	HalfMade   int // VMs, records and volumes that are not whole
}

func (s Scores) String() string {
	return fmt.Sprintf("duplicates %d, lost ids %d, false exists=false %d, half-made %d", s.Duplicates, s.Lost, s.False, s.HalfMade)
}

// check counts what must not be. Everything has to be repaired and settled.
func (r *Runner) check(ctx context.Context) (outcome, error) {
	t, err := look(r.world.Dir())
	if err != nil {
		return outcome{}, err
	}
	var wrong []string
	r.scores = Scores{}
	count := func(n *int, format string, args ...any) {
		*n++
		wrong = append(wrong, fmt.Sprintf(format, args...))
	}
	r.countDuplicates(t, func(format string, args ...any) { count(&r.scores.Duplicates, format, args...) })
	r.countHalfMade(t, func(format string, args ...any) { count(&r.scores.HalfMade, format, args...) })
	r.countLost(ctx, func(format string, args ...any) { count(&r.scores.Lost, format, args...) })
	r.ledger.mu.Lock()
	r.scores.False = r.ledger.false0
	r.ledger.mu.Unlock()
	for _, w := range wrong {
		r.ledger.violate("check: %s", w)
	}
	slices.Sort(wrong)
	return outcome{text: strings.Join(append([]string{r.scores.String()}, wrong...), "\n"), kind: "ok"}, nil
}

func (r *Runner) countDuplicates(t truth, found func(string, ...any)) {
	seen := map[string]bool{}
	for _, p := range r.ledger.all() {
		if seen[p.VM] {
			continue
		}
		seen[p.VM] = true
		vms := t.named(p.VM)
		for _, v := range vms[min(1, len(vms)):] {
			found("%s: also VM %d on %s", p.VM, v.ID, v.Node)
		}
	}
}

// countLost asks every agent for every id that was told.
func (r *Runner) countLost(ctx context.Context, found func(string, ...any)) {
	for _, p := range r.ledger.all() {
		if r.ledger.stageOf(p) != made {
			continue
		}
		for _, node := range r.world.Nodes() {
			if out := r.describeThrough(ctx, p, node, describeTimeout); out.kind != "exists" {
				found("%s via %s: %s", p.Alias, node, out.text)
			}
		}
	}
}

func (r *Runner) countHalfMade(t truth, found func(string, ...any)) {
	for _, v := range t.vms {
		if r.foreign(v) {
			continue
		}
		if why := t.whole(v); why != "" {
			found("VM %d (%s) on %s: %s", v.ID, v.Name, v.Node, why)
		}
		if at := t.having(v); len(at) < len(t.nodes) {
			found("VM %d (%s): only %s could start it with its cloud-init data", v.ID, v.Name, strings.Join(at, ", "))
		}
	}
	for _, c := range t.records {
		if !slices.ContainsFunc(t.vms, func(v vm) bool { return v.ID == c.VMID && v.UUID == strings.ToLower(c.UUID) }) {
			found("record of %q (VM %d, %s) on %s: no such VM", c.Name, c.VMID, c.State, c.Node)
		}
	}
	for _, image := range t.images {
		if !t.used[image] && !r.initial[image] {
			found("volume %s: of no VM", image)
		}
	}
}

// snippets tells which nodes have what the cloud-init drive of a VM is made from.
func (r *Runner) snippets(name string) (outcome, error) {
	t, err := look(r.world.Dir())
	if err != nil {
		return outcome{}, err
	}
	var lines []string
	for _, v := range t.named(name) {
		lines = append(lines, fmt.Sprintf("%d files: %s", len(v.Snippets), strings.Join(t.having(v), " ")))
	}
	return outcome{text: strings.Join(lines, "\n"), kind: "ok"}, nil
}

// foreign reports whether a VM was made by somebody else: the simulated cluster's own, and strangers.
func (r *Runner) foreign(v vm) bool {
	for _, p := range r.ledger.all() {
		if p.VM == v.Name {
			return false
		}
	}
	return true
}

// whole says what a VM of ours lacks, "" if nothing.
func (t *truth) whole(v vm) string {
	c, recorded := t.record(v.ID)
	switch {
	case v.Lock != "":
		return "locked (" + v.Lock + ")"
	case !recorded:
		return "no record"
	case c.State != "ready":
		return "its record says " + c.State
	case strings.ToLower(c.UUID) != v.UUID:
		return "its record is of another VM"
	}
	return ""
}
