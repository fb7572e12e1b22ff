package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report is what came of a story.
type Report struct {
	Log        string         // to compare with a golden file
	Faults     map[string]int // by kind
	Violations []string       // of the promises; empty is what we want
	Broken     []string       // expectations that were not met
	Scores     Scores         // of the last check
}

// Total is the number of all faults.
func (r Report) Total() (n int) {
	for _, k := range r.Faults {
		n += k
	}
	return n
}

// Runner carries out a story in a world.
type Runner struct {
	world  World
	ledger ledger
	log    strings.Builder
	jobs   map[string]*job
	scores Scores
	broken []string

	initial map[string]bool // volumes that were there at the beginning, and those of others

	mu     sync.Mutex // guards faults
	faults map[string]int
}

// job is a step in the background.
type job struct {
	done   chan struct{}
	result outcome // when it is done

	mu  sync.Mutex // guards ref
	ref string     // of its task
}

// outcome is what came of a step.
type outcome struct {
	text string // for the log
	kind string // "ok", "error CODE", "exists", "gone"
}

// Run carries out the steps and checks the world at the end. The error is of the world or of the story; what is wrong
// with the agents is in the report.
func Run(ctx context.Context, w World, steps []Step) (Report, error) {
	r := &Runner{world: w, jobs: map[string]*job{}, faults: map[string]int{}, initial: map[string]bool{}}
	before, err := look(w.Dir())
	for _, image := range before.images {
		r.initial[image] = true
	}
	for i := 0; i < len(steps) && err == nil; i++ {
		if err = r.step(ctx, steps[i]); err != nil {
			err = fmt.Errorf("%s: %w", steps[i].Line, err)
		}
	}
	for _, j := range r.jobs {
		<-j.done
	}
	return Report{Log: r.log.String(), Faults: r.faults, Violations: r.ledger.violations, Broken: r.broken, Scores: r.scores}, err
}

func (r *Runner) step(ctx context.Context, s Step) error {
	fmt.Fprintf(&r.log, "> %s\n", s.Line)
	if s.As != "" {
		j := &job{done: make(chan struct{})}
		r.jobs[s.As] = j
		go func() {
			defer close(j.done)
			j.result = r.call(ctx, s, j)
		}()
		return nil
	}
	out, err := r.act(ctx, s)
	if err != nil {
		return err
	}
	r.print(s, out)
	return nil
}

func (r *Runner) print(s Step, out outcome) {
	for line := range strings.Lines(out.text) {
		fmt.Fprintf(&r.log, "  %s\n", strings.TrimRight(r.mask(line), "\n"))
	}
	if s.Expect != "" && s.Expect != out.kind {
		r.broken = append(r.broken, fmt.Sprintf("%s: %s (%s), expected %s", s.Line, out.kind, r.mask(out.text), s.Expect))
	}
}

// act carries out a step that is not in the background.
func (r *Runner) act(ctx context.Context, s Step) (outcome, error) {
	if slices.Contains(throughNodes, s.Verb) {
		return r.call(ctx, s, &job{}), nil
	}
	switch s.Verb {
	case "await":
		j := r.jobs[s.Args[0]]
		if j == nil {
			return outcome{}, fmt.Errorf("no job %q", s.Args[0])
		}
		<-j.done
		return j.result, nil
	case "kill", "stop", "start":
		return outcome{}, r.agent(ctx, s)
	case "wait":
		return r.wait(ctx, s)
	case "check":
		return r.check(ctx)
	case "snippets":
		return r.snippets(s.Args[0])
	case "settle":
		return outcome{}, r.settle(ctx)
	case "clock", "gossip", "lose", "rotate":
		return outcome{}, r.disturb(ctx, s)
	}
	return r.simulate(ctx, s)
}

func (r *Runner) fault(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[kind]++
}

func (r *Runner) agent(ctx context.Context, s Step) error {
	switch s.Verb {
	case "kill":
		r.fault("agent killed")
		if len(s.Args) > 2 {
			return r.killAtWrite(ctx, s)
		}
		return r.world.KillAgent(ctx, s.Args[1])
	case "stop":
		r.fault("agent stopped")
		return r.world.StopAgent(ctx, s.Args[1])
	}
	if len(s.Args) == 2 {
		return r.world.StartAgent(ctx, s.Args[1])
	}
	var minimum, maximum uint32
	if _, err := fmt.Sscanf(strings.Join(s.Args[4:], " "), "protocol %d-%d", &minimum, &maximum); err != nil {
		return fmt.Errorf("want: protocol MIN-MAX: %w", err)
	}
	others, ok := r.world.(Versions)
	if !ok {
		return errors.New("this world has agents of one version")
	}
	r.fault("other version")
	return others.StartOther(ctx, s.Args[1], s.Args[3], minimum, maximum)
}

// killAtWrite is "kill agent NODE at write N".
func (r *Runner) killAtWrite(ctx context.Context, s Step) error {
	var write int
	if _, err := fmt.Sscanf(strings.Join(s.Args[2:], " "), "at write %d", &write); err != nil {
		return fmt.Errorf("want: at write N: %w", err)
	}
	journals, ok := r.world.(Journals)
	if !ok {
		return errors.New("this world does not look into journals")
	}
	return journals.KillAtWrite(ctx, s.Args[1], write)
}

