package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Walk makes up a story: a seed gives the same one each time. At its end everything is repaired and checked.
func Walk(seed uint64, nodes []string, length int) string {
	w := &walker{
		dice: rand.New(rand.NewPCG(seed, 1)), nodes: nodes, //nolint:gosec // a story that can be told again
		dead: map[string]bool{}, off: map[string]bool{}, odd: map[string]string{}, busy: map[string]string{},
	}
	w.say("wait 10s")
	for w.told < length {
		w.choose()
	}
	for len(w.jobs) > 0 {
		w.await()
	}
	w.say("settle")
	w.say("check")
	return strings.Join(w.lines, "\n") + "\n"
}

// walker is a story as far as it is made up.
type walker struct {
	dice  *rand.Rand
	nodes []string
	lines []string
	told  int // steps

	names []string
	busy  map[string]string // name: the job that works on it
	jobs  []string          // in the background, the oldest first
	dead  map[string]bool   // agents
	off   map[string]bool   // nodes
	split bool              // something is cut
	odd   map[string]string // what makes a node as it was: by what was done
}

func (w *walker) say(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
	w.told++
}

func (w *walker) node() string { return w.nodes[w.dice.IntN(len(w.nodes))] }

// two are two different nodes.
func (w *walker) two() (a, b string) {
	i := w.dice.Perm(len(w.nodes))
	return w.nodes[i[0]], w.nodes[i[1]]
}

// some is an element of a list, "" of an empty one.
func (w *walker) some(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[w.dice.IntN(len(list))]
}

// idle is a name that nothing works on, "" if there is none.
func (w *walker) idle() string {
	return w.some(slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return w.busy[n] != "" }))
}

// manyJobs is from when on a job is waited for before the next begins.
const manyJobs = 4

// work begins a step in the background.
func (w *walker) work(name, format string, args ...any) {
	if len(w.jobs) >= manyJobs {
		w.await()
	}
	job := fmt.Sprintf("j%d", w.told)
	w.say(format+" retry 2m deadline 10s in background as %s", append(args, job)...)
	w.jobs, w.busy[name] = append(w.jobs, job), job
}

func (w *walker) await() {
	job := w.jobs[0]
	w.jobs = w.jobs[1:]
	w.say("await %s", job)
	for name, j := range w.busy {
		if j == job {
			delete(w.busy, name)
		}
	}
}

// choose adds a step or a few.
func (w *walker) choose() {
	if w.disturbed() >= 2 && w.dice.IntN(2) == 0 {
		w.repair()
		return
	}
	switch p := w.dice.IntN(100); {
	case p < 22:
		w.create()
	case p < 29:
		w.remove()
	case p < 37:
		if name := w.some(w.names); name != "" {
			w.say("describe %s via %s deadline 5s", name, w.node())
		}
	case p < 46:
		w.kill()
	case p < 53:
		w.power()
	case p < 66:
		w.cut()
	case p < 74:
		if name := w.idle(); name != "" {
			w.say("migrate %s %s", name, w.node())
		}
	case p < 84:
		w.bend()
	default:
		w.say("wait %s", w.some([]string{"10ms", "300ms", "1s", "2s", "7s", "20s", "20s", "130s"}))
	}
}

// disturbed counts what is out of order.
func (w *walker) disturbed() int {
	n := len(w.dead) + len(w.odd)
	if w.split {
		n++
	}
	return n
}

// repair makes one thing right again.
func (w *walker) repair() {
	if w.split {
		w.cut()
		return
	}
	for _, node := range w.nodes {
		switch {
		case w.off[node]:
			w.power()
			return
		case w.dead[node]:
			w.say("start agent %s", node)
			delete(w.dead, node)
			return
		case w.odd[node] != "":
			w.say("%s", w.odd[node])
			delete(w.odd, node)
			return
		}
	}
}

// all are the nodes in some order, for "via".
func (w *walker) all() string {
	list := slices.Clone(w.nodes)
	w.dice.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return strings.Join(list, ",")
}

func (w *walker) create() {
	name := w.idle()
	if name == "" || w.dice.IntN(3) > 0 {
		name = fmt.Sprintf("web-%d", len(w.names)+1)
		w.names = append(w.names, name)
	}
	switch w.dice.IntN(4) {
	case 0:
		w.work(name, "duplicate create %s via %s on %s", name, w.all(), w.node())
	default:
		w.work(name, "create %s via %s on %s", name, w.all(), w.node())
	}
}

func (w *walker) remove() {
	name := w.idle()
	if name == "" {
		return
	}
	verb := w.some([]string{"delete", "delete", "duplicate delete"})
	w.work(name, "%s %s via %s", verb, name, w.all())
}

// kill ends an agent, or brings one back.
func (w *walker) kill() {
	for _, node := range w.nodes {
		if w.dead[node] && !w.off[node] && w.dice.IntN(3) > 0 {
			w.say("start agent %s", node)
			delete(w.dead, node)
			return
		}
	}
	node := w.node()
	if !w.off[node] && !w.dead[node] {
		w.say("%s agent %s", w.some([]string{"kill", "kill", "kill", "stop"}), node)
		w.dead[node] = true
	}
}

// power takes a node's power, if no other is off, or gives it back.
func (w *walker) power() {
	for node := range w.off {
		w.say("node %s on", node)
		w.say("start agent %s", node)
		delete(w.off, node)
		delete(w.dead, node)
		return
	}
	node := w.node()
	w.say("node %s off", node)
	w.off[node], w.dead[node] = true, true
}

// cut cuts something, or heals everything.
func (w *walker) cut() {
	a, b := w.two()
	if w.split {
		w.say("heal")
		w.split = false
		return
	}
	switch w.dice.IntN(6) {
	case 0:
		w.say("partition %s", strings.Join(w.nodes, "|"))
	case 1, 2:
		rest := slices.DeleteFunc(slices.Clone(w.nodes), func(n string) bool { return n == a })
		w.say("partition %s|%s", a, strings.Join(rest, ","))
	case 3:
		w.say("cut %s %s", a, b)
	case 4:
		w.say("cut %s>%s", a, b)
	case 5:
		w.say("gossip cut %s %s", a, b)
		return
	}
	w.split = true
}

// bend makes something odd at a node, or what is odd right again.
func (w *walker) bend() {
	node := w.node()
	for _, n := range w.nodes {
		if undo := w.odd[n]; undo != "" && w.dice.IntN(2) == 0 {
			w.say("%s", undo)
			delete(w.odd, n)
			return
		}
	}
	if w.odd[node] != "" || w.off[node] {
		return
	}
	a, b := w.two()
	switch w.dice.IntN(5) {
	case 0:
		w.say("vmlist-lag %s 3s", node)
		w.odd[node] = "vmlist-lag " + node + " 0s"
	case 1:
		w.say("readonly %s on", node)
		w.odd[node] = "readonly " + node + " off"
	case 2:
		w.say("clock %s %s", node, w.some([]string{"+30s", "+2h", "-2h", "+100h"}))
	case 3:
		w.say("lose %s %s 40%%", a, b)
	case 4:
		w.say("hold clone")
		w.say("wait 12s")
		w.kill()
		w.say("release clone")
	}
}