// disturb carries out a step about what lies between agents, and their clocks.
func (r *Runner) disturb(ctx context.Context, s Step) error {
	switch s.Verb {
	case "clock":
		ahead, err := time.ParseDuration(s.Args[1])
		if err != nil {
			return err
		}
		r.fault("clock jump")
		return r.world.SetClock(ctx, s.Args[0], ahead)
	case "lose":
		var percent int
		if _, err := fmt.Sscanf(s.Args[2], "%d%%", &percent); err != nil {
			return err
		}
		r.fault("packet loss")
		return r.world.Lose(ctx, s.Args[0], s.Args[1], percent)
	case "rotate":
		r.fault("key rotation")
		return r.world.RotateGossipKey(ctx)
	}
	cut := s.Args[0] == "cut"
	if cut {
		r.fault("gossip cut")
	}
	return r.world.CutGossip(ctx, s.Args[1], s.Args[2], cut)
}

// troubles are the verbs of the simulated cluster that are faults, with their names.
var troubles = map[string]string{
	"partition": "partition", "cut": "link cut", "node": "node off", "migrate": "migration", "vmlist-lag": ".vmlist lag",
	"readonly": "/etc/pve read-only", "stranger": "stranger's VM", "vanish": "VM vanished", "quorum": "quorum", "ha": "HA take-over",
}

// simulate passes a verb on to the simulated cluster.
func (r *Runner) simulate(ctx context.Context, s Step) (outcome, error) {
	line, err := r.numbers(s)
	if err != nil {
		return outcome{}, err
	}
	said, err := r.world.Do(ctx, line)
	if err != nil { // as for a person: a VM that is locked cannot be migrated
		return outcome{text: "error: " + err.Error(), kind: "error"}, nil //nolint:nilerr // it is told
	}
	if kind, ok := troubles[s.Verb]; ok && !repairs(s) {
		r.fault(kind)
	}
	return outcome{text: withoutTemplates(said), kind: "ok"}, nil
}

// repairs reports whether a verb undoes a fault.
func repairs(s Step) bool {
	last := s.Args[len(s.Args)-1]
	return s.Verb == "readonly" && last == "off" || s.Verb == "node" && last == "on" || s.Verb == "ha" && last == "none" || last == "0s"
}

// withoutTemplates is a list of VMs that says what is worth reading.
func withoutTemplates(list string) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		if !strings.Contains(line, "template=true") {
			b.WriteString(strings.NewReplacer(" running=false", "", " template=false", "", " lock=\n", "\n").Replace(line))
		}
	}
	return b.String()
}

// numbers replaces names of VMs by their numbers, which the simulated cluster wants, and notes what becomes of them.
func (r *Runner) numbers(s Step) (string, error) {
	words := strings.Fields(s.Line)
	for i, w := range words {
		if p := r.ledger.find(w); p != nil {
			words[i] = p.vmid()
		}
	}
	if len(words) < 2 {
		return strings.Join(words, " "), nil
	}
	switch s.Verb {
	case "vanish":
		if p := r.ledger.byVMID(words[1]); p != nil {
			r.ledger.become(p, vanished)
		}
		return strings.Join(words, " "), r.excuse(words[1])
	case "migrate", "ha":
		return strings.Join(words, " "), r.excuse(words[1])
	case "stranger":
		if p := r.ledger.byVMID(words[1]); p != nil {
			r.ledger.become(p, vanished)
		}
	}
	return strings.Join(words, " "), nil
}

// excuse notes the volumes of a VM that stay where they are, whatever becomes of it: those of one that vanishes, and local
// ones of one that is moved by its config alone.
func (r *Runner) excuse(vmid string) error {
	t, err := look(r.world.Dir())
	for _, image := range t.images {
		if strings.HasPrefix(image, vmid+"/") {
			r.initial[image] = true
		}
	}
	return err
}

// pollWorld is how often the world is looked at while a condition is waited for.
const pollWorld = time.Second

func (r *Runner) wait(ctx context.Context, s Step) (outcome, error) {
	if s.Args[0] != "until" {
		d, err := time.ParseDuration(s.Args[0])
		if err != nil {
			return outcome{}, err
		}
		return outcome{}, r.world.Wait(ctx, d)
	}
	within := s.Within
	if within == 0 {
		within = 5 * time.Minute
	}
	for waited := time.Duration(0); waited < within; waited += pollWorld {
		ok, err := r.holds(s.Args[1:])
		if ok || err != nil {
			return outcome{kind: "ok"}, err
		}
		if err := r.world.Wait(ctx, pollWorld); err != nil {
			return outcome{}, err
		}
	}
	return outcome{text: "did not come about", kind: "error"}, nil
}

// holds looks whether a condition is true: "NAME on NODE", "NAME gone", "NAME ready".
func (r *Runner) holds(condition []string) (bool, error) {
	t, err := look(r.world.Dir())
	if err != nil {
		return false, err
	}
	name, _, _ := strings.Cut(condition[0], "#")
	vms := t.named(name)
	switch {
	case len(condition) == 2 && condition[1] == "gone":
		return len(vms) == 0, nil
	case len(condition) == 2 && condition[1] == "ready":
		return len(vms) == 1 && t.whole(vms[0]) == "", nil
	case len(condition) == 3 && condition[1] == "on":
		return len(vms) == 1 && vms[0].Node == condition[2], nil
	}
	return false, fmt.Errorf("no such condition: %q", strings.Join(condition, " "))
}

// settleTime is longer than anything takes that agents do by themselves: they count a node as gone after two minutes,
// and look at their records every ten.
const settleTime = 11 * time.Minute

// settle repairs everything and lets time go by.
func (r *Runner) settle(ctx context.Context) error {
	if err := r.world.Heal(ctx); err != nil {
		return err
	}
	for _, node := range r.world.Nodes() {
		if err := r.world.StartAgent(ctx, node); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.jobs)) {
		select {
		case <-r.jobs[name].done:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("job %s", name), ctx.Err())
		}
	}
	return r.world.Wait(ctx, settleTime)
}
